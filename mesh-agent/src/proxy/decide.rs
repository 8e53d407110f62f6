//! The decisions of the data path, apart from the balancer's: where a captured connection goes, how an address is
//! reached, whether a workload takes a connection. `mesh-agent explain` asks the same functions.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use mesh_common::TUNNEL_PORT;

use crate::{
    catalog::{InboundPort, Snapshot, Upstream},
    model::{
        AppProtocol, EffectivePolicy, Enrolment, HashKey, LoadBalancer, MtlsMode, OutboundMode,
        ResourceName, SpiffeId, Strategy, TunnelProtocol, Workload,
    },
    policy::{Authorizer, Facts, Verdict},
    telemetry::{Outcome, Reason, Telemetry},
};

/// Where a captured connection goes.
#[derive(Debug)]
pub(crate) enum Target {
    Service(Arc<Upstream>),
    /// A workload, or an address that the mesh does not know.
    Address(Option<Arc<Workload>>),
}

/// Decides by the dialled address.
pub(crate) fn target(
    catalog: &Snapshot,
    dialled: SocketAddr,
    policy: &EffectivePolicy,
) -> Result<Target, Reason> {
    let ip = dialled.ip();
    if let Some(upstream) = catalog.upstream(ip, dialled.port()) {
        return Ok(Target::Service(Arc::clone(upstream)));
    }
    if catalog.service_by_vip(ip).is_some() {
        return Err(Reason::NoServicePort);
    }
    if let Some(workload) = catalog.workload_by_address(ip) {
        return Ok(Target::Address(Some(Arc::clone(workload))));
    }
    if allows_unknown(&policy.outbound, ip) {
        Ok(Target::Address(None))
    } else {
        Err(Reason::UnknownDestination)
    }
}

/// Whether a destination that the mesh does not know may be dialled. Link-local ranges and DNS servers are among the
/// exceptions already.
fn allows_unknown(mode: &OutboundMode, dialled: IpAddr) -> bool {
    match mode {
        OutboundMode::Allow => true,
        OutboundMode::RegisteredOnly { exceptions } => {
            exceptions.iter().any(|net| net.contains(&dialled))
        }
    }
}

/// What is spoken on a port of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaks {
    /// Carried as bytes: declared as something else than HTTP.
    Opaque,
    /// Declared, or a route is bound to it.
    Http,
    /// Nothing is said: the first bytes tell.
    Detect,
}

/// Decides for the clients of a namespace. A declaration goes before everything: what is declared as TCP is not read.
pub(crate) fn speaks(catalog: &Snapshot, upstream: &Upstream, client_namespace: &str) -> Speaks {
    match upstream.port.app_protocol {
        AppProtocol::Http | AppProtocol::Http2 | AppProtocol::Grpc => Speaks::Http,
        AppProtocol::Tcp | AppProtocol::Tls | AppProtocol::Other(_) => Speaks::Opaque,
        AppProtocol::Undeclared => {
            let service = &upstream.service.name;
            let routes = catalog.routes(client_namespace, service, upstream.port.port);
            // An endpoint that is chosen by what a request says cannot be connected to before it has come.
            if routes.is_some() || hashes_requests(&upstream.service.traffic.load_balancer) {
                Speaks::Http
            } else {
                Speaks::Detect
            }
        }
    }
}

fn hashes_requests(balancer: &LoadBalancer) -> bool {
    balancer.strategy == Strategy::ConsistentHash && balancer.hash != HashKey::SourceAddress
}

/// How an address is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// As it was dialled: it is not of the mesh, takes no tunnels, or its mode for the port is `disable`.
    Plain,
    /// Through a tunnel to `peer`, which must prove to be `expected`.
    Tunnel {
        peer: SocketAddr,
        expected: SpiffeId,
    },
}

/// Decides how to reach an endpoint or a workload's address. `captured` says whether this agent captures a workload now:
/// one of this node that is to be enrolled takes no tunnels before it is.
pub(crate) fn way(
    catalog: &Snapshot,
    captured: impl Fn(&ResourceName) -> bool,
    address: SocketAddr,
) -> Result<Way, Reason> {
    let Some(workload) = catalog.workload_by_address(address.ip()) else {
        return Ok(Way::Plain);
    };
    if workload.protocol != TunnelProtocol::Hbone {
        return Ok(Way::Plain);
    }
    // What comes here was dialled by an application; tunnels are the agents' alone.
    if address.port() == TUNNEL_PORT {
        return Err(Reason::AgentPort);
    }
    if workload.policy.mtls_of(address.port()) == MtlsMode::Disable
        || (workload.enrolment == Enrolment::Enrolled && !captured(&workload.name))
    {
        return Ok(Way::Plain);
    }
    Ok(Way::Tunnel {
        peer: SocketAddr::new(address.ip(), TUNNEL_PORT),
        expected: workload.identity.clone(),
    })
}

