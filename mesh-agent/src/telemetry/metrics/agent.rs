//! Metrics of the agent itself: maps, configuration, enrolment, connections in flight, the process.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
    time::SystemTime,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter},
};

use super::{
    Counts, Flows, HealthGauges, PoolGauge, Requests, ServiceGauge,
    families::Families,
    health,
    identity::{self, IdentityGauges, TunnelGauge},
    services,
};
use crate::telemetry::{process, shared::ActiveCounts};

/// What the parts of the agent show at a scrape.
#[derive(Clone, Debug, Default)]
pub struct AgentGauges {
    pub maps: Vec<MapGauge>,
    /// Counters of the kernel programs: name, value.
    pub bpf_events: Vec<(&'static str, u64)>,
    /// Workloads of this node by state of their enrolment (`enrolled`, `failed` ...).
    pub workloads: Vec<(&'static str, u64)>,
    pub config: Vec<ConfigGauges>,
    pub identity: IdentityGauges,
    pub tunnels: Vec<TunnelGauge>,
    pub services: Vec<ServiceGauge>,
    pub health: HealthGauges,
    pub pool: PoolGauge,
}

/// Occupancy of one BPF map.
#[derive(Clone, Debug)]
pub struct MapGauge {
    pub name: String,
    pub entries: u64,
    pub max_entries: u64,
}

/// State of one source of configuration.
#[derive(Clone, Debug)]
pub struct ConfigGauges {
    pub source: String,
    pub last_applied: Option<SystemTime>,
    /// The newest state of the source is the one in effect.
    pub last_reload_ok: bool,
    pub resources: u64,
}

/// Read at every scrape; it may take system calls, but must not wait.
pub trait AgentSource: Send + Sync {
    fn gauges(&self) -> AgentGauges;
}

/// A part of `/metrics`.
pub(crate) struct AgentCollector {
    pub(crate) node: String,
    pub(crate) counts: Arc<Counts>,
    pub(crate) flows: Arc<Flows>,
    pub(crate) requests: Arc<Requests>,
    pub(crate) active: Arc<ActiveCounts>,
    pub(crate) source: Arc<std::sync::OnceLock<Arc<dyn AgentSource>>>,
}

impl fmt::Debug for AgentCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentCollector")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl Collector for AgentCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Families(encoder);
        out.gauges(
            "mesh_build_info",
            "Version of the agent; always 1",
            [(
                [
                    ("version", env!("CARGO_PKG_VERSION").to_owned()),
                    ("abi_version", mesh_common::ABI_VERSION.to_string()),
                    ("node", self.node.clone()),
                ],
                1.0,
            )],
        )?;
        self.connections(&mut out)?;
        let gauges = self
            .source
            .get()
            .map(|source| source.gauges())
            .unwrap_or_default();
        self.kernel(&mut out, &gauges)?;
        self.config(&mut out, &gauges)?;
        identity::encode(&gauges.identity, &mut out)?;
        identity::encode_tunnels(&gauges.tunnels, &mut out)?;
        self.counts.handshakes.encode(&mut out)?;
        self.counts.decisions.encode(&mut out)?;
        services::encode(&gauges.services, &mut out)?;
        health::encode(&gauges.health, &mut out)?;
        services::encode_pool(&gauges.pool, &mut out)?;
        self.counts.traffic.encode(&mut out)?;
        let dropped = self.counts.log_lines_dropped.load(Ordering::Relaxed);
        out.counter(
            "mesh_log_lines_dropped",
            "Log lines lost because whoever reads the log is slower than the agent",
            dropped,
        )?;
        process_metrics(&mut out)
    }
}

impl AgentCollector {
    fn connections(&self, out: &mut Families<'_>) -> fmt::Result {
        let active = self.active.get();
        out.gauges(
            "mesh_connections_active",
            "Connections of enrolled workloads now open",
            active.into_iter().map(|(direction, path, n)| {
                (
                    [("direction", direction.into()), ("path", path.into())],
                    n as f64,
                )
            }),
        )?;
        out.counters(
            "mesh_connections_refused",
            "Connections that the agent refused to carry, by reason",
            "reason",
            self.counts.refused().map(|(r, n)| (r.as_str(), n)),
        )?;
        out.gauge(
            "mesh_metrics_flows",
            "Label sets of the TCP families now kept",
            self.flows.len() as f64,
        )?;
        out.counter(
            "mesh_metrics_overflow",
            "Connections counted in the overflow series because the cap of label sets was reached",
            self.flows.folded(),
        )?;
        out.gauge(
            "mesh_metrics_request_series",
            "Label sets of the families of requests now kept",
            self.requests.len() as f64,
        )?;
        out.counter(
            "mesh_metrics_request_overflow",
            "Requests counted in an overflow series because the cap of label sets was reached",
            self.requests.folded(),
        )
    }

