//! `mesh-agent explain`: what would happen to a connection or a request, by the functions that decide on real ones.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use http::{header::HOST, request::Parts};

mod route;

use super::view::protocol;
use crate::{
    admin::api::{
        Candidate, Considered, ExplainQuery, Explanation, Mtls, Party, Transport, Verdict,
    },
    catalog::{InboundPort, Snapshot, Upstream},
    identity::Identities,
    model::{
        AppProtocol, Enrolment, MtlsMode, NotEnrolled, ResourceName, SpiffeId, TunnelProtocol,
        Workload,
    },
    policy::{self, Facts, HttpFacts, RequestHost, RequestPath},
    proxy::decide::{self, Admit, Speaks, Target, Way},
    resilience::BreakerState,
    telemetry::Reason,
};

/// Namespace of names that have none, where the question does not say another.
const DEFAULT_NAMESPACE: &str = "default";

/// Answers a question.
///
/// # Errors
/// A sentence for whoever asked: a name that nothing has, or that needs a port.
pub(super) fn explain(
    catalog: &Snapshot,
    is_captured: &dyn Fn(&ResourceName) -> bool,
    identities: &Identities,
    query: &ExplainQuery,
) -> Result<Explanation, String> {
    let namespace = query.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    let source = source(catalog, &query.source, namespace)?;
    let dialled = destination(catalog, &query.destination, namespace, &source)?;
    let mut asked = Asked {
        catalog,
        identities,
        source: &source,
        captured: false,
        request: None,
        declared: None,
        is_captured,
        now: Instant::now(),
    };
    let request = query.request()?;
    asked.request = request.as_ref();
    let (captured, captured_why) = asked.captured(dialled);
    asked.captured = captured;
    let mut answer = Explanation {
        source: party(catalog, source.address(dialled.is_ipv6())),
        destination: party(catalog, Some(dialled.ip())),
        port: dialled.port(),
        service: catalog
            .service_by_vip(dialled.ip())
            .map(|s| s.name.to_string()),
        captured,
        captured_why,
        protocol: "tcp".to_owned(),
        ..Explanation::default()
    };
    if let Some(workload) = &source.workload {
        // Named, it may have no address of the family.
        answer.source.workload = Some(workload.name.to_string());
        answer.source.identity = Some(workload.identity.to_string());
        answer.source.node.clone_from(&workload.node);
        answer.source.state = state(workload);
    }
    match asked.target(dialled) {
        Ok(Target::Service(upstream)) => {
            answer.protocol = protocol(&upstream.port.app_protocol);
            asked.declared = Some(upstream.port.app_protocol.clone());
            let strategy = upstream.service.traffic.load_balancer.strategy;
            answer.strategy = serde_json::to_value(strategy)
                .ok()
                .and_then(|v| v.as_str().map(str::to_owned))
                .unwrap_or_default();
            let namespace = source.workload.as_ref().map(|w| &*w.name.namespace);
            match request.as_ref().zip(namespace) {
                None => {
                    answer.candidates = asked.endpoints(&upstream);
                    answer.verdict = overall(&answer.candidates);
                }
                Some((request, namespace)) => {
                    let way = route::of(catalog, namespace, &upstream, dialled, request);
                    answer.route = way.route;
                    answer.traffic = way.traffic;
                    for upstream in &way.upstreams {
                        asked.declared = Some(upstream.port.app_protocol.clone());
                        answer.candidates.extend(asked.endpoints(upstream));
                    }
                    answer.verdict = match way.answer {
                        Some(verdict) => verdict,
                        None => overall(&answer.candidates),
                    };
                }
            }
        }
        Ok(Target::Address(workload)) => {
            let candidate = asked.candidate(dialled, workload.as_deref(), 1, None);
            answer.verdict = candidate.verdict.clone();
            if workload.is_none() {
                answer
                    .notes
                    .push("the mesh does not know the address; it is dialled as it is".to_owned());
            }
            answer.candidates = vec![candidate];
        }
        Err(reason) => answer.verdict = refused(reason),
    }
    if asked
        .catalog
        .local_workloads()
        .all(|w| Some(w.name.to_string()) != answer.source.workload)
        && answer.source.workload.is_some()
    {
        answer.notes.push(
            "the source is on another node: its agent decides by its own copy of the configuration"
                .to_owned(),
        );
    }
    Ok(answer)
}

