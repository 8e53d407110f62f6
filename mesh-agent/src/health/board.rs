//! What checks have found, for those who show it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::time::Instant;

use super::{Failed, Key};
use crate::{model::ResourceName, resilience::Health};

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
}

/// For the metrics: checks since the agent began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub good: u64,
    pub bad: u64,
    pub unknown: u64,
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
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            good: read(&self.good),
            bad: read(&self.bad),
            unknown: read(&self.unknown),
        }
    }

    /// Of every service that is checked: endpoints that are unhealthy now. In the order of names.
    pub fn unhealthy(&self) -> BTreeMap<ResourceName, u64> {
        let mut services = BTreeMap::new();
        for (key, report) in &*self.lock() {
            let n: &mut u64 = services.entry(key.service.clone()).or_default();
            *n += u64::from(report.health == Health::Unhealthy);
        }
        services
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

    pub(super) fn retain(&self, keep: impl Fn(&Key) -> bool) {
        self.lock().retain(|key, _| keep(key));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, CheckReport>> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
