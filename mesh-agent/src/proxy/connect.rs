//! Connecting upstream: candidates in the order of the balancer, each within its deadline, all within one; each plain or
//! through a tunnel, as its workload takes it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    time::Duration,
};

use rustix::io::Errno;
use tokio::{
    net::{TcpSocket, TcpStream},
    time::{Instant, timeout_at},
};

use super::{
    PodSockets, ProxyOptions, Shared, baggage,
    decide::{self, Way},
    served::Report,
    socket::Leg,
    tunnel::{TunnelRequest, TunnelStream},
};
use crate::{
    balance::{self, Candidates, Pick, Place, Usability},
    capture::sys::tcp::bind_address_no_port,
    catalog::{Snapshot, Upstream, UpstreamEndpoint},
    health::Failed,
    model::{HashKey, Prefer, ResourceName, SpiffeId, TrafficPolicy},
    resilience::{Attempt, Permit},
    telemetry::Reason,
};

/// A connection upstream, and what it holds for as long as it lives.
pub(super) struct Connected {
    pub(super) link: Link,
    /// Where it leads.
    pub(super) endpoint: SocketAddr,
    /// Of the service and of the endpoint.
    pub(super) permits: Option<[Permit; 2]>,
    /// Who dials and who was dialled, as mutual TLS proved it.
    pub(super) principals: Option<(SpiffeId, SpiffeId)>,
}

/// How it is connected.
pub(super) enum Link {
    Plain(Leg),
    /// Boxed: an idle plain connection shall not pay for it.
    Tunnel(Box<TunnelStream>),
}

/// Who a connection is dialled for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Client {
    pub(super) address: SocketAddr,
    /// The application bound its socket to the address, which is not where the kernel dials from by itself.
    pub(super) chosen: bool,
}

/// Why there is no connection to one address.
struct Failure {
    reason: Reason,
    /// Of the system, where it was one.
    error: Option<io::Error>,
}

impl Failure {
    /// Ours: it says nothing about the address, and another would fare no better.
    fn is_ours(&self) -> bool {
        is_ours(self.reason)
    }

    /// The other side answered, and means it: no failure of the endpoint, and not to be asked of the next.
    fn is_verdict(&self) -> bool {
        is_verdict(self.reason)
    }
}

/// See [`Failure::is_ours`].
pub(super) fn is_ours(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::NoDescriptors
            | Reason::Internal
            | Reason::WorkloadGone
            | Reason::NoCertificate
            | Reason::HandshakeLimit
    )
}

/// See [`Failure::is_verdict`].
pub(super) fn is_verdict(reason: Reason) -> bool {
    matches!(reason, Reason::DeniedByPeer | Reason::AgentPort)
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self {
            reason: reason(&error),
            error: Some(error),
        }
    }
}

impl From<Reason> for Failure {
    fn from(reason: Reason) -> Self {
        Self {
            reason,
            error: None,
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.error {
            Some(error) => write!(f, "{error}"),
            None => f.write_str(self.reason.as_str()),
        }
    }
}

/// Connects to one address.
pub(super) async fn to_address(
    shared: &Shared,
    pod: &dyn PodSockets,
    address: SocketAddr,
    client: Client,
    report: &Report,
) -> Result<Connected, Reason> {
    let deadline = Instant::now() + shared.options.connect_timeout;
    let reaching = reach(shared, pod, address, None, client, deadline);
    let result = timeout_at(deadline, reaching)
        .await
        .unwrap_or_else(|_| Err(timed_out()));
    result
        .inspect(|connected| tell_principals(connected, report))
        .map_err(|failure| {
            if failure.is_ours() {
                tracing::warn!(workload = %pod.name(), upstream = %address, error = %failure, "cannot connect");
            }
            failure.reason
        })
}

/// Where a workload runs, for policies that prefer near endpoints; others do not ask.
pub(super) fn place_of<'c>(
    catalog: &'c Snapshot,
    pod: &dyn PodSockets,
    policy: &TrafficPolicy,
) -> Place<'c> {
    if policy.load_balancer.locality.prefer == Prefer::None {
        return Place::default();
    }
    let source = catalog.workload(pod.name());
    source.map_or(Place::default(), |source| Place {
        node: source.node.as_deref(),
        zone: source.zone.as_deref(),
    })
}