/// Who dials.
struct Source {
    workload: Option<Arc<Workload>>,
    /// As it was asked; `None`: the workload was named.
    given: Option<IpAddr>,
}

impl Source {
    fn address(&self, v6: bool) -> Option<IpAddr> {
        self.given.or_else(|| {
            let addresses = &self.workload.as_ref()?.addresses;
            let of_family = addresses.iter().find(|ip| ip.is_ipv6() == v6);
            of_family.or(addresses.first()).copied()
        })
    }
}

struct Asked<'a> {
    catalog: &'a Snapshot,
    identities: &'a Identities,
    source: &'a Source,
    captured: bool,
    request: Option<&'a Parts>,
    /// By the service that is dialled.
    declared: Option<AppProtocol>,
    is_captured: &'a dyn Fn(&ResourceName) -> bool,
    now: Instant,
}

impl Asked<'_> {
    /// Whether the agent of the source carries the connection, and why (not).
    fn captured(&self, dialled: SocketAddr) -> (bool, String) {
        let Some(workload) = &self.source.workload else {
            return (false, "the source is not a workload of the mesh".to_owned());
        };
        let policy = &workload.policy;
        if !is_enrolled(workload) {
            return (
                false,
                format!("the source is not enrolled: {}", state(workload)),
            );
        }
        if dialled.ip().is_loopback() {
            return (false, "loopback is left alone".to_owned());
        }
        if policy.exclude_ports.contains(&dialled.port()) {
            return (
                false,
                format!(
                    "port {} is excluded by the source's MeshPolicy",
                    dialled.port()
                ),
            );
        }
        if let Some(cidr) = policy
            .exclude_cidrs
            .iter()
            .find(|cidr| cidr.contains(&dialled.ip()))
        {
            return (
                false,
                format!("{cidr} is excluded by the source's MeshPolicy"),
            );
        }
        (true, "the source is enrolled".to_owned())
    }

    fn target(&self, dialled: SocketAddr) -> Result<Target, Reason> {
        match &self.source.workload {
            Some(workload) if self.captured => {
                decide::target(self.catalog, dialled, &workload.policy)
            }
            // Nobody stands between: an address that only the mesh knows leads nowhere.
            _ => match self.catalog.workload_by_address(dialled.ip()) {
                None if self.catalog.service_by_vip(dialled.ip()).is_some() => {
                    Err(Reason::UpstreamUnreachable)
                }
                workload => Ok(Target::Address(workload.cloned())),
            },
        }
    }

    fn endpoints(&self, upstream: &Upstream) -> Vec<Candidate> {
        upstream
            .endpoints
            .iter()
            .map(|endpoint| {
                let address = endpoint.endpoint.address;
                let workload = self.catalog.workload_by_address(address.ip());
                let open = upstream.service.traffic.breaker.is_some()
                    && matches!(
                        endpoint.state.breaker_state(self.now),
                        BreakerState::Open { .. }
                    );
                let weight = endpoint.endpoint.weight;
                let why_not = if weight == 0 {
                    Some("weight 0")
                } else if open {
                    Some("breaker open")
                } else {
                    None
                };
                self.candidate(address, workload.map(|w| &**w), weight, why_not)
            })
            .collect()
    }

    fn candidate(
        &self,
        address: SocketAddr,
        workload: Option<&Workload>,
        weight: u32,
        why_not: Option<&str>,
    ) -> Candidate {
        let way = self.way(address);
        let mut candidate = Candidate {
            address: address.to_string(),
            workload: workload.map(|w| w.name.to_string()),
            node: workload.and_then(|w| w.node.clone()),
            identity: workload.map(|w| w.identity.to_string()),
            weight,
            eligible: why_not.is_none(),
            why_not: why_not.unwrap_or_default().to_owned(),
            transport: self.transport(workload, address, &way),
            ..Candidate::default()
        };
        let identity = match &way {
            Ok(Way::Tunnel { .. }) => self.source.workload.as_ref().map(|w| &w.identity),
            _ => None,
        };
        candidate.verdict = match way {
            Err(reason) => refused(reason),
            Ok(_) => self.decide(address, workload, identity, &mut candidate),
        };
        candidate
    }

    fn way(&self, address: SocketAddr) -> Result<Way, Reason> {
        if self.captured {
            decide::way(self.catalog, self.is_captured, address)
        } else {
            Ok(Way::Plain)
        }
    }

    fn transport(
        &self,
        workload: Option<&Workload>,
        address: SocketAddr,
        way: &Result<Way, Reason>,
    ) -> Transport {
        let (kind, why) = match (way, workload) {
            (Ok(Way::Tunnel { peer, .. }), _) => {
                ("hbone", format!("the destination takes tunnels, at {peer}"))
            }
            _ if !self.captured => (
                "plain",
                "the agent of the source does not carry it".to_owned(),
            ),
            (Err(reason), _) => ("none", reason.explain().to_owned()),
            (Ok(_), None) => ("plain", "the destination is not of the mesh".to_owned()),
            (Ok(_), Some(w)) if w.protocol == TunnelProtocol::Tcp => (
                "plain",
                "the destination takes no tunnels (it is not enrolled, or spec.protocol is TCP)"
                    .to_owned(),
            ),
            (Ok(_), Some(w)) if w.policy.mtls_of(address.port()) == MtlsMode::Disable => (
                "plain",
                format!("mtls is disable for port {}", address.port()),
            ),
            (Ok(_), Some(_)) => (
                "plain",
                "the destination is of this node and not captured (yet)".to_owned(),
            ),
        };
        Transport {
            kind: kind.to_owned(),
            why,
        }
    }

    /// What the destination's agent would say.
    fn decide(
        &self,
        address: SocketAddr,
        workload: Option<&Workload>,
        identity: Option<&SpiffeId>,
        candidate: &mut Candidate,
    ) -> Verdict {
        if let Some(id) = identity
            && self.is_here()
            && let Err(missing) = self.identities.tls(id)
        {
            return Verdict {
                why: missing.to_string(),
                ..refused(Reason::NoCertificate)
            };
        }
        let Some(workload) = workload.filter(|w| is_enrolled(w)) else {
            return Verdict {
                allowed: true,
                why: "no agent of the mesh decides at the destination".to_owned(),
                ..Verdict::default()
            };
        };
        let policy = &workload.policy;
        let source_ip = self.source.address(address.is_ipv6());
        let excluded = policy.exclude_ports.contains(&address.port())
            || source_ip
                .is_some_and(|ip| policy.exclude_cidrs.iter().any(|cidr| cidr.contains(&ip)));
        if identity.is_none() && excluded {
            return Verdict {
                allowed: true,
                why: "the destination's MeshPolicy excludes it: it passes the agent by".to_owned(),
                ..Verdict::default()
            };
        }
        let speaks = self.speaks(workload, address);
        let request = self.request.filter(|_| speaks != Speaks::Opaque);
        let path = RequestPath::new(request.map_or("/", |request| request.uri.path()));
        let host = request.and_then(|request| request.headers.get(HOST)?.to_str().ok());
        let host = RequestHost::new(host.unwrap_or_default());
        let facts = Facts {
            source: identity,
            source_ip: source_ip.unwrap_or(IpAddr::from([0, 0, 0, 0])),
            destination_ip: address.ip(),
            destination_port: address.port(),
            http: request.map(|request| HttpFacts {
                method: request.method.as_str(),
                path: &path,
                host: &host,
                headers: &request.headers,
            }),
        };
        let authorizer = self.catalog.authorizer(&workload.name);
        let depends = speaks != Speaks::Opaque && authorizer.needs_http(address.port());
        let admit = match (request, depends) {
            (None, true) => decide::admit_connection(policy, &authorizer, &facts),
            _ => decide::admit(policy, &authorizer, &facts),
        };
        candidate.mtls = Mtls {
            mode: policy.mtls_of(address.port()).as_str().to_owned(),
            ok: admit != Admit::Plaintext,
        };
        candidate.policies = authorizer
            .explain(&facts)
            .into_iter()
            .map(|looked| Considered {
                policy: looked.policy.to_string(),
                action: looked.action.as_str().to_owned(),
                dry_run: looked.dry_run,
                matched: looked.matched,
                why: looked.why,
            })
            .collect();
        let mut verdict = verdict(&admit);
        if request.is_none() && depends && verdict.allowed {
            verdict.policy = None;
            verdict.why =
                "policies decide on each request: ask about one with -X, --path, -H".into();
        } else if self.request.is_some() && speaks == Speaks::Opaque {
            verdict.why += "; the destination's agent reads no requests on this port";
        }
        verdict
    }

    /// What the destination's agent reads there.
    fn speaks(&self, workload: &Workload, address: SocketAddr) -> Speaks {
        let authorizer = self.catalog.authorizer(&workload.name);
        let needs_http = authorizer.needs_http(address.port());
        if let Some(port) = self.catalog.inbound(address) {
            return decide::speaks_inbound(Some(port), needs_http);
        }
        // Of a workload of another node only the service that is asked about is known.
        let port = self.declared.clone().map(InboundPort::declared);
        decide::speaks_inbound(port.as_ref(), needs_http)
    }

    /// Whether the source is of this node, whose certificates are known here.
    fn is_here(&self) -> bool {
        self.source
            .workload
            .as_ref()
            .is_some_and(|w| w.enrolment == Enrolment::Enrolled)
    }
}

