//! A captured connection of the workload: where it was to go, and the way there.

use std::{net::SocketAddr, os::fd::AsFd, sync::Arc};

use mesh_common::Direction;
use tokio::io::Interest;

use super::{
    Shared,
    accept::{Accepted, local_address, meta},
    connect::{self, Client, Connected, Link},
    decide::{Target, target},
    served::{Report, Served},
    socket::canonical,
    tcp, tunnel,
};
use crate::telemetry::Reason;

/// Serves one connection to its end.
pub(super) async fn serve(shared: Arc<Shared>, served: Arc<Served>, accepted: Accepted) {
    let peer = accepted.peer;
    let found = served.pod.original_dst(accepted.socket.as_fd());
    // Captured connections are redirected to the workload's main address, from which the kernel would also dial. Another
    // one was chosen by the application, and stays the one that the server sees.
    let local = local_address(&accepted.socket);
    let from = Client {
        address: peer,
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
        Ok(Connected { link, permits, .. }) => {
            let _permits = permits;
            match link {
                Link::Plain(leg) => tcp::run(client, leg, &shared, report).await,
                // Boxed: a plain connection shall not pay for it.
                Link::Tunnel(stream) => {
                    Box::pin(tunnel::run(client, *stream, &shared, report)).await;
                }
            }
        }
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
            connect::to_service(shared, pod, &upstream, client, report).await
        }
        Target::Address(workload) => {
            report.set_upstream(dialled, workload.map(|w| w.name.clone()));
            connect::to_address(shared, pod, dialled, client, report).await
        }
    }
}