/// Connects to an endpoint of a service: the first candidate that its breaker and limits let through and that answers.
pub(super) async fn to_service(
    shared: &Shared,
    pod: &dyn PodSockets,
    upstream: &Upstream,
    client: Client,
    report: &Report,
) -> Result<Connected, Reason> {
    let options = &shared.options;
    let service = Some(&upstream.service.name);
    let policy = &upstream.service.traffic;
    let total = policy.connect_timeout.unwrap_or(options.connect_timeout);
    let deadline = Instant::now() + total;
    let Some(service_permit) = upstream
        .state
        .connections
        .acquire(policy.limits.max_connections)
    else {
        return Err(Reason::ConnectionLimit);
    };
    let catalog = shared.catalog.load();
    let mut choice = Choice::new(
        upstream,
        client.address.ip(),
        place_of(&catalog, pod, policy),
    );
    drop(catalog);
    let mut next = choice.next();
    if let Some(on) = choice.candidates.panic_turned() {
        shared.telemetry.panic(&upstream.service.name, on);
    }
    while let Some(Candidate {
        index,
        attempt,
        permit,
    }) = next
    {
        let endpoint = &upstream.endpoints[index].endpoint;
        let address = endpoint.address;
        report.set_upstream(address, endpoint.workload.clone());
        shared
            .telemetry
            .breaker(&upstream.service.name, address, attempt.transition());
        let mut dialling = pin!(reach(shared, pod, address, service, client, deadline));
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
        let failure = match result {
            Ok(mut connected) => {
                shared
                    .telemetry
                    .breaker(&upstream.service.name, address, attempt.succeeded(now()));
                upstream.balancer.report(index, true);
                tell_principals(&connected, report);
                connected.permits = Some([service_permit, permit]);
                return Ok(connected);
            }
            Err(failure) => failure,
        };
        choice.failure = failure.reason;
        if failure.is_ours() {
            tracing::warn!(workload = %pod.name(), upstream = %address, error = %failure, "cannot connect");
            break;
        }
        tracing::debug!(
            workload = %pod.name(), service = %upstream.service.name, upstream = %address, error = %failure,
            "connect failed"
        );
        if failure.is_verdict() {
            shared
                .telemetry
                .breaker(&upstream.service.name, address, attempt.succeeded(now()));
            break;
        }
        let transition = attempt.failed(&failure.to_string(), now(), rand::random());
        shared
            .telemetry
            .breaker(&upstream.service.name, address, transition);
        upstream.balancer.report(index, false);
        if Instant::now() >= deadline {
            break;
        }
        next = following.or_else(|| choice.next());
    }
    Err(choice.failure)
}

/// Connects to one endpoint of a service, for requests. Its breaker and limits are the caller's business.
pub(super) async fn to_endpoint(
    shared: &Shared,
    pod: &dyn PodSockets,
    address: SocketAddr,
    service: &ResourceName,
    client: Client,
    deadline: Instant,
) -> Result<Connected, Reason> {
    reach(shared, pod, address, Some(service), client, deadline)
        .await
        .map_err(|failure| {
            if failure.is_ours() {
                tracing::warn!(workload = %pod.name(), upstream = %address, error = %failure, "cannot connect");
            } else {
                tracing::debug!(workload = %pod.name(), %service, upstream = %address, error = %failure, "connect failed");
            }
            failure.reason
        })
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
    fn new(upstream: &'a Upstream, client: IpAddr, place: Place<'_>) -> Self {
        let policy = &upstream.service.traffic;
        let key = balance::client_key(client);
        let pick = Pick {
            affinity: upstream.service.client_ip_affinity.then_some(key),
            // A connection has no other key.
            hash: Some(key).filter(|_| policy.load_balancer.hash == HashKey::SourceAddress),
            client: place,
            may_panic: policy.breaker.is_none_or(|b| b.max_ejection_percent < 100),
            now: now(),
        };
        Self {
            upstream,
            candidates: upstream
                .balancer
                .candidates(&upstream.endpoints, pick, &mut rand::rng()),
            failure: Reason::NoEndpoints,
        }
    }

    /// To be tried, so it is not to be asked ahead.
    fn next(&mut self) -> Option<Candidate> {
        let policy = &self.upstream.service.traffic;
        while let Some(index) = self.candidates.next() {
            let state = &self.upstream.endpoints[index].state;
            let (breaker, ejections) = (policy.breaker.as_ref(), &self.upstream.ejections);
            let attempt = match state.admit(breaker, ejections, now()) {
                Some(attempt) => attempt,
                None if self.candidates.in_panic() => state.admit_in_panic(breaker, ejections),
                None => {
                    self.note(Reason::BreakerOpen);
                    continue;
                }
            };
            let Some(permit) = state.acquire(policy.limits.max_connections_per_endpoint) else {
                if matches!(self.failure, Reason::NoEndpoints | Reason::BreakerOpen) {
                    self.failure = Reason::ConnectionLimit;
                }
                continue;
            };
            self.candidates.tried();
            return Some(Candidate {
                index,
                attempt,
                permit,
            });
        }
        if self.candidates.skipped() == Some(Usability::Ejected) {
            self.note(Reason::BreakerOpen);
        }
        None
    }

    /// A reason that counts only where none is known.
    fn note(&mut self, reason: Reason) {
        if self.failure == Reason::NoEndpoints {
            self.failure = reason;
        }
    }
}

