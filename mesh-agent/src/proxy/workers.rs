//! Where the tasks of connections run: the agent's own multi-thread runtime, or one single-thread runtime per core.
//!
//! docs/adr/0003-copying.md has the comparison.

use std::{
    future::Future,
    io,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use tokio::{
    runtime::{Builder, Handle},
    sync::watch,
    task::JoinHandle,
};

/// Which runtime connections run on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WorkerMode {
    /// The runtime that [`super::Proxy::new`] is called in.
    #[default]
    Shared,
    /// So many threads, each with a runtime of its own; a connection stays on one of them.
    PerCore(usize),
}

/// Task polls after which a runtime looks for I/O events again. A poll here may move half a MiB, so tokio's 61 would
/// let a few bulk streams delay everyone else by milliseconds.
pub const EVENT_INTERVAL: u32 = 8;

#[derive(Debug)]
pub(super) struct Workers {
    handles: Vec<Handle>,
    next: AtomicUsize,
    /// Dropping it ends the threads.
    _stop: Option<watch::Sender<()>>,
}

impl Workers {
    pub(super) fn new(mode: WorkerMode) -> io::Result<Self> {
        let (handles, stop) = match mode {
            WorkerMode::Shared => (vec![Handle::current()], None),
            WorkerMode::PerCore(n) => {
                let (stop, stopped) = watch::channel(());
                let handles = (0..n.max(1))
                    .map(|i| thread_runtime(i, stopped.clone()))
                    .collect::<io::Result<_>>()?;
                (handles, Some(stop))
            }
        };
        Ok(Self {
            handles,
            next: AtomicUsize::new(0),
            _stop: stop,
        })
    }

    /// Runs a task on the next worker.
    pub(super) fn spawn<F>(&self, task: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let next = if self.handles.len() == 1 {
            0
        } else {
            self.next.fetch_add(1, Ordering::Relaxed) % self.handles.len()
        };
        self.handles[next].spawn(task)
    }
}

fn thread_runtime(index: usize, mut stopped: watch::Receiver<()>) -> io::Result<Handle> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .event_interval(EVENT_INTERVAL)
        .build()?;
    let handle = runtime.handle().clone();
    thread::Builder::new()
        .name(format!("proxy-{index}"))
        .spawn(move || runtime.block_on(async move { while stopped.changed().await.is_ok() {} }))?;
    Ok(handle)
}