fn verdict(admit: &Admit<'_>) -> Verdict {
    let policy = admit.policy().map(ToString::to_string);
    let why = match admit {
        Admit::Plaintext => "the port takes tunnels only, and this would come in plain text".into(),
        Admit::Yes(policy::Verdict::Allow(None)) => {
            "no ALLOW policy applies, no DENY matches".into()
        }
        Admit::Yes(_) => format!("allowed by {}", policy.as_deref().unwrap_or("-")),
        Admit::Denied(policy::Verdict::Deny(None)) => {
            "ALLOW policies apply and none of them matches".into()
        }
        Admit::Denied(_) => format!("denied by {}", policy.as_deref().unwrap_or("-")),
    };
    Verdict {
        allowed: admit.refusal().is_none(),
        reason: admit.refusal().map(|r| r.as_str().to_owned()),
        policy,
        why,
    }
}

pub(super) fn refused(reason: Reason) -> Verdict {
    Verdict {
        allowed: false,
        reason: Some(reason.as_str().to_owned()),
        policy: None,
        why: reason.explain().to_owned(),
    }
}

/// Of a service: what its eligible endpoints say, if they agree.
fn overall(candidates: &[Candidate]) -> Verdict {
    let eligible: Vec<_> = candidates.iter().filter(|c| c.eligible).collect();
    let Some(first) = eligible.first() else {
        let open = candidates.iter().any(|c| c.why_not == "breaker open");
        return refused(if open {
            Reason::BreakerOpen
        } else {
            Reason::NoEndpoints
        });
    };
    let allowed = eligible.iter().filter(|c| c.verdict.allowed).count();
    if eligible.iter().all(|c| c.verdict == first.verdict) {
        return first.verdict.clone();
    }
    if allowed == eligible.len() {
        return Verdict {
            allowed: true,
            why: "every endpoint takes it".to_owned(),
            ..Verdict::default()
        };
    }
    let denial = eligible.iter().find(|c| !c.verdict.allowed);
    Verdict {
        allowed: false,
        reason: denial.and_then(|c| c.verdict.reason.clone()),
        policy: denial.and_then(|c| c.verdict.policy.clone()),
        why: format!(
            "{} of {} endpoints would refuse it",
            eligible.len() - allowed,
            eligible.len()
        ),
    }
}

