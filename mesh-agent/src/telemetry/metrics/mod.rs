//! Everything that `/metrics` shows.

mod agent;
mod decisions;
mod exposition;
mod families;
mod flows;
mod handshakes;
mod health;
mod identity;
mod labels;
mod requests;
mod services;
mod traffic;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use prometheus_client::registry::Registry;

pub use agent::{AgentGauges, AgentSource, ConfigGauges, MapGauge};
pub use decisions::Outcome;
pub use exposition::CONTENT_TYPE;
pub(crate) use flows::Flow;
pub(crate) use flows::Flows;
pub use handshakes::Role;
pub use health::HealthGauges;
pub use identity::{CertificateGauge, FileGauge, IdentityGauges, TunnelGauge};
pub(crate) use labels::{CANONICAL_REVISION, CANONICAL_SERVICE, FlowKey};
pub(crate) use requests::{Answer, FlowRef, Measured, Requests, SeriesCache};
pub use services::{EndpointGauge, PoolGauge, ServiceGauge};
pub use traffic::{Detected, HealthChange, Mirror, Retry};

use super::{Reason, lock};
use decisions::Decisions;
use handshakes::Handshakes;
use traffic::Traffic;

/// Counters that other modules add to. All are small: labels are reasons and source names.
#[derive(Debug)]
pub(crate) struct Counts {
    refused: [AtomicU64; Reason::ALL.len()],
    pub(crate) enrolment_errors: Mutex<BTreeMap<&'static str, u64>>,
    pub(crate) config_rejected: Mutex<BTreeMap<String, u64>>,
    pub(crate) log_lines_dropped: AtomicU64,
    pub(crate) handshakes: Handshakes,
    pub(crate) decisions: Decisions,
    pub(crate) traffic: Traffic,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            refused: [const { AtomicU64::new(0) }; Reason::ALL.len()],
            enrolment_errors: Mutex::default(),
            config_rejected: Mutex::default(),
            log_lines_dropped: AtomicU64::new(0),
            handshakes: Handshakes::default(),
            decisions: Decisions::default(),
            traffic: Traffic::default(),
        }
    }
}

impl Counts {
    pub(crate) fn add_refused(&self, reason: Reason) {
        self.refused[reason.index()].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_enrolment_error(&self, reason: &'static str) {
        *lock(&self.enrolment_errors).entry(reason).or_default() += 1;
    }

    pub(crate) fn add_config_rejected(&self, source: &str) {
        let mut map = lock(&self.config_rejected);
        match map.get_mut(source) {
            Some(n) => *n += 1,
            None => {
                map.insert(source.to_owned(), 1);
            }
        }
    }

    /// Each refusing reason with its count, zeros too: an alert needs the series before the first refusal.
    pub(crate) fn refused(&self) -> impl Iterator<Item = (Reason, u64)> + '_ {
        Reason::ALL
            .iter()
            .filter(|r| r.is_refusal())
            .map(|r| (*r, self.refused[r.index()].load(Ordering::Relaxed)))
    }
}

/// The registry and its parts.
pub(crate) struct Metrics {
    registry: Registry,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    pub(crate) fn new(
        flows: Arc<Flows>,
        requests: Arc<Requests>,
        agent: agent::AgentCollector,
    ) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(flows));
        registry.register_collector(Box::new(requests));
        registry.register_collector(Box::new(agent));
        Self { registry }
    }

    /// The exposition, text format 0.0.4 ([`CONTENT_TYPE`]).
    pub(crate) fn encode(&self) -> String {
        let mut open = String::new();
        // Writing to a String does not fail; a collector that fails leaves a shorter text.
        if prometheus_client::encoding::text::encode(&mut open, &self.registry).is_err() {
            tracing::error!("the metrics could not be encoded; the answer is incomplete");
        }
        exposition::to_text_format(&open)
    }
}

pub(crate) use agent::AgentCollector;
