//! One tunnel, seen from the streams it carries: how many there are, and why it was cut.

use std::{
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;

use crate::telemetry::Reason;

/// Streams of the whole process.
static ALL: AtomicUsize = AtomicUsize::new(0);

pub(super) fn all_streams() -> usize {
    ALL.load(Ordering::Relaxed)
}

/// Shared by a tunnel's driver and its streams.
#[derive(Debug, Default)]
pub(super) struct Link {
    streams: AtomicUsize,
    /// Streams that there ever were: says whether a tunnel without streams had some in between.
    opened: AtomicU64,
    cut: OnceLock<Reason>,
    /// Wakes the driver: the tunnel was cut, or the number of streams asks for other windows.
    pub(super) stir: Notify,
}

impl Link {
    pub(super) fn add_stream(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
        ALL.fetch_add(1, Ordering::Relaxed);
        self.streams.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn remove_stream(&self) {
        self.streams.fetch_sub(1, Ordering::AcqRel);
        ALL.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn streams(&self) -> usize {
        self.streams.load(Ordering::Acquire)
    }

    pub(super) fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    /// Ends the tunnel and every stream on it, with this reason. The first one stays.
    pub(super) fn cut(&self, reason: Reason) {
        let _ = self.cut.set(reason);
        self.stir.notify_one();
    }

    pub(super) fn was_cut(&self) -> Option<Reason> {
        self.cut.get().copied()
    }
}

/// The tunnels of one direction that live, for the metrics.
#[derive(Debug, Default)]
pub(super) struct Links(Mutex<Vec<Weak<Link>>>);

impl Links {
    /// A new tunnel.
    pub(super) fn link(&self) -> Arc<Link> {
        let link = Arc::<Link>::default();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() == all.capacity() {
            all.retain(|link| link.strong_count() > 0);
        }
        all.push(Arc::downgrade(&link));
        link
    }

    /// How many there are, and the streams on all of them.
    pub(super) fn count(&self) -> (u64, u64) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|link| link.strong_count() > 0);
        let live = all.iter().filter_map(Weak::upgrade);
        live.fold((0, 0), |(links, streams), link| {
            (links + 1, streams + link.streams() as u64)
        })
    }
}

/// Finds out that a tunnel has been without streams for so long.
#[derive(Debug)]
pub(super) struct Idle {
    after: Duration,
    since: Option<(tokio::time::Instant, u64)>,
}

impl Idle {
    pub(super) fn new(after: Duration) -> Self {
        Self { after, since: None }
    }

    /// To be asked now and then.
    pub(super) fn is_over(&mut self, link: &Link) -> bool {
        if link.streams() > 0 {
            self.since = None;
            return false;
        }
        let now = tokio::time::Instant::now();
        let opened = link.opened();
        match self.since {
            Some((since, then)) if then == opened => now - since >= self.after,
            _ => {
                self.since = Some((now, opened));
                false
            }
        }
    }
}