fn source(catalog: &Snapshot, text: &str, namespace: &str) -> Result<Source, String> {
    if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Ok(Source {
            workload: catalog.workload_by_address(ip).cloned(),
            given: Some(ip),
        });
    }
    let name = name(text, namespace);
    let workload = catalog.workload(&name).cloned().ok_or_else(|| {
        format!("no workload {name}; `mesh-agent workloads` lists them. A source is namespace/name or an address")
    })?;
    Ok(Source {
        workload: Some(workload),
        given: None,
    })
}

fn destination(
    catalog: &Snapshot,
    text: &str,
    namespace: &str,
    source: &Source,
) -> Result<SocketAddr, String> {
    let (host, port) = split_port(text)?;
    if let Ok(ip) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
        let port = match (port, catalog.service_by_vip(ip)) {
            (Some(port), _) => port,
            (None, Some(service)) => {
                only_port(&service.name, service.ports.iter().map(|p| p.port))?
            }
            (None, None) => return Err(format!("which port of {ip}? Give {text}:PORT")),
        };
        return Ok(SocketAddr::new(ip, port));
    }
    let name = name(host, namespace);
    let v6 = source.address(false).is_some_and(|ip| ip.is_ipv6());
    let of_family = |addresses: &[IpAddr]| -> Option<IpAddr> {
        let same = addresses.iter().find(|ip| ip.is_ipv6() == v6);
        same.or(addresses.first()).copied()
    };
    if let Some(service) = catalog.service(&name) {
        let port = match port {
            Some(port) => port,
            None => only_port(&name, service.ports.iter().map(|p| p.port))?,
        };
        let ip = of_family(&service.vips).ok_or_else(|| {
            format!("service {name} has no virtual address (it is headless); ask for one of its workloads")
        })?;
        return Ok(SocketAddr::new(ip, port));
    }
    if let Some(workload) = catalog.workload(&name) {
        let port =
            port.ok_or_else(|| format!("which port of workload {name}? Give {text}:PORT"))?;
        let ip = of_family(&workload.addresses)
            .ok_or_else(|| format!("workload {name} has no address"))?;
        return Ok(SocketAddr::new(ip, port));
    }
    Err(format!(
        "no service and no workload {name}; `mesh-agent services` and `mesh-agent workloads` list them"
    ))
}

