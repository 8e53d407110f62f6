//! Connecting upstream: candidates in the order of the balancer, each within its deadline, all within one.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    time::Duration,
};

use rustix::io::Errno;
use tokio::{
    net::{TcpSocket, TcpStream},
    time::{Instant, timeout, timeout_at},
};

use super::{PodSockets, ProxyOptions, served::Report, socket::Leg};
use crate::{
    balance::{self, Candidates},
    capture::sys::tcp::bind_address_no_port,
    catalog::{Upstream, UpstreamEndpoint},
    resilience::{Attempt, Permit, Transition},
    telemetry::Reason,
};

/// A connection upstream, and what it holds for as long as it lives.
pub(super) struct Connected {
    pub(super) leg: Leg,
    /// Of the service and of the endpoint.
    pub(super) _permits: Option<[Permit; 2]>,
}

/// Who a connection is dialled for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Client {
    pub(super) ip: IpAddr,
    /// The application bound its socket to `ip`, which is not where the kernel dials from by itself.
    pub(super) chosen: bool,
}

/// Connects to one address.
pub(super) async fn to_address(
    pod: &dyn PodSockets,
    options: &ProxyOptions,
    address: SocketAddr,
    client: Client,
) -> Result<Connected, Reason> {
    let result = timeout(options.connect_timeout, dial(pod, options, address, client))
        .await
        .unwrap_or_else(|_| Err(timed_out()));
    result
        .map(|leg| Connected {
            leg,
            _permits: None,
        })
        .map_err(|error| {
            let reason = reason(&error);
            if matches!(reason, Reason::NoDescriptors | Reason::Internal) {
                tracing::warn!(workload = %pod.name(), upstream = %address, %error, "cannot connect");
            }
            reason
        })
}

/// Connects to an endpoint of a service: the first candidate that its breaker and limits let through and that answers.
pub(super) async fn to_service(
    pod: &dyn PodSockets,
    options: &ProxyOptions,
    upstream: &Upstream,
    client: Client,
    report: &Report,
) -> Result<Connected, Reason> {
    let policy = &upstream.service.traffic;
    let total = policy.connect_timeout.unwrap_or(options.connect_timeout);
    let deadline = Instant::now() + total;
    let Some(service_permit) = upstream.limits.acquire(policy.limits.max_connections) else {
        return Err(Reason::ConnectionLimit);
    };
    let mut choice = Choice::new(upstream, client.ip);
    let mut next = choice.next();
    while let Some(Candidate {
        index,
        attempt,
        permit,
    }) = next
    {
        let endpoint = &upstream.endpoints[index].endpoint;
        let address = endpoint.address;
        report.set_upstream(address, endpoint.workload.clone());
        let mut dialling = pin!(dial(pod, options, address, client));
        let soon = attempt_deadline(Instant::now(), deadline, options.attempt_timeout);
        let (result, following) = match timeout_at(soon, dialling.as_mut()).await {
            Ok(result) => (result, None),
            // Slow. Somebody else may do better; if there is nobody, it gets all the time that is left.
            Err(_) => match choice.next() {
                Some(other) => (Err(timed_out()), Some(other)),
                None => (
                    timeout_at(deadline, dialling)
                        .await
                        .unwrap_or_else(|_| Err(timed_out())),
                    None,
                ),
            },
        };
        let error = match result {
            Ok(leg) => {
                tell(attempt.succeeded(now()), upstream, address);
                upstream.balancer.report(index, true);
                return Ok(Connected {
                    leg,
                    _permits: Some([service_permit, permit]),
                });
            }
            Err(error) => error,
        };
        choice.failure = reason(&error);
        if matches!(
            choice.failure,
            Reason::NoDescriptors | Reason::Internal | Reason::WorkloadGone
        ) {
            // Ours: it says nothing about the endpoint, and the next one would fare no better.
            tracing::warn!(workload = %pod.name(), upstream = %address, %error, "cannot connect");
            break;
        }
        tracing::debug!(
            workload = %pod.name(), service = %upstream.service.name, upstream = %address, %error,
            "connect failed"
        );
        let transition = attempt.failed(&error.to_string(), now(), rand::random());
        tell(transition, upstream, address);
        upstream.balancer.report(index, false);
        if Instant::now() >= deadline {
            break;
        }
        next = following.or_else(|| choice.next());
    }
    Err(choice.failure)
}

/// Logs what became of a breaker.
fn tell(transition: Option<Transition>, upstream: &Upstream, address: SocketAddr) {
    let service = &upstream.service.name;
    match transition {
        Some(Transition::Opened { until }) => {
            let wait = until.saturating_duration_since(now());
            tracing::warn!(%service, endpoint = %address, ?wait, "circuit breaker opened: connects keep failing");
        }
        Some(Transition::Closed) => {
            tracing::info!(%service, endpoint = %address, "circuit breaker closed");
        }
        None => {}
    }
}

/// The candidates of one connection that may be tried.
struct Choice<'a> {
    upstream: &'a Upstream,
    candidates: Candidates<'a, UpstreamEndpoint>,
    /// Why there is no connection, as far as is known: a failure of the network goes before a limit, that before a
    /// breaker.
    failure: Reason,
}

/// An endpoint, admitted by its breaker and counted by its limit.
struct Candidate {
    index: usize,
    attempt: Attempt,
    permit: Permit,
}

impl<'a> Choice<'a> {
    fn new(upstream: &'a Upstream, client: IpAddr) -> Self {
        let affinity = upstream
            .service
            .client_ip_affinity
            .then(|| balance::client_key(client));
        Self {
            upstream,
            candidates: upstream.balancer.candidates(
                &upstream.endpoints,
                affinity,
                now(),
                &mut rand::rng(),
            ),
            failure: Reason::NoEndpoints,
        }
    }

    /// Takes a turn of the balancer for each that it looks at, so it is not to be asked ahead.
    fn next(&mut self) -> Option<Candidate> {
        let policy = &self.upstream.service.traffic;
        for index in self.candidates.by_ref() {
            let state = &self.upstream.endpoints[index].state;
            let breaker = policy.breaker.as_ref();
            let Some(attempt) = state.admit(breaker, &self.upstream.ejections, now()) else {
                if self.failure == Reason::NoEndpoints {
                    self.failure = Reason::BreakerOpen;
                }
                continue;
            };
            let Some(permit) = state.acquire(policy.limits.max_connections_per_endpoint) else {
                if matches!(self.failure, Reason::NoEndpoints | Reason::BreakerOpen) {
                    self.failure = Reason::ConnectionLimit;
                }
                continue;
            };
            return Some(Candidate {
                index,
                attempt,
                permit,
            });
        }
        None
    }
}

/// When to look for another candidate: after `attempt`, and at most half of what is left.
fn attempt_deadline(now: Instant, deadline: Instant, attempt: Duration) -> Instant {
    let left = deadline.saturating_duration_since(now);
    now + attempt.min(left / 2)
}

/// Connects a socket of the pod; without a deadline of its own.
async fn dial(
    pod: &dyn PodSockets,
    options: &ProxyOptions,
    address: SocketAddr,
    client: Client,
) -> io::Result<Leg> {
    let socket = pod.socket(address.is_ipv6()).await?;
    if client.chosen && client.ip.is_ipv6() == address.is_ipv6() {
        // The port is chosen by connect(), for the whole 4-tuple.
        bind_address_no_port(&socket)?;
        socket.bind(&SocketAddr::new(client.ip, 0).into())?;
    }
    connect(socket, options, address).await
}

fn timed_out() -> io::Error {
    Errno::TIMEDOUT.into()
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
