//! A connection to the workload: handed to its application, with the client's address as its peer.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
    sync::Arc,
    time::Duration,
};

use ::http::StatusCode;
use mesh_common::Direction;
use rustix::{io::Errno, net::sockopt::socket_cookie};
use tokio::{
    io::Interest,
    time::{Instant, timeout, timeout_at},
};

use super::{
    Shared,
    accept::{Accepted, local_address, meta},
    admission::Admission,
    baggage, connect, decide,
    served::{ConnectionId, Report, Served},
    socket::Leg,
    tcp, tunnel,
};
use crate::{
    capture::sys::tcp::bind_address_no_port,
    model::{EffectivePolicy, ResourceName},
    policy::{Authorizer, WouldBe},
    telemetry::{Outcome, Reason},
};

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
            connected = connect(&shared, &served, &admission, peer, &report) => connected,
            _ = client.ready(Interest::ERROR) => Err(Reason::ClientReset),
        }
    })
    .await;
    match connected {
        Ok(leg) => tcp::run(client, leg, &shared, report).await,
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
    let (identity, baggage) = match shared.catalog.load().workload(served.pod.name()) {
        Some(workload) => (Some(workload.identity.clone()), baggage::of(workload)),
        None => (None, String::new()),
    };
    report.set_security(Some(source.clone()), identity);
    let admission = Arc::new(Admission::new(Some(source), client.ip(), shown));
    served.register(id, Arc::clone(&admission));
    report.set_admission(Arc::clone(&admission));
    if let Err(status) = destination {
        incoming.refuse(status);
        return report.finish(Reason::TunnelProtocol);
    }
    // Boxed for the same reason as outbound.
    let connected = Box::pin(async {
        tokio::select! {
            biased;
            connected = connect(&shared, &served, &admission, client, &report) => connected,
            () = incoming.given_up() => Err(Reason::ClientReset),
        }
    })
    .await;
    match connected {
        Ok(leg) => match incoming.accept(&baggage) {
            Some(stream) => tunnel::run_accepted(stream, leg, &shared, report).await,
            None => report.finish(Reason::ClientReset),
        },
        Err(reason) => {
            incoming.refuse(match reason {
                Reason::PolicyDenied => StatusCode::UNAUTHORIZED,
                _ => StatusCode::SERVICE_UNAVAILABLE,
            });
            report.finish(reason);
        }
    }
}

async fn connect(
    shared: &Shared,
    served: &Served,
    admission: &Admission,
    peer: SocketAddr,
    report: &Report,
) -> Result<Leg, Reason> {
    admit(shared, served, admission, report)?;
    to_application(shared, served, admission.destination, peer, report).await
}

/// Decides whether the workload takes the connection, and tells which policy said so.
fn admit(
    shared: &Shared,
    served: &Served,
    admission: &Admission,
    report: &Report,
) -> Result<(), Reason> {
    let rules = served.rules(shared);
    let facts = admission.facts();
    let telemetry = &shared.telemetry;
    rules.authorizer.dry_run(&facts, |policy, would_be| {
        let outcome = match would_be {
            WouldBe::Allowed => Outcome::DryRunAllow,
            WouldBe::Denied => Outcome::DryRunDeny,
        };
        telemetry.decision(Some(policy), outcome);
        tracing::info!(
            workload = %served.pod.name(), client = %admission.source_ip, source = ?admission.source,
            destination = %admission.destination, %policy, outcome = outcome.as_str(), "dry run of a policy"
        );
    });
    let decided = decide::admit(&rules.policy, &rules.authorizer, &facts);
    decided.report(telemetry);
    if let Some(policy) = decided.policy() {
        report.set_policy(policy.clone());
    }
    match decided.refusal() {
        None => Ok(()),
        Some(reason) => {
            tracing::debug!(
                workload = %served.pod.name(), client = %admission.source_ip, source = ?admission.source,
                destination = %admission.destination, %reason, policy = ?decided.policy(), "connection refused"
            );
            Err(reason)
        }
    }
}

/// What decides on the inbound connections of a workload.
#[derive(Clone)]
pub(super) struct Rules {
    policy: Arc<EffectivePolicy>,
    authorizer: Arc<Authorizer>,
}

impl Rules {
    /// As the catalog has them. `None`: configuration has the workload no more; it is being released.
    pub(super) fn of(shared: &Shared, served: &Served) -> Option<Self> {
        let catalog = shared.catalog.load();
        let workload = catalog.workload(served.pod.name())?;
        Some(Self {
            policy: Arc::clone(&workload.policy),
            authorizer: catalog.authorizer(&workload.name),
        })
    }

    /// Of a workload that never was in the catalog: nothing is let in.
    pub(super) fn closed(served: &Served) -> Self {
        Self {
            policy: served.pod.policy(),
            authorizer: Arc::new(Authorizer::closed()),
        }
    }

    pub(super) fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.policy, &other.policy) && Arc::ptr_eq(&self.authorizer, &other.authorizer)
    }

    /// Why a connection may not go on, and by which policy.
    pub(super) fn refusal(&self, admission: &Admission) -> Option<(Reason, Option<ResourceName>)> {
        let decided = decide::admit(&self.policy, &self.authorizer, &admission.facts());
        Some((decided.refusal()?, decided.policy().cloned()))
    }
}

/// Connects to the application, on behalf of `client`.
async fn to_application(
    shared: &Shared,
    served: &Served,
    dialled: SocketAddr,
    client: SocketAddr,
    report: &Report,
) -> Result<Leg, Reason> {
    let application = served
        .pod
        .application(dialled)
        .ok_or(Reason::NoOriginalDestination)?;
    report.set_upstream(application, Some(served.pod.name().clone()));
    let deadline = Instant::now() + shared.options.connect_timeout;
    let dial = dial(shared, served, application, client, report);
    let dialled = timeout_at(deadline, dial)
        .await
        .unwrap_or_else(|_| Err(Errno::TIMEDOUT.into()));
    dialled.map_err(|error| {
        let reason = match Errno::from_io_error(&error) {
            // The kernel's word that the application would not see who dials, for want of room in its map.
            Some(Errno::PERM) => Reason::AgentLimit,
            _ => connect::reason(&error),
        };
        if matches!(reason, Reason::NoDescriptors | Reason::Internal) {
            tracing::warn!(workload = %served.pod.name(), %application, %error, "cannot reach the application");
        }
        reason
    })
}

/// A connection inside a pod that was not answered within this is looked at again.
const SILENCE: Duration = Duration::from_millis(30);

/// The kernel refuses a closed port of a pod's IPv6 address with an RST, but not to ::1: there the SYN is lost without a
/// word (Linux 6.18; 127.0.0.1 is answered). So one from the pod's own address asks as well.
///
/// # Errors
/// Nothing listens there.
async fn refused_in_silence(
    served: &Served,
    shared: &Shared,
    application: SocketAddr,
) -> io::Result<()> {
    if application.is_ipv4() {
        return Ok(());
    }
    let socket = served.pod.socket(true).await?;
    let probe = timeout(
        SILENCE,
        connect::connect(socket, &shared.options, application),
    );
    match probe.await {
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Err(error),
        _ => Ok(()),
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
    let leg = {
        let connecting = connect::connect(socket, &shared.options, application);
        tokio::pin!(connecting);
        match timeout(SILENCE, &mut connecting).await {
            Ok(connected) => connected?,
            Err(_) => {
                refused_in_silence(served, shared, application).await?;
                connecting.await?
            }
        }
    };
    if served.pod.client_lost(leg.as_fd())? {
        return Err(Errno::PERM.into());
    }
    Ok(leg)
}
