//! The agent as the admin interface shows it.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use futures::future::BoxFuture;
use tokio::sync::{mpsc, watch};

use super::{AgentOptions, endpoints, explain, identity, routes, unmeshed::Unmeshed};
use crate::{
    admin::{AgentView, api},
    api::{LabelSelector, Operator},
    capture::{Capture, PodState, PodStatus},
    catalog::{Catalog, Snapshot, Upstream},
    discovery::SourceState,
    health::Board,
    identity::Identities,
    model::{
        AppProtocol, EffectivePolicy, Enrolment, FailPolicy, OutboundMode, ResourceName, Service,
        TunnelProtocol, Workload,
    },
    policy::{PolicyScope, Scope},
    proxy::Proxy,
    resilience::BreakerState,
    telemetry::process,
};

/// Programs at the root of cgroup2, and the one in each pod's namespace.
const PROGRAMS: [&str; 6] = [
    "connect4", "connect6", "peer4", "peer6", "sockets", "inbound",
];

pub(super) struct View {
    node: String,
    bpffs: PathBuf,
    nofile: u64,
    started: Instant,
    catalog: Arc<Catalog>,
    capture: Arc<Capture>,
    proxy: Arc<Proxy>,
    sources: Vec<SourceState>,
    /// Version of the catalog that capture has followed.
    applied: watch::Receiver<u64>,
    release: mpsc::Sender<()>,
    identities: Arc<Identities>,
    unmeshed: Arc<Unmeshed>,
    health: Arc<Board>,
}

impl View {
    #[allow(
        clippy::too_many_arguments,
        reason = "the composition root hands over every part once"
    )]
    pub(super) fn new(
        options: &AgentOptions,
        nofile: u64,
        started: Instant,
        catalog: Arc<Catalog>,
        capture: Arc<Capture>,
        proxy: Arc<Proxy>,
        sources: Vec<SourceState>,
        applied: watch::Receiver<u64>,
        release: mpsc::Sender<()>,
        identities: Arc<Identities>,
        unmeshed: Arc<Unmeshed>,
        health: Arc<Board>,
    ) -> Self {
        Self {
            node: options.node.clone(),
            bpffs: options
                .bpffs
                .join("mesh")
                .join(&options.node)
                .join(format!("v{}", mesh_common::ABI_VERSION)),
            nofile,
            started,
            catalog,
            capture,
            proxy,
            sources,
            applied,
            release,
            identities,
            unmeshed,
            health,
        }
    }

    fn warnings(&self, pods: &[PodStatus]) -> Vec<String> {
        let mut warnings = Vec::new();
        for pod in pods {
            if let PodState::Failed { reason, .. } = &pod.state {
                warnings.push(format!("workload {} is not captured: {reason}", pod.name));
            }
        }
        let lost = self.capture.lost_records();
        if lost > 0 {
            warnings.push(format!("{lost} final records of connections were lost: the agent could not read them in time"));
        }
        for map in self.capture.map_stats() {
            if map.max_entries > 0 && map.entries * 10 >= map.max_entries * 9 {
                warnings.push(format!(
                    "map {} is nearly full: {} of {} entries",
                    map.name, map.entries, map.max_entries
                ));
            }
        }
        warnings
    }

    fn kernel(&self) -> api::KernelState {
        api::KernelState {
            bpffs: self.bpffs.display().to_string(),
            attached: true,
            programs: PROGRAMS.map(str::to_owned).to_vec(),
            maps: self
                .capture
                .map_stats()
                .into_iter()
                .map(|m| api::MapState {
                    name: m.name.to_owned(),
                    entries: m.entries,
                    max_entries: m.max_entries,
                })
                .collect(),
            counters: self
                .capture
                .counters()
                .into_iter()
                .map(|(_, name, value)| api::CounterValue {
                    name: name.to_owned(),
                    value,
                })
                .collect(),
        }
    }
}