/// Connects to an endpoint for a health check. No breaker, limit or record has to do with it.
pub(super) async fn for_check(
    shared: &Shared,
    pod: &dyn PodSockets,
    endpoint: SocketAddr,
    client: Client,
    deadline: Instant,
) -> Result<Connected, Failed> {
    reach(shared, pod, endpoint, None, client, deadline)
        .await
        .map_err(|failure| {
            let text = failure.to_string();
            match failure.is_ours() || failure.is_verdict() {
                true => Failed::Unknown(text),
                false => Failed::Endpoint(text),
            }
        })
}

/// When to look for another candidate: after `attempt`, and at most half of what is left.
pub(super) fn attempt_deadline(now: Instant, deadline: Instant, attempt: Duration) -> Instant {
    let left = deadline.saturating_duration_since(now);
    now + attempt.min(left / 2)
}

/// Connects to one address in the way that its workload takes. The deadline is for what is shared with others; what is
/// the caller's own ends when the caller drops it.
async fn reach(
    shared: &Shared,
    pod: &dyn PodSockets,
    address: SocketAddr,
    service: Option<&ResourceName>,
    client: Client,
    deadline: Instant,
) -> Result<Connected, Failure> {
    let tunnel = {
        let catalog = shared.catalog.load();
        match decide::way(&catalog, |name| shared.catalog.is_captured(name), address)? {
            Way::Plain => None,
            Way::Tunnel { peer, expected } => {
                let source = catalog.workload(pod.name()).ok_or(Reason::WorkloadGone)?;
                Some(TunnelRequest {
                    source: source.identity.clone(),
                    peer,
                    expected,
                    authority: address,
                    client: client.address,
                    chosen: client.chosen,
                    service: service
                        .map(|s| format!("{}.{}.svc.cluster.local", s.name, s.namespace)),
                    baggage: baggage::of(source),
                    deadline,
                })
            }
        }
    };
    let Some(request) = tunnel else {
        let leg = dial(pod, &shared.options, address, client).await?;
        return Ok(Connected {
            link: Link::Plain(leg),
            endpoint: address,
            permits: None,
            principals: None,
        });
    };
    let principals = (request.source.clone(), request.expected.clone());
    let stream = shared.tunnels.open(pod, request).await?;
    Ok(Connected {
        link: Link::Tunnel(Box::new(stream)),
        endpoint: address,
        permits: None,
        principals: Some(principals),
    })
}

fn tell_principals(connected: &Connected, report: &Report) {
    if let Some((source, destination)) = &connected.principals {
        report.set_security(Some(source.clone()), Some(destination.clone()));
    }
}

/// Connects a socket of the pod; without a deadline of its own.
async fn dial(
    pod: &dyn PodSockets,
    options: &ProxyOptions,
    address: SocketAddr,
    client: Client,
) -> io::Result<Leg> {
    let socket = pod.socket(address.is_ipv6()).await?;
    choose_source(&socket, address, client)?;
    connect(socket, options, address).await
}

/// Binds to the client's address, if it chose it.
pub(super) fn choose_source(
    socket: &socket2::Socket,
    address: SocketAddr,
    client: Client,
) -> io::Result<()> {
    let from = client.address.ip();
    if client.chosen && from.is_ipv6() == address.is_ipv6() {
        // The port is chosen by connect(), for the whole 4-tuple.
        bind_address_no_port(socket)?;
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    Ok(())
}

fn timed_out() -> Failure {
    io::Error::from(Errno::TIMEDOUT).into()
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
pub(super) fn now() -> std::time::Instant {
    Instant::now().into_std()
}