    fn kernel(&self, out: &mut Families<'_>, gauges: &AgentGauges) -> fmt::Result {
        let by_map = |read: fn(&MapGauge) -> u64| {
            gauges
                .maps
                .iter()
                .map(move |m| ([("map", m.name.clone())], read(m) as f64))
        };
        out.gauges(
            "mesh_bpf_map_entries",
            "Entries in a BPF map",
            by_map(|m| m.entries),
        )?;
        out.gauges(
            "mesh_bpf_map_max_entries",
            "Entries that a BPF map can hold",
            by_map(|m| m.max_entries),
        )?;
        out.counters(
            "mesh_bpf_events",
            "What the kernel programs counted, by counter",
            "counter",
            gauges.bpf_events.iter().map(|(name, n)| (*name, *n)),
        )?;
        out.gauges(
            "mesh_workloads",
            "Workloads of this node by state of their enrolment",
            gauges
                .workloads
                .iter()
                .map(|(state, n)| ([("state", (*state).to_owned())], *n as f64)),
        )?;
        let errors = super::lock(&self.counts.enrolment_errors).clone();
        out.counters(
            "mesh_enrolment_errors",
            "Enrolments that failed, by reason",
            "reason",
            errors.iter().map(|(reason, n)| (*reason, *n)),
        )
    }

    fn config(&self, out: &mut Families<'_>, gauges: &AgentGauges) -> fmt::Result {
        let by_source = |read: &dyn Fn(&ConfigGauges) -> Option<f64>| {
            gauges
                .config
                .iter()
                .filter_map(|c| Some(([("source", c.source.clone())], read(c)?)))
                .collect::<Vec<_>>()
        };
        out.gauges(
            "mesh_config_age_seconds",
            "Seconds since the configuration in effect was applied",
            by_source(&|c| Some(c.last_applied?.elapsed().unwrap_or_default().as_secs_f64())),
        )?;
        out.gauges(
            "mesh_config_last_reload_success",
            "1 if the newest configuration is in effect, 0 if it was refused and the last good one stays",
            by_source(&|c| Some(f64::from(u8::from(c.last_reload_ok)))),
        )?;
        out.gauges(
            "mesh_config_resources",
            "Resources in effect",
            by_source(&|c| Some(c.resources as f64)),
        )?;
        let mut rejected = super::lock(&self.counts.config_rejected).clone();
        for config in &gauges.config {
            rejected.entry(config.source.clone()).or_default();
        }
        out.counters(
            "mesh_config_rejected",
            "Changes of configuration that were refused as a whole",
            "source",
            rejected.iter().map(|(source, n)| (source.as_str(), *n)),
        )
    }
}

fn process_metrics(out: &mut Families<'_>) -> fmt::Result {
    let stats = process::read();
    let rows = [
        (
            "process_open_fds",
            "Open file descriptors",
            stats.open_fds.map(|v| v as f64),
        ),
        (
            "process_max_fds",
            "Limit of open file descriptors",
            stats.max_fds.map(|v| v as f64),
        ),
        (
            "process_resident_memory_bytes",
            "Resident memory",
            stats.resident_bytes.map(|v| v as f64),
        ),
        (
            "process_start_time_seconds",
            "Start of the process since the epoch",
            stats.start_seconds,
        ),
    ];
    for (name, help, value) in rows {
        if let Some(value) = value {
            out.gauge(name, help, value)?;
        }
    }
    if let Some(cpu) = stats.cpu_seconds {
        let family = out.0.encode_descriptor(
            "process_cpu_seconds",
            "CPU time used, user and system",
            None,
            MetricType::Counter,
        )?;
        ConstCounter::new(cpu).encode(family)?;
    }
    Ok(())
}
