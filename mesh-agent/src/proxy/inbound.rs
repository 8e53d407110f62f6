//! A connection to the workload: handed to its application, with the client's address as its peer.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
    sync::Arc,
};

use http::StatusCode;
use mesh_common::Direction;
use rustix::{io::Errno, net::sockopt::socket_cookie};
use tokio::{
    io::Interest,
    time::{Instant, timeout_at},
};

use super::{
    Shared,
    accept::{Accepted, local_address, meta},
    admission::Admission,
    connect::{self, Connected},
    served::{ConnectionId, Report, Served},
    socket::Leg,
    tcp, tunnel,
};
use crate::{capture::sys::tcp::bind_address_no_port, telemetry::Reason};

/// Serves one connection to its end.
pub(super) async fn serve(
    shared: Arc<Shared>,
    served: Arc<Served>,
    accepted: Accepted,
    id: ConnectionId,
) {
    let peer = accepted.peer;
    let dialled = local_address(&accepted.socket);
    if served.pod.is_self_test(peer, dialled) {
        return;
    }
    let meta = meta(&shared, &served, Direction::Inbound, peer, dialled, None, 0);
    let mut report = Report::new(shared.telemetry.open(meta), Arc::clone(&served));
    let admission = Arc::new(Admission::new(None, peer.ip(), dialled));
    served.register(id, Arc::clone(&admission));
    report.set_admission(Arc::clone(&admission));
    let client = match accepted.into_leg() {
        Ok(client) => client,
        Err(error) => {
            tracing::warn!(workload = %served.pod.name(), %error, "cannot register a connection");
            return report.finish(Reason::Internal);
        }
    };
    // Boxed for the same reason as outbound.
    let connected = Box::pin(async {
        tokio::select! {
            biased;
            connected = connect(&shared, &served, dialled, peer, &report) => connected,
            _ = client.ready(Interest::ERROR) => Err(Reason::ClientReset),
        }
    })
    .await;
    match connected {
        Ok(connected) => tcp::run(client, connected, &shared, report).await,
        Err(reason) => report.finish(reason),
    }
}

/// Serves one stream of a tunnel to its end.
pub(super) async fn serve_stream(
    shared: Arc<Shared>,
    served: Arc<Served>,
    mut incoming: tunnel::Incoming,
    id: ConnectionId,
) {
    let client = incoming.client();
    let source = incoming.peer.identity.id.clone();
    let destination = incoming.destination();
    let shown = destination.unwrap_or(incoming.peer.dialled);
    let meta = meta(&shared, &served, Direction::Inbound, client, shown, None, 0);
    let mut report = Report::new(shared.telemetry.open(meta), Arc::clone(&served));
    let admission = Arc::new(Admission::new(Some(source), client.ip(), shown));
    served.register(id, Arc::clone(&admission));
    report.set_admission(admission);
    if let Err(status) = destination {
        incoming.refuse(status);
        return report.finish(Reason::TunnelProtocol);
    }
    let connected = Box::pin(async {
        tokio::select! {
            biased;
            connected = connect(&shared, &served, shown, client, &report) => connected,
            () = incoming.given_up() => Err(Reason::ClientReset),
        }
    })
    .await;
    match connected {
        Ok(connected) => match incoming.accept("") {
            Some(stream) => tunnel::run_accepted(stream, connected.leg, &shared, report).await,
            None => report.finish(Reason::ClientReset),
        },
        Err(reason) => {
            incoming.refuse(StatusCode::SERVICE_UNAVAILABLE);
            report.finish(reason);
        }
    }
}

async fn connect(
    shared: &Shared,
    served: &Served,
    dialled: SocketAddr,
    peer: SocketAddr,
    report: &Report,
) -> Result<Connected, Reason> {
    let application = served
        .pod
        .application(dialled)
        .ok_or(Reason::NoOriginalDestination)?;
    report.set_upstream(application, Some(served.pod.name().clone()));
    let deadline = Instant::now() + shared.options.connect_timeout;
    let dial = dial(shared, served, application, peer, report);
    let dialled = timeout_at(deadline, dial)
        .await
        .unwrap_or_else(|_| Err(Errno::TIMEDOUT.into()));
    match dialled {
        Ok(leg) => Ok(Connected {
            leg,
            _permits: None,
        }),
        Err(error) => {
            let reason = match Errno::from_io_error(&error) {
                // The kernel's word that the application would not see who dials, for want of room in its map.
                Some(Errno::PERM) => Reason::AgentLimit,
                _ => connect::reason(&error),
            };
            if matches!(reason, Reason::NoDescriptors | Reason::Internal) {
                tracing::warn!(workload = %served.pod.name(), %application, %error, "cannot reach the application");
            }
            Err(reason)
        }
    }
}

async fn dial(
    shared: &Shared,
    served: &Served,
    application: SocketAddr,
    peer: SocketAddr,
    report: &Report,
) -> io::Result<Leg> {
    let socket = served.pod.socket(application.is_ipv6()).await?;
    // From loopback a port in TIME_WAIT is used again at once; from the pod's own address it would run dry. The port
    // is chosen by connect(), or bind() would run dry all the same.
    let source: IpAddr = match application.ip() {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    bind_address_no_port(&socket)?;
    socket.bind(&SocketAddr::new(source, 0).into())?;
    served.pod.set_client(socket.as_fd(), peer)?;
    report.set_agent_cookie(socket_cookie(&socket)?);
    let leg = connect::connect(socket, &shared.options, application).await?;
    if served.pod.client_lost(leg.as_fd())? {
        return Err(Errno::PERM.into());
    }
    Ok(leg)
}
