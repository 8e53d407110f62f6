//! What checks have found, for those who show it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::time::Instant;

use super::{Failed, Key};
use crate::resilience::Health;

/// The last check of an endpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckReport {
    pub at: Instant,
    /// `None`: it was good.
    pub failed: Option<Failed>,
    pub health: Health,
}

/// Shared by the task that checks and those who ask. Holds no more than the endpoints that are checked.
#[derive(Debug, Default)]
pub struct Board {
    reports: Mutex<HashMap<Key, CheckReport>>,
    good: AtomicU64,
    bad: AtomicU64,
    unknown: AtomicU64,
    became_healthy: AtomicU64,
    became_unhealthy: AtomicU64,
}

/// For the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Checks since the agent began.
    pub good: u64,
    pub bad: u64,
    pub unknown: u64,
    /// Changes since the agent began.
    pub became_healthy: u64,
    pub became_unhealthy: u64,
    /// Endpoints now.
    pub healthy: u64,
    pub unhealthy: u64,
}

impl Board {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// `None`: it is not checked, or was not yet.
    pub fn report(&self, key: &Key) -> Option<CheckReport> {
        self.lock().get(key).cloned()
    }

    pub fn counts(&self) -> Counts {
        let reports = self.lock();
        let now = |health| reports.values().filter(|r| r.health == health).count() as u64;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            good: read(&self.good),
            bad: read(&self.bad),
            unknown: read(&self.unknown),
            became_healthy: read(&self.became_healthy),
            became_unhealthy: read(&self.became_unhealthy),
            healthy: now(Health::Healthy),
            unhealthy: now(Health::Unhealthy),
        }
    }

    pub(super) fn write(&self, key: Key, report: CheckReport) {
        let counter = match &report.failed {
            None => &self.good,
            Some(Failed::Endpoint(_)) => &self.bad,
            Some(Failed::Unknown(_)) => &self.unknown,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(key, report);
    }

    pub(super) fn changed(&self, health: Health) {
        let counter = match health {
            Health::Healthy => &self.became_healthy,
            Health::Unhealthy => &self.became_unhealthy,
            Health::Unknown => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn retain(&self, keep: impl Fn(&Key) -> bool) {
        self.lock().retain(|key, _| keep(key));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, CheckReport>> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