impl AgentView for View {
    fn status(&self) -> api::Status {
        let snapshot = self.catalog.snapshot();
        let pods = self.capture.pods();
        let proxy = self.proxy.status();
        let process = process::read();
        let count = |state: &str| pods.iter().filter(|p| p.state.as_str() == state).count();
        api::Status {
            node: self.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            sources: self.sources.iter().map(|s| source(&s.get())).collect(),
            workloads: api::WorkloadCounts {
                known: snapshot.workloads().len(),
                local: snapshot.local_workloads().count(),
                enrolled: count("enrolled"),
                failed: count("failed"),
            },
            services: snapshot.services().len(),
            kernel: self.kernel(),
            limits: api::Limits {
                max_connections: proxy.max_connections as u64,
                max_connections_per_workload: proxy.max_connections_per_workload as u64,
                open_fds: process.open_fds,
                max_fds: Some(self.nofile),
                resident_bytes: process.resident_bytes,
            },
            unmeshed_forbidden: self.unmeshed.left() as u64,
            warnings: self.warnings(&pods),
            ..api::Status::default()
        }
    }

    fn conditions(&self) -> Vec<api::Condition> {
        let pods = self.capture.pods();
        let busy: Vec<String> = pods
            .iter()
            .filter(|p| p.state == PodState::Enrolling)
            .map(|p| p.name.to_string())
            .collect();
        let failed = pods
            .iter()
            .filter(|p| matches!(p.state, PodState::Failed { .. }))
            .count();
        let version = self.catalog.load().version;
        let followed = *self.applied.borrow() >= version;
        let condition = |name: &str, ok, detail: String| api::Condition {
            name: name.to_owned(),
            ok,
            detail,
        };
        vec![
            condition(
                "kernel programs attached",
                true,
                self.bpffs.display().to_string(),
            ),
            condition(
                "configuration applied",
                followed,
                if followed {
                    format!("version {version}")
                } else {
                    format!("version {version} is being applied")
                },
            ),
            condition(
                "pods enrolled",
                busy.is_empty() && followed,
                if busy.is_empty() {
                    format!(
                        "{} enrolled, {failed} failed (see `mesh-agent workloads`)",
                        pods.len() - failed
                    )
                } else {
                    format!("enrolling {}", busy.join(", "))
                },
            ),
        ]
    }

    fn workloads(&self) -> Vec<api::Workload> {
        let snapshot = self.catalog.snapshot();
        let pods: HashMap<ResourceName, PodStatus> = self
            .capture
            .pods()
            .into_iter()
            .map(|p| (p.name.clone(), p))
            .collect();
        let connections: HashMap<ResourceName, usize> = self
            .proxy
            .status()
            .workloads
            .into_iter()
            .map(|w| (w.name, w.connections))
            .collect();
        snapshot
            .workloads()
            .map(|w| {
                workload(
                    w,
                    pods.get(&w.name),
                    connections.get(&w.name).copied().unwrap_or(0),
                )
            })
            .collect()
    }

    fn services(&self) -> Vec<api::Service> {
        let snapshot = self.catalog.snapshot();
        let now = Instant::now();
        snapshot
            .services()
            .map(|service| {
                let mut ports: Vec<(u16, &Arc<Upstream>)> = Vec::new();
                for (_, port, upstream) in snapshot.upstreams_of(service) {
                    // Addresses of one family share the upstream.
                    if !ports.iter().any(|(_, known)| Arc::ptr_eq(known, upstream)) {
                        ports.push((port, upstream));
                    }
                }
                ports.sort_by_key(|(port, _)| *port);
                api::Service {
                    name: service.name.to_string(),
                    addresses: service.vips.iter().map(ToString::to_string).collect(),
                    ports: ports
                        .into_iter()
                        .map(|(_, upstream)| service_port(service, upstream, now))
                        .collect(),
                }
            })
            .collect()
    }

    fn certificates(&self) -> api::Certificates {
        identity::certificates(&self.identities, &self.catalog.snapshot())
    }

    fn policies(&self) -> Vec<api::Policy> {
        let snapshot = self.catalog.snapshot();
        snapshot
            .authorization_policies()
            .map(|scoped| policy(&snapshot, scoped))
            .collect()
    }

