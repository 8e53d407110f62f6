//! Connecting upstream: candidates in the order of the balancer, each within its deadline, all within one.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use rustix::io::Errno;
use tokio::{
    net::{TcpSocket, TcpStream},
    time::{Instant, timeout_at},
};

use super::{PodSockets, ProxyOptions, served::Report, socket::Leg};
use crate::{balance, catalog::Upstream, resilience::Permit, telemetry::Reason};

/// A connection upstream, and what it holds for as long as it lives.
pub(super) struct Connected {
    pub(super) leg: Leg,
    /// Of the service and of the endpoint.
    pub(super) _permits: Option<[Permit; 2]>,
}

/// Connects to one address.
pub(super) async fn to_address(
    pod: &dyn PodSockets,
    options: &ProxyOptions,
    address: SocketAddr,
) -> Result<Connected, Reason> {
    let deadline = Instant::now() + options.connect_timeout;
    match dial(pod, options, address, deadline).await {
        Ok(leg) => Ok(Connected {
            leg,
            _permits: None,
        }),
        Err(error) => Err(reason(&error)),
    }
}

/// Connects to an endpoint of a service: the first candidate that its breaker and limits let through and that answers.
pub(super) async fn to_service(
    pod: &dyn PodSockets,
    options: &ProxyOptions,
    upstream: &Upstream,
    client: IpAddr,
    report: &Report,
) -> Result<Connected, Reason> {
    let policy = &upstream.service.traffic;
    let total = policy.connect_timeout.unwrap_or(options.connect_timeout);
    let deadline = Instant::now() + total;
    let Some(service_permit) = upstream.limits.acquire(policy.limits.max_connections) else {
        return Err(Reason::ConnectionLimit);
    };
    let affinity = upstream
        .service
        .client_ip_affinity
        .then(|| balance::client_key(client));
    let mut candidates = upstream
        .balancer
        .candidates(&upstream.endpoints, affinity, now(), &mut rand::rng())
        .peekable();
    if candidates.peek().is_none() {
        return Err(Reason::NoEndpoints);
    }
    // Which of the failures is reported: one of the network before one of ours.
    let mut failure = Reason::BreakerOpen;
    while let Some(index) = candidates.next() {
        let endpoint = &upstream.endpoints[index];
        let Some(attempt) =
            endpoint
                .state
                .admit(policy.breaker.as_ref(), &upstream.ejections, now())
        else {
            continue;
        };
        let Some(endpoint_permit) = endpoint
            .state
            .acquire(policy.limits.max_connections_per_endpoint)
        else {
            if failure == Reason::BreakerOpen {
                failure = Reason::ConnectionLimit;
            }
            continue;
        };
        let address = endpoint.endpoint.address;
        report.set_upstream(address, endpoint.endpoint.workload.clone());
        let until = if candidates.peek().is_some() {
            attempt_deadline(Instant::now(), deadline, options.attempt_timeout)
        } else {
            deadline
        };
        match dial(pod, options, address, until).await {
            Ok(leg) => {
                attempt.succeeded(now());
                upstream.balancer.report(index, true);
                return Ok(Connected {
                    leg,
                    _permits: Some([service_permit, endpoint_permit]),
                });
            }
            Err(error) => {
                failure = reason(&error);
                if matches!(failure, Reason::NoDescriptors | Reason::Internal) {
                    // Ours: says nothing about the endpoint, and the next one would fare no better.
                    tracing::warn!(upstream = %address, %error, "cannot connect");
                    return Err(failure);
                }
                tracing::debug!(upstream = %address, service = %upstream.service.name, %error, "connect failed");
                attempt.failed(&error.to_string(), now(), rand::random());
                upstream.balancer.report(index, false);
                if Instant::now() >= deadline {
                    break;
                }
            }
        }
    }
    Err(failure)
}

/// While another candidate is left, one attempt gets at most `attempt`, and at most half of what is left.
fn attempt_deadline(now: Instant, deadline: Instant, attempt: Duration) -> Instant {
    let left = deadline.saturating_duration_since(now);
    now + attempt.min(left / 2)
}

/// Connects a socket of the pod.
async fn dial(
    pod: &dyn PodSockets,
    options: &ProxyOptions,
    address: SocketAddr,
    deadline: Instant,
) -> io::Result<Leg> {
    let connect = async {
        let socket = pod.socket(address.is_ipv6()).await?;
        connect(socket, options, address).await
    };
    timeout_at(deadline, connect)
        .await
        .unwrap_or_else(|_| Err(Errno::TIMEDOUT.into()))
}

/// Connects a prepared socket.
pub(super) async fn connect(
    socket: socket2::Socket,
    options: &ProxyOptions,
    address: SocketAddr,
) -> io::Result<Leg> {
    options.keepalive.apply(&socket)?;
    let stream: TcpStream = TcpSocket::from_std_stream(socket.into())
        .connect(address)
        .await?;
    Ok(Leg::new(stream))
}

/// What a failed connect means.
pub(super) fn reason(error: &io::Error) -> Reason {
    match Errno::from_io_error(error) {
        Some(Errno::CONNREFUSED) => Reason::UpstreamRefused,
        // RST after the handshake, before we looked.
        Some(Errno::CONNRESET | Errno::PIPE) => Reason::UpstreamReset,
        Some(Errno::TIMEDOUT) => Reason::UpstreamTimeout,
        Some(
            Errno::HOSTUNREACH
            | Errno::NETUNREACH
            | Errno::NETDOWN
            | Errno::HOSTDOWN
            | Errno::ADDRNOTAVAIL
            | Errno::ACCESS
            | Errno::PERM
            | Errno::INVAL,
        ) => Reason::UpstreamUnreachable,
        Some(Errno::MFILE | Errno::NFILE) => Reason::NoDescriptors,
        _ if error.kind() == io::ErrorKind::NotConnected => Reason::WorkloadGone,
        _ => Reason::Internal,
    }
}

/// The clock of `balance` and `resilience`, which follows tokio's in tests with paused time.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}
