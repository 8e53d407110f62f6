//! Instants as integers, so that they fit into atomics.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Earlier than any instant that is asked about, so that differences do not go below zero.
static BASE: LazyLock<Instant> = LazyLock::new(|| {
    let now = Instant::now();
    now.checked_sub(Duration::from_secs(3_600)).unwrap_or(now)
});

/// Nanoseconds since a fixed moment of this process; enough for 584 years.
pub(super) fn nanos(at: Instant) -> u64 {
    u64::try_from(at.saturating_duration_since(*BASE).as_nanos()).unwrap_or(u64::MAX)
}

/// The inverse of [`nanos`].
pub(super) fn instant(nanos: u64) -> Instant {
    *BASE + Duration::from_nanos(nanos)
}

/// An instant, or none.
#[derive(Debug, Default)]
pub(super) struct AtomicMoment(AtomicU64);

impl AtomicMoment {
    pub(super) fn new(at: Option<Instant>) -> Self {
        let moment = Self::default();
        moment.store(at);
        moment
    }

    pub(super) fn store(&self, at: Option<Instant>) {
        let value = at.map_or(0, |at| nanos(at).max(1));
        self.0.store(value, Ordering::Release);
    }

    pub(super) fn load(&self) -> Option<Instant> {
        match self.0.load(Ordering::Acquire) {
            0 => None,
            value => Some(instant(value)),
        }
    }
}