    fn endpoints(
        &self,
        service: &str,
        namespace: Option<&str>,
    ) -> Result<Vec<api::PortEndpoints>, String> {
        endpoints::endpoints(&self.catalog.snapshot(), &self.health, service, namespace)
    }

    fn routes(&self, wanted: Option<&str>, namespace: Option<&str>) -> Result<api::Routes, String> {
        routes::routes(&self.catalog.snapshot(), wanted, namespace)
    }

    fn explain(&self, query: &api::ExplainQuery) -> Result<api::Explanation, String> {
        explain::explain(
            &self.catalog.snapshot(),
            &|name| self.catalog.is_captured(name),
            &self.identities,
            query,
        )
    }

    fn config(&self) -> serde_json::Value {
        let snapshot = self.catalog.snapshot();
        serde_json::json!({
            "version": snapshot.version,
            "node": snapshot.node(),
            "trustDomain": snapshot.trust_domain(),
            "trustDomainAliases": snapshot.trust_aliases(),
            "authorizationPolicies": snapshot
                .authorization_policies()
                .map(|scoped| serde_json::json!({
                    "name": scoped.policy.name,
                    "spec": scoped.policy.spec,
                }))
                .collect::<Vec<_>>(),
            "workloads": snapshot.workloads().collect::<Vec<_>>(),
            "services": snapshot.services().collect::<Vec<_>>(),
            "routes": routes::routes(&snapshot, None, None).unwrap_or_default(),
        })
    }

    fn release(&self) -> BoxFuture<'static, Vec<String>> {
        let (capture, release) = (self.capture.clone(), self.release.clone());
        Box::pin(async move {
            let removed = capture.release_all().await;
            // Full: somebody else asked already, and the agent ends anyway.
            let _ = release.try_send(());
            removed
        })
    }
}

pub(super) fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn source(status: &crate::discovery::SourceStatus) -> api::SourceState {
    api::SourceState {
        name: status.name.clone(),
        last_applied_unix_ms: status.last_applied.map(unix_ms),
        version: status.version.to_string(),
        resources: status.resources,
        errors: status.error.clone().unwrap_or_default(),
        warnings: status.warnings.clone(),
    }
}

fn workload(workload: &Workload, pod: Option<&PodStatus>, connections: usize) -> api::Workload {
    let (state, reason) = match (pod.map(|p| &p.state), workload.enrolment) {
        (Some(PodState::Failed { reason, .. }), _) => ("failed".to_owned(), Some(reason.clone())),
        (Some(state), _) => (state.as_str().to_owned(), None),
        (None, Enrolment::NotEnrolled(why)) => ("not enrolled".to_owned(), Some(why.to_string())),
        (None, Enrolment::Enrolled) => ("enrolling".to_owned(), None),
    };
    let mut listen_ports: Vec<u16> = pod
        .map(|p| p.listening.iter().map(std::net::SocketAddr::port).collect())
        .unwrap_or_default();
    listen_ports.sort_unstable();
    listen_ports.dedup();
    api::Workload {
        identity: workload.identity.to_string(),
        protocol: match workload.protocol {
            TunnelProtocol::Hbone => "HBONE".to_owned(),
            TunnelProtocol::Tcp => "TCP".to_owned(),
        },
        mtls: mtls(&workload.policy),
        name: workload.name.to_string(),
        node: workload.node.clone(),
        addresses: workload.addresses.iter().map(ToString::to_string).collect(),
        state,
        reason,
        netns: workload.netns.as_ref().map(|p| p.display().to_string()),
        netns_cookie: pod.and_then(|p| p.cookie),
        listen_ports,
        fail_policy: match workload.policy.fail_policy {
            FailPolicy::Closed => "closed".to_owned(),
            FailPolicy::Open => "open".to_owned(),
        },
        outbound: match workload.policy.outbound {
            OutboundMode::Allow => "allow".to_owned(),
            OutboundMode::RegisteredOnly { .. } => "registered-only".to_owned(),
        },
        service_account: workload.service_account.clone(),
        zone: workload.zone.clone(),
        weight: workload.weight,
        connections: connections as u64,
        since_unix_ms: pod.map(|p| unix_ms(p.since)),
    }
}

