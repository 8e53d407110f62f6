//! A captured connection of the workload: where it was to go, and the way there.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    sync::Arc,
};

use mesh_common::Direction;
use tokio::io::Interest;

use super::{
    Shared,
    accept::{Accepted, local_address, meta},
    connect::{self, Client, Connected},
    served::{Report, Served},
    socket::canonical,
    tcp,
};
use crate::{
    catalog::{Snapshot, Upstream},
    model::{EffectivePolicy, OutboundMode, ResourceName},
    telemetry::Reason,
};

/// Where a connection goes.
#[derive(Debug)]
enum Target {
    Service(Arc<Upstream>),
    /// A workload, or an address that the mesh does not know.
    Address(Option<ResourceName>),
}

/// Serves one connection to its end.
pub(super) async fn serve(shared: Arc<Shared>, served: Arc<Served>, accepted: Accepted) {
    let peer = accepted.peer;
    let found = served.pod.original_dst(accepted.socket.as_fd());
    // Captured connections are redirected to the workload's main address, from which the kernel would also dial. Another
    // one was chosen by the application, and stays the one that the server sees.
    let local = local_address(&accepted.socket);
    let from = Client {
        ip: peer.ip(),
        chosen: peer.ip() != local.ip(),
    };
    let (dialled, cookie) = match &found {
        Ok(Some((dialled, cookie))) => (canonical(*dialled), *cookie),
        Ok(None) | Err(_) => (local, 0),
    };
    if served.pod.is_self_test(peer, dialled) {
        return;
    }
    let target = match found {
        Ok(Some(_)) => target(&shared.catalog.load(), dialled, &served.pod.policy()),
        Ok(None) => Err(Reason::NoOriginalDestination),
        Err(error) => {
            tracing::warn!(workload = %served.pod.name(), %error, "cannot read the original destination");
            Err(Reason::NoOriginalDestination)
        }
    };
    let service = match &target {
        Ok(Target::Service(upstream)) => Some(upstream.service.name.clone()),
        _ => None,
    };
    let meta = meta(
        &shared,
        &served,
        Direction::Outbound,
        peer,
        dialled,
        service,
        cookie,
    );
    let report = Report::new(shared.telemetry.open(meta), Arc::clone(&served));
    let client = match accepted.into_leg() {
        Ok(client) => client,
        Err(error) => {
            tracing::warn!(workload = %served.pod.name(), %error, "cannot register a connection");
            return report.finish(Reason::Internal);
        }
    };
    // Boxed: connecting needs much and is short, while the task of an idle connection is to be small. A client that
    // only ends its stream is still served; one that resets it does not wait any more.
    let connected = Box::pin(async {
        tokio::select! {
            biased;
            connected = connect(&shared, &served, target, dialled, from, &report) => connected,
            _ = client.ready(Interest::ERROR) => Err(Reason::ClientReset),
        }
    })
    .await;
    match connected {
        Ok(connected) => tcp::run(client, connected, &shared, report).await,
        Err(reason) => report.finish(reason),
    }
}

async fn connect(
    shared: &Shared,
    served: &Served,
    target: Result<Target, Reason>,
    dialled: SocketAddr,
    client: Client,
    report: &Report,
) -> Result<Connected, Reason> {
    let pod = served.pod.as_ref();
    match target? {
        Target::Service(upstream) => {
            connect::to_service(pod, &shared.options, &upstream, client, report).await
        }
        Target::Address(workload) => {
            report.set_upstream(dialled, workload);
            connect::to_address(pod, &shared.options, dialled, client).await
        }
    }
}

/// Decides by the dialled address.
fn target(
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
        return Ok(Target::Address(Some(workload.name.clone())));
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
"#;

    #[test]
    fn the_dialled_address_decides() {
        let catalog = Catalog::new("n1");
        let source = catalog.register();
        let (config, _) = api::parse_bytes("config.yaml", CONFIG.as_bytes()).unwrap();
        catalog.apply(source, config);
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
                Ok(Target::Address(Some(workload))) => workload.to_string(),
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
}
