//! How a source is doing, readable at any time.

use std::{sync::Arc, time::SystemTime};

use arc_swap::ArcSwap;

/// State of one source.
#[derive(Clone, Debug, serde::Serialize)]
pub struct SourceStatus {
    /// `file:/etc/mesh`
    pub name: String,
    /// When its resources were last applied; `None` if never.
    pub last_applied: Option<SystemTime>,
    /// Counts the applied changes.
    pub version: u64,
    /// Why what it says now is not applied; what was applied last stays in effect. `None`: all is well.
    pub error: Option<Vec<String>>,
    /// Since when it is in error.
    pub error_since: Option<SystemTime>,
    /// Of what is applied.
    pub warnings: Vec<String>,
    /// How many resources are applied.
    pub resources: usize,
}

impl SourceStatus {
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            last_applied: None,
            version: 0,
            error: None,
            error_since: None,
            warnings: Vec::new(),
            resources: 0,
        }
    }
}

/// A status that its source writes and others read.
#[derive(Clone, Debug)]
pub struct SourceState(Arc<ArcSwap<SourceStatus>>);

impl SourceState {
    pub fn new(name: impl Into<String>) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(SourceStatus::new(name))))
    }

    pub fn get(&self) -> Arc<SourceStatus> {
        self.0.load_full()
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut SourceStatus)) {
        let mut status = SourceStatus::clone(&self.0.load());
        change(&mut status);
        self.0.store(Arc::new(status));
    }
}
