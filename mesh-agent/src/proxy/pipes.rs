//! Pipes for splice(2): a bounded pool shared by all connections.
//!
//! A direction borrows a pipe for one turn and gives it back when it is empty again, so that a pipe is tied up only
//! while a peer does not take what is in it. When no pipe can be had the direction copies through memory instead.

use std::{
    cell::RefCell,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

/// Empty pipes that one thread keeps at hand.
const KEPT_PER_THREAD: usize = 8;

thread_local! {
    static KEPT: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

/// The bound: pipes in use and kept, two descriptors each.
#[derive(Debug)]
pub(super) struct Pipes {
    max: usize,
    /// Bytes asked for with F_SETPIPE_SZ; the kernel's default is taken when it refuses.
    size: usize,
    open: AtomicUsize,
}

impl Pipes {
    pub(super) fn new(max: usize, size: usize) -> Arc<Self> {
        Arc::new(Self {
            max,
            size,
            open: AtomicUsize::new(0),
        })
    }

    /// An empty pipe, or `None` when the bound is reached or the kernel gives none.
    pub(super) fn get(self: &Arc<Self>) -> Option<Pipe> {
        let kept = KEPT.with_borrow_mut(|kept| {
            // Another proxy of this process (tests) may have left pipes of its own here.
            let at = kept.iter().rposition(|p| Arc::ptr_eq(&p.pool, self))?;
            Some(kept.swap_remove(at))
        });
        if kept.is_some() {
            return kept;
        }
        if self.open.fetch_add(1, Ordering::Relaxed) >= self.max {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        // From here on the drop of `Pipe` gives the place back.
        match pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK) {
            Ok((read, write)) => {
                // Refused above pipe-user-pages-soft; a pipe of the default size works as well.
                let _ = fcntl_setpipe_size(&write, self.size);
                Some(Pipe {
                    read,
                    write,
                    held: 0,
                    pool: Arc::clone(self),
                })
            }
            Err(_) => {
                self.open.fetch_sub(1, Ordering::Relaxed);
                None
            }
        }
    }

    /// Pipes that exist now.
    #[cfg(test)]
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

/// A pipe and how much it holds.
#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) read: OwnedFd,
    pub(super) write: OwnedFd,
    /// Bytes spliced in and not yet out.
    pub(super) held: usize,
    pool: Arc<Pipes>,
}

impl Pipe {
    /// Asked for in one splice(2): as much as the pipe may hold.
    pub(super) fn capacity(&self) -> usize {
        self.pool.size
    }

    /// Gives an empty pipe back. One that holds bytes is closed: they belong to a connection.
    pub(super) fn put_back(self) {
        if self.held != 0 {
            return;
        }
        KEPT.with_borrow_mut(|kept| {
            if kept.len() < KEPT_PER_THREAD {
                kept.push(self);
            }
        });
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.pool.open.fetch_sub(1, Ordering::Relaxed);
    }
}
