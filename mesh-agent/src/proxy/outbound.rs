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
    connect::{self, Connected},
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
    let (dialled, cookie) = match &found {
        Ok(Some((dialled, cookie))) => (canonical(*dialled), *cookie),
        Ok(None) | Err(_) => (local_address(&accepted.socket), 0),
    };
    if served.pod.is_self_test(dialled) {
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
    let client = match accepted.into_leg(&shared.options.keepalive) {
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
            connected = connect(&shared, &served, target, dialled, peer.ip(), &report) => connected,
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
    client: IpAddr,
    report: &Report,
) -> Result<Connected, Reason> {
    let pod = served.pod.as_ref();
    match target? {
        Target::Service(upstream) => {
            connect::to_service(pod, &shared.options, &upstream, client, report).await
        }
        Target::Address(workload) => {
            report.set_upstream(dialled, workload);
            connect::to_address(pod, &shared.options, dialled).await
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