/// Whether a workload takes a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admit<'p> {
    Yes(Verdict<'p>),
    /// Plain text, and the port's mode is strict.
    Plaintext,
    /// An AuthorizationPolicy said no.
    Denied(Verdict<'p>),
}

impl<'p> Admit<'p> {
    /// Why not.
    pub(crate) fn refusal(&self) -> Option<Reason> {
        match self {
            Self::Yes(_) => None,
            Self::Plaintext => Some(Reason::PlaintextRefused),
            Self::Denied(_) => Some(Reason::PolicyDenied),
        }
    }

    /// The policy that decided.
    pub(crate) fn policy(&self) -> Option<&'p ResourceName> {
        match self {
            Self::Plaintext => None,
            Self::Yes(verdict) | Self::Denied(verdict) => match verdict {
                Verdict::Allow(policy) | Verdict::Deny(policy) => *policy,
            },
        }
    }

    /// Counts the decision, if policies made it.
    pub(crate) fn report(&self, telemetry: &Telemetry) {
        match self {
            // Nothing was there to decide by, or it was not asked.
            Self::Yes(Verdict::Allow(None)) | Self::Plaintext => {}
            Self::Yes(_) => telemetry.decision(self.policy(), Outcome::Allow),
            Self::Denied(_) => telemetry.decision(self.policy(), Outcome::Deny),
        }
    }
}

/// What is spoken on a port of a workload, as far as its agent has to know: what the services in front declare; where
/// they declare nothing and a rate limit or a policy is about requests, the first bytes tell.
pub(crate) fn speaks_inbound(port: Option<&InboundPort>, policy_needs_http: bool) -> Speaks {
    let Some(port) = port else {
        return match policy_needs_http {
            true => Speaks::Detect,
            false => Speaks::Opaque,
        };
    };
    match port.protocol {
        AppProtocol::Http | AppProtocol::Http2 | AppProtocol::Grpc => Speaks::Http,
        AppProtocol::Tcp | AppProtocol::Tls | AppProtocol::Other(_) => Speaks::Opaque,
        AppProtocol::Undeclared
            if policy_needs_http || port.conflict || !port.limited.is_empty() =>
        {
            Speaks::Detect
        }
        AppProtocol::Undeclared => Speaks::Opaque,
    }
}

/// Decides on an inbound connection that does not speak HTTP, or on a request.
pub(crate) fn admit<'p>(
    policy: &EffectivePolicy,
    authorizer: &'p Authorizer,
    facts: &Facts<'_>,
) -> Admit<'p> {
    admit_by(policy, facts, || authorizer.decide(facts))
}

/// Decides on an inbound connection whose requests are still to come: refused is one on which none could be allowed.
pub(crate) fn admit_connection<'p>(
    policy: &EffectivePolicy,
    authorizer: &'p Authorizer,
    facts: &Facts<'_>,
) -> Admit<'p> {
    admit_by(policy, facts, || authorizer.decide_connection(facts))
}

