//! The TCP families: one flow for each (reporter, source, destination, service, principals), capped, forgotten when idle.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter},
};

use super::labels::{FlowKey, FlowLabels, IstioLabels, ReasonLabels};
use crate::telemetry::{Reason, directory::Directory};

/// Counters of one flow. A connection resolves its flow once and then only adds.
#[derive(Debug)]
pub(crate) struct Flow {
    labels: FlowLabels,
    opened: AtomicU64,
    /// Response bytes: towards who dialled.
    response_bytes: AtomicU64,
    /// Request bytes: from who dialled.
    request_bytes: AtomicU64,
    closed: [AtomicU64; Reason::ALL.len()],
    /// Milliseconds since the start of the table, of the last change.
    touched: AtomicU64,
}

impl Flow {
    fn new(labels: FlowLabels, now: u64) -> Self {
        Self {
            labels,
            opened: AtomicU64::new(0),
            response_bytes: AtomicU64::new(0),
            request_bytes: AtomicU64::new(0),
            closed: [const { AtomicU64::new(0) }; Reason::ALL.len()],
            touched: AtomicU64::new(now),
        }
    }

    pub(crate) fn add_opened(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes from who dialled and to who dialled.
    pub(crate) fn add_bytes(&self, request: u64, response: u64) {
        self.request_bytes.fetch_add(request, Ordering::Relaxed);
        self.response_bytes.fetch_add(response, Ordering::Relaxed);
    }

    pub(crate) fn add_closed(&self, reason: Reason) {
        self.closed[reason.index()].fetch_add(1, Ordering::Relaxed);
    }

    fn closed(&self) -> impl Iterator<Item = (Reason, u64)> + '_ {
        Reason::ALL
            .iter()
            .map(|r| (*r, self.closed[r.index()].load(Ordering::Relaxed)))
            .filter(|(_, n)| *n > 0)
    }
}

/// Every flow.
pub(crate) struct Flows {
    started: Instant,
    max: usize,
    idle: Duration,
    flows: RwLock<HashMap<FlowKey, Arc<Flow>>>,
    /// Outbound, inbound; then those with mutual TLS.
    overflow: [Arc<Flow>; 4],
    folded: AtomicU64,
}

impl fmt::Debug for Flows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flows").field("max", &self.max).finish()
    }
}

impl Flows {
    pub(crate) fn new(max: usize, idle: Duration, now: Instant) -> Self {
        Self {
            started: now,
            max,
            idle,
            flows: RwLock::default(),
            overflow: [0, 1, 2, 3]
                .map(|i| Arc::new(Flow::new(FlowLabels::overflow(i & 1 == 1, i & 2 == 2), 0))),
            folded: AtomicU64::new(0),
        }
    }

    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }

    /// The flow of a connection. Above the cap it is the overflow flow, and the connection is counted as folded.
    pub(crate) fn resolve(
        &self,
        key: &FlowKey,
        directory: &dyn Directory,
        now: Instant,
    ) -> Arc<Flow> {
        let millis = self.millis(now);
        if let Some(flow) = self
            .flows
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
        {
            flow.touched.store(millis, Ordering::Relaxed);
            return flow.clone();
        }
        // Labels are made outside the write lock: the directory may be slow.
        let labels = FlowLabels::new(key, directory);
        let mut flows = self.flows.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(flow) = flows.get(key) {
            return flow.clone();
        }
        if flows.len() >= self.max {
            self.folded.fetch_add(1, Ordering::Relaxed);
            return self.overflow
                [usize::from(key.inbound) + 2 * usize::from(key.security.is_some())]
            .clone();
        }
        let flow = Arc::new(Flow::new(labels, millis));
        flows.insert(key.clone(), flow.clone());
        flow
    }

    /// Marks a flow as used when a connection of it ends.
    pub(crate) fn touch(&self, flow: &Flow, now: Instant) {
        flow.touched.store(self.millis(now), Ordering::Relaxed);
    }

    /// Forgets flows that no live connection holds and that have not changed for the idle time.
    pub(crate) fn expire(&self, now: Instant) {
        let horizon = self
            .millis(now)
            .saturating_sub(u64::try_from(self.idle.as_millis()).unwrap_or(u64::MAX));
        self.flows
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|_, flow| {
                Arc::strong_count(flow) > 1 || flow.touched.load(Ordering::Relaxed) >= horizon
            });
    }

    /// Connections that were counted in the overflow series.
    pub(crate) fn folded(&self) -> u64 {
        self.folded.load(Ordering::Relaxed)
    }

    pub(crate) fn len(&self) -> usize {
        self.flows
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    fn all(&self) -> Vec<Arc<Flow>> {
        let flows = self.flows.read().unwrap_or_else(PoisonError::into_inner);
        let used = self
            .overflow
            .iter()
            .filter(|f| f.opened.load(Ordering::Relaxed) > 0);
        flows.values().chain(used).cloned().collect()
    }
}

/// Names as registered: the encoder appends `_total` to a counter.
type Read = fn(&Flow) -> &AtomicU64;
const BY_FLOW: [(&str, &str, Read); 3] = [
    (
        "istio_tcp_connections_opened",
        "TCP connections opened",
        |f| &f.opened,
    ),
    (
        "istio_tcp_sent_bytes",
        "Bytes sent in response: from the destination to the source",
        |f| &f.response_bytes,
    ),
    (
        "istio_tcp_received_bytes",
        "Bytes received in requests: from the source to the destination",
        |f| &f.request_bytes,
    ),
];

impl Collector for Flows {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let flows = self.all();
        for (name, help, read) in BY_FLOW {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for flow in &flows {
                let labels = IstioLabels {
                    flow: &flow.labels,
                    response_flags: "-",
                };
                ConstCounter::new(read(flow).load(Ordering::Relaxed))
                    .encode(family.encode_family(&labels)?)?;
            }
        }
        let mut family = encoder.encode_descriptor(
            "istio_tcp_connections_closed",
            "TCP connections closed, by Envoy's short response flag",
            None,
            MetricType::Counter,
        )?;
        for flow in &flows {
            for (response_flags, n) in by_flag(flow) {
                let labels = IstioLabels {
                    flow: &flow.labels,
                    response_flags,
                };
                ConstCounter::new(n).encode(family.encode_family(&labels)?)?;
            }
        }
        let mut family = encoder.encode_descriptor(
            "mesh_connections_closed",
            "TCP connections closed, by reason",
            None,
            MetricType::Counter,
        )?;
        for flow in &flows {
            for (reason, n) in flow.closed() {
                let labels = ReasonLabels {
                    flow: &flow.labels,
                    reason: reason.as_str(),
                };
                ConstCounter::new(n).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

/// Several reasons share a flag.
fn by_flag(flow: &Flow) -> Vec<(&'static str, u64)> {
    let mut flags: Vec<(&'static str, u64)> = Vec::new();
    for (reason, n) in flow.closed() {
        match flags.iter_mut().find(|(flag, _)| *flag == reason.flag()) {
            Some((_, sum)) => *sum += n,
            None => flags.push((reason.flag(), n)),
        }
    }
    flags
}
