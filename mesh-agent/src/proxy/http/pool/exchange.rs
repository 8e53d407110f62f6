//! What is noted about a pooled connection while nobody looks, and whom it wakes.
//!
//! The future of an HTTP/1 connection is polled by the task whose request it carries, so its waker is here and not in a
//! task: a wake-up while that task polls anyway is only noted, one while it waits is passed on, and one while the
//! connection is idle tells the pool to look whether it still lives.

use std::{
    cell::Cell,
    io,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    task::{Context, Wake, Waker},
    time::Duration,
};

use futures::task::AtomicWaker;
use tokio::{sync::Notify, time::Instant};

use crate::{proxy::http::io::reason, telemetry::Reason};

/// In the pool.
const IDLE: u8 = 0;
/// In the pool, and something happened on it.
const STIRRED: u8 = 1;
/// Somebody polls it, or will without being woken.
const HELD: u8 = 2;
/// And something happened since he looked.
const NOTED: u8 = 3;
/// Somebody waits for it.
const WAITING: u8 = 4;

thread_local! {
    static DEAF: Cell<bool> = const { Cell::new(false) };
}

#[derive(Debug)]
pub(in crate::proxy::http) struct Exchange {
    state: AtomicU8,
    waiting: AtomicWaker,
    /// Of the pool.
    stirred: Arc<Notify>,
    /// Since the exchange began.
    sent: AtomicBool,
    received: AtomicBool,
    /// Since [`Self::take_activity`].
    active: AtomicBool,
    /// The body of the request has been taken whole.
    request_done: AtomicBool,
    fault: OnceLock<Reason>,
    /// Reads ask the socket, whatever the runtime knows of it.
    looks_closely: AtomicBool,
    /// When the pool was stirred last; milliseconds after `born`, plus one.
    stirred_at: AtomicU64,
    born: Instant,
}

impl Exchange {
    pub(super) fn new(stirred: Arc<Notify>) -> Arc<Self> {
        Arc::new(Self {
            state: AtomicU8::new(HELD),
            waiting: AtomicWaker::new(),
            stirred,
            sent: AtomicBool::new(false),
            received: AtomicBool::new(false),
            active: AtomicBool::new(false),
            request_done: AtomicBool::new(false),
            fault: OnceLock::new(),
            looks_closely: AtomicBool::new(false),
            stirred_at: AtomicU64::new(0),
            born: Instant::now(),
        })
    }

    /// A new request goes out.
    pub(super) fn begin(&self) {
        self.sent.store(false, Ordering::Relaxed);
        self.received.store(false, Ordering::Relaxed);
        self.request_done.store(false, Ordering::Relaxed);
    }

    pub(in crate::proxy::http) fn note_sent(&self) {
        set(&self.sent);
    }

    pub(in crate::proxy::http) fn note_received(&self) {
        set(&self.received);
        set(&self.active);
    }

    pub(in crate::proxy::http) fn note_error(&self, error: &io::Error) {
        if let Some(reason) = reason(error) {
            self.note_fault(reason);
        }
    }

    /// The first one stays.
    pub(super) fn note_fault(&self, reason: Reason) {
        let _ = self.fault.set(reason);
    }

    pub(super) fn note_request_done(&self) {
        self.request_done.store(true, Ordering::Release);
    }

    /// The kernel or the tunnel took bytes of the request.
    pub(super) fn has_sent(&self) -> bool {
        self.sent.load(Ordering::Relaxed)
    }

    pub(super) fn has_received(&self) -> bool {
        self.received.load(Ordering::Relaxed)
    }

    pub(super) fn is_request_done(&self) -> bool {
        self.request_done.load(Ordering::Acquire)
    }

    /// Whether anything was received since the last call.
    pub(super) fn take_activity(&self) -> bool {
        self.active.swap(false, Ordering::Relaxed)
    }

    /// Why the connection is gone, where more is known than that.
    pub(super) fn fault(&self) -> Option<Reason> {
        self.fault.get().copied()
    }

    /// From here on wake-ups are noted.
    pub(super) fn hold(&self) {
        self.state.store(HELD, Ordering::Release);
    }

    /// From here on wake-ups go to the task of `cx`. False: something happened meanwhile.
    pub(super) fn wait(&self, cx: &Context<'_>) -> bool {
        self.waiting.register(cx.waker());
        self.swap(HELD, WAITING)
    }

    /// From here on wake-ups stir the pool. False: something happened meanwhile.
    pub(super) fn park(&self) -> bool {
        self.swap(HELD, IDLE)
    }

    pub(super) fn look_closely(&self, closely: bool) {
        self.looks_closely.store(closely, Ordering::Relaxed);
    }

    pub(in crate::proxy::http) fn looks_closely(&self) -> bool {
        self.looks_closely.load(Ordering::Relaxed)
    }

    /// When something last happened on it while it was idle.
    pub(super) fn stirred_at(&self) -> Option<Instant> {
        let after = self.stirred_at.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.born + Duration::from_millis(after))
    }

    pub(super) fn is_stirred(&self) -> bool {
        self.state.load(Ordering::Acquire) == STIRRED
    }

    fn swap(&self, from: u8, to: u8) -> bool {
        self.state
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

fn set(flag: &AtomicBool) {
    // Reading costs nothing; writing takes the line away from others.
    if !flag.load(Ordering::Relaxed) {
        flag.store(true, Ordering::Relaxed);
    }
}

/// Runs what wakes the connection of this very task without a reason.
pub(super) fn deaf<T>(run: impl FnOnce() -> T) -> T {
    struct Hears;
    impl Drop for Hears {
        fn drop(&mut self) {
            DEAF.set(false);
        }
    }
    DEAF.set(true);
    let _hears = Hears;
    run()
}

impl Wake for Exchange {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if DEAF.get() {
            return;
        }
        let mut state = self.state.load(Ordering::Acquire);
        loop {
            let next = match state {
                IDLE => STIRRED,
                HELD | WAITING => NOTED,
                _ => return,
            };
            match self
                .state
                .compare_exchange_weak(state, next, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => break,
                Err(now) => state = now,
            }
        }
        match state {
            IDLE => {
                let after = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(0);
                self.stirred_at.store(after + 1, Ordering::Relaxed);
                self.stirred.notify_one();
            }
            WAITING => self.waiting.wake(),
            _ => {}
        }
    }
}

/// Polls nobody back: for what only moves when the connection is polled.
pub(super) fn unwoken() -> Context<'static> {
    Context::from_waker(Waker::noop())
}