/// `strict`, or with ports that differ `strict, 80: disable`.
fn mtls(policy: &EffectivePolicy) -> String {
    let ports = policy.port_mtls.iter().filter(|(_, m)| **m != policy.mtls);
    std::iter::once(policy.mtls.as_str().to_owned())
        .chain(ports.map(|(port, mode)| format!("{port}: {}", mode.as_str())))
        .collect::<Vec<_>>()
        .join(", ")
}

fn policy(snapshot: &Snapshot, scoped: PolicyScope<'_>) -> api::Policy {
    let spec = &scoped.policy.spec;
    let workloads: Vec<_> = snapshot
        .workloads()
        .filter(|w| scoped.applies(&w.name.namespace, &w.labels))
        .map(|w| w.name.to_string())
        .collect();
    api::Policy {
        name: scoped.policy.name.to_string(),
        action: spec.action.as_str().to_owned(),
        dry_run: spec.dry_run,
        scope: match scoped.scope {
            Scope::Mesh => "mesh",
            Scope::Namespace => "namespace",
            Scope::Workloads => "workloads",
        }
        .to_owned(),
        selector: spec.selector.as_ref().map(selector).unwrap_or_default(),
        rules: spec.rules.len(),
        workloads,
        local: snapshot.workloads_of(scoped).count(),
    }
}

/// As kubectl writes it: `app=web,tier in (a,b)`.
fn selector(selector: &LabelSelector) -> String {
    let labels = &selector.match_labels.0;
    let equal = labels.iter().map(|(key, value)| format!("{key}={value}"));
    let more = selector.match_expressions.iter().map(|e| {
        let values = e.values.join(",");
        match e.operator {
            Operator::In => format!("{} in ({values})", e.key),
            Operator::NotIn => format!("{} notin ({values})", e.key),
            Operator::Exists => e.key.clone(),
            Operator::DoesNotExist => format!("!{}", e.key),
        }
    });
    equal.chain(more).collect::<Vec<_>>().join(",")
}

fn service_port(service: &Service, upstream: &Upstream, now: Instant) -> api::ServicePort {
    let has_breaker = service.traffic.breaker.is_some();
    api::ServicePort {
        name: upstream.port.name.clone(),
        port: upstream.port.port,
        protocol: protocol(&upstream.port.app_protocol),
        strategy: strategy(service),
        max_connections: service.traffic.limits.max_connections,
        connections: upstream.state.connections.in_use(),
        endpoints: upstream
            .endpoints
            .iter()
            .map(|e| api::Endpoint {
                address: e.endpoint.address.to_string(),
                workload: e.endpoint.workload.as_ref().map(ToString::to_string),
                weight: e.endpoint.weight,
                zone: e.endpoint.zone.clone(),
                in_flight: e.state.in_flight(),
                breaker: if has_breaker {
                    breaker(e.state.breaker_state(now))
                } else {
                    "none".to_owned()
                },
                last_error: e.state.last_failure().map(|f| f.error.to_string()),
            })
            .collect(),
    }
}

/// `round_robin` ...
pub(super) fn strategy(service: &Service) -> String {
    let strategy = serde_json::to_value(service.traffic.load_balancer.strategy).ok();
    strategy
        .as_ref()
        .and_then(serde_json::Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

pub(super) fn protocol(declared: &AppProtocol) -> String {
    match declared {
        AppProtocol::Undeclared => "tcp (undeclared)".to_owned(),
        AppProtocol::Tcp => "tcp".to_owned(),
        AppProtocol::Http => "http".to_owned(),
        AppProtocol::Http2 => "http2".to_owned(),
        AppProtocol::Grpc => "grpc".to_owned(),
        AppProtocol::Tls => "tls".to_owned(),
        AppProtocol::Other(name) => name.clone(),
    }
}

pub(super) fn breaker(state: BreakerState) -> String {
    match state {
        BreakerState::Closed => "closed",
        BreakerState::Open { .. } => "open",
        BreakerState::HalfOpen => "half-open",
    }
    .to_owned()
}