fn admit_by<'p>(
    policy: &EffectivePolicy,
    facts: &Facts<'_>,
    decide: impl FnOnce() -> Verdict<'p>,
) -> Admit<'p> {
    // An identity comes from a tunnel and a tunnel has one, so its absence is plain text.
    if facts.source.is_none() && policy.mtls_of(facts.destination_port) == MtlsMode::Strict {
        return Admit::Plaintext;
    }
    let verdict = decide();
    if verdict.is_allowed() {
        Admit::Yes(verdict)
    } else {
        Admit::Denied(verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api, catalog::Catalog};

    const CONFIG: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {mesh.covet.dev/enabled: "true"}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIPs: [10.96.0.1], selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: mesh.covet.dev/v1alpha1
kind: Workload
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {node: n1, addresses: [10.1.0.1], netns: /run/netns/web-1}
---
apiVersion: mesh.covet.dev/v1alpha1
kind: Workload
metadata: {name: far, namespace: shop, labels: {app: far}}
spec: {node: n2, addresses: [10.1.0.2], netns: /run/netns/far, serviceAccount: far}
---
apiVersion: mesh.covet.dev/v1alpha1
kind: Workload
metadata: {name: machine, namespace: shop}
spec: {addresses: [10.1.0.3]}
---
apiVersion: mesh.covet.dev/v1alpha1
kind: MeshPolicy
metadata: {name: far, namespace: shop}
spec: {selector: {matchLabels: {app: far}}, mtls: {mode: strict, portModes: {"9000": disable}}}
---
apiVersion: mesh.covet.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: no-guests, namespace: shop}
spec: {action: DENY, rules: [{from: [{source: {namespaces: [guests]}}]}]}
"#;

    fn catalog() -> Arc<Catalog> {
        let catalog = Catalog::new("n1");
        let source = catalog.register();
        let (config, _) = api::parse_bytes("config.yaml", CONFIG.as_bytes()).unwrap();
        catalog.apply(source, config);
        catalog
    }

    #[test]
    fn the_dialled_address_decides() {
        let catalog = catalog();
        let allow = EffectivePolicy::default();
        let registered = EffectivePolicy {
            outbound: OutboundMode::RegisteredOnly { exceptions: vec![] },
            ..EffectivePolicy::default()
        };
        let decide = |dialled: &str, policy| {
            let dialled = dialled.parse().unwrap();
            match target(&catalog.load(), dialled, policy) {
                Ok(Target::Service(upstream)) => {
                    format!(
                        "{} {}",
                        upstream.service.name, upstream.endpoints[0].endpoint.address
                    )
                }
                Ok(Target::Address(Some(workload))) => workload.name.to_string(),
                Ok(Target::Address(None)) => "passthrough".to_owned(),
                Err(reason) => reason.to_string(),
            }
        };
        for (dialled, policy, expected) in [
            ("10.96.0.1:80", &allow, "shop/web 10.1.0.1:8080"),
            ("10.96.0.1:80", &registered, "shop/web 10.1.0.1:8080"),
            ("10.96.0.1:81", &allow, "no_service_port"),
            // The address of a workload is itself, whatever the port and the services in front of it.
            ("10.1.0.1:8080", &registered, "shop/web-1"),
            ("10.1.0.1:9", &allow, "shop/web-1"),
            ("192.0.2.9:443", &allow, "passthrough"),
            ("192.0.2.9:443", &registered, "unknown_destination"),
        ] {
            assert_eq!(decide(dialled, policy), expected, "{dialled}");
        }
    }

    #[test]
    fn registered_only_has_exceptions() {
        let mode = OutboundMode::RegisteredOnly {
            exceptions: vec!["10.1.0.0/16".parse().unwrap(), "fd00::/8".parse().unwrap()],
        };
        for (dialled, allowed) in [
            ("10.1.2.3", true),
            ("10.2.2.3", false),
            ("fd00::1", true),
            ("2001:db8::1", false),
        ] {
            assert_eq!(
                allows_unknown(&mode, dialled.parse().unwrap()),
                allowed,
                "{dialled}"
            );
        }
        assert!(allows_unknown(
            &OutboundMode::Allow,
            "8.8.8.8".parse().unwrap()
        ));
    }

    #[test]
    fn the_destination_decides_whether_there_is_a_tunnel() {
        let catalog = catalog();
        let tunnel = |peer: &str, service_account: &str| {
            Ok(Way::Tunnel {
                peer: peer.parse().unwrap(),
                expected: format!("spiffe://cluster.local/ns/shop/sa/{service_account}")
                    .parse()
                    .unwrap(),
            })
        };
        for (address, expected) in [
            ("10.1.0.1:8080", tunnel("10.1.0.1:15008", "default")),
            ("10.1.0.2:80", tunnel("10.1.0.2:15008", "far")),
            ("10.1.0.2:9000", Ok(Way::Plain)),
            ("10.1.0.3:80", Ok(Way::Plain)),
            ("192.0.2.9:443", Ok(Way::Plain)),
            ("10.1.0.1:15008", Err(Reason::AgentPort)),
            // Nobody's tunnel port.
            ("10.1.0.3:15008", Ok(Way::Plain)),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(
                way(&catalog.load(), |_| true, address),
                expected,
                "{address}"
            );
        }
        // Of this node and not captured yet; of another, about which its own agent knows.
        let early = way(&catalog.load(), |_| false, "10.1.0.1:8080".parse().unwrap());
        assert_eq!(early, Ok(Way::Plain));
        let far = way(&catalog.load(), |_| false, "10.1.0.2:80".parse().unwrap());
        assert_eq!(far, tunnel("10.1.0.2:15008", "far"));
    }

    #[test]
    fn plain_text_into_strict_is_refused_and_policy_asked_after_that() {
        let catalog = catalog();
        let snapshot = catalog.snapshot();
        let id = |text: &str| -> SpiffeId { text.parse().unwrap() };
        let friend = id("spiffe://cluster.local/ns/shop/sa/web");
        let guest = id("spiffe://cluster.local/ns/guests/sa/web");
        let decide = |workload: &str, source: Option<&SpiffeId>, port| {
            let name = ResourceName::new("shop", workload);
            let workload = snapshot.workload(&name).unwrap();
            let facts = Facts {
                source,
                source_ip: [10, 1, 0, 9].into(),
                destination_ip: workload.addresses[0],
                destination_port: port,
                http: None,
            };
            admit(&workload.policy, &snapshot.authorizer(&name), &facts).refusal()
        };
        for (workload, source, port, expected) in [
            ("far", None, 80, Some(Reason::PlaintextRefused)),
            ("far", None, 9000, None),
            ("far", Some(&friend), 80, None),
            ("far", Some(&guest), 80, Some(Reason::PolicyDenied)),
            ("far", Some(&guest), 9000, Some(Reason::PolicyDenied)),
            ("web-1", None, 80, None),
        ] {
            assert_eq!(
                decide(workload, source, port),
                expected,
                "{workload} {source:?} {port}"
            );
        }
    }
}
