//! The wall clock, as a seam: validity is a matter of wall time, which jumps.

use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;

/// Says what time it is. Only validity is measured with it; waiting is measured with the monotonic clock of tokio.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    fn now(&self) -> SystemTime;
}

/// The clock of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// The same clock for rustls.
#[derive(Debug)]
pub(super) struct RustlsClock(pub(super) std::sync::Arc<dyn Clock>);

impl TimeProvider for RustlsClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(unix(self.0.now()))
    }
}

/// A time before 1970 reads as 1970: certificates are "not yet valid" then, which is what is wrong.
pub(super) fn unix(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// A clock that a test moves.
#[cfg(test)]
#[derive(Debug)]
pub(super) struct ManualClock(std::sync::Mutex<SystemTime>);

#[cfg(test)]
impl ManualClock {
    pub(super) fn new(at: SystemTime) -> std::sync::Arc<Self> {
        std::sync::Arc::new(Self(std::sync::Mutex::new(at)))
    }

    pub(super) fn set(&self, at: SystemTime) {
        *self.0.lock().unwrap() = at;
    }
}

#[cfg(test)]
impl Clock for ManualClock {
    fn now(&self) -> SystemTime {
        *self.0.lock().unwrap()
    }
}