/// `host`, `host:port`, `[v6]:port`, a bare v6 address.
fn split_port(text: &str) -> Result<(&str, Option<u16>), String> {
    let bare_v6 = text.parse::<IpAddr>().is_ok();
    match text.rsplit_once(':') {
        Some((host, port)) if !bare_v6 && !port.ends_with(']') => {
            let port = port
                .parse()
                .ok()
                .filter(|port| *port != 0)
                .ok_or_else(|| format!("{port:?} is no port; one of 1..=65535"))?;
            Ok((host, Some(port)))
        }
        _ => Ok((text, None)),
    }
}

fn only_port(
    name: &ResourceName,
    mut ports: impl ExactSizeIterator<Item = u16>,
) -> Result<u16, String> {
    if ports.len() == 1
        && let Some(port) = ports.next()
    {
        return Ok(port);
    }
    let all: Vec<_> = ports.map(|p| p.to_string()).collect();
    Err(format!(
        "which port of service {name}? It has {}",
        all.join(", ")
    ))
}

/// `name`, `namespace/name`, `name.namespace`, `name.namespace.svc.cluster.local`.
fn name(text: &str, namespace: &str) -> ResourceName {
    if let Some((namespace, name)) = text.split_once('/') {
        return ResourceName::new(namespace, name);
    }
    let mut labels = text.split('.');
    match (labels.next(), labels.next(), labels.next()) {
        (Some(name), Some(namespace), None | Some("svc")) => ResourceName::new(namespace, name),
        _ => ResourceName::new(namespace, text),
    }
}

/// Whether an agent captures it, of this node or of another.
fn is_enrolled(workload: &Workload) -> bool {
    match workload.enrolment {
        Enrolment::Enrolled => true,
        Enrolment::NotEnrolled(NotEnrolled::OtherNode) => {
            workload.protocol == TunnelProtocol::Hbone
        }
        Enrolment::NotEnrolled(_) => false,
    }
}

fn state(workload: &Workload) -> String {
    match workload.enrolment {
        Enrolment::Enrolled => "enrolled".to_owned(),
        Enrolment::NotEnrolled(why) => why.to_string(),
    }
}

fn party(catalog: &Snapshot, ip: Option<IpAddr>) -> Party {
    let workload = ip.and_then(|ip| catalog.workload_by_address(ip));
    Party {
        address: ip.map_or_else(|| "-".to_owned(), |ip| ip.to_string()),
        workload: workload.map(|w| w.name.to_string()),
        node: workload.and_then(|w| w.node.clone()),
        identity: workload.map(|w| w.identity.to_string()),
        state: workload.map_or_else(
            || match ip.and_then(|ip| catalog.service_by_vip(ip)) {
                Some(_) => "service".to_owned(),
                None => "not of the mesh".to_owned(),
            },
            |w| state(w),
        ),
    }
}
