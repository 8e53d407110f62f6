//! A connection to the workload: what is spoken on it, whether it is allowed, and the way to the application, which sees
//! the client's address as its peer.

use std::{
    future::poll_fn,
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
    admission::{Admission, Stage},
    baggage, connect,
    decide::{self, Admit, Speaks},
    http::{
        self, HttpVersion, ServerSettings,
        detect::{DETECTION, LAST_LOOK, MAX_REQUEST_LINE, Peeked, Sniff, classify, sniff},
    },
    served::{ConnectionId, Report, Served},
    socket::Leg,
    tcp,
    tunnel::{self, TunnelStream},
};
use crate::{
    capture::sys::tcp::bind_address_no_port,
    model::{EffectivePolicy, ResourceName},
    policy::{Authorizer, Facts, WouldBe},
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
    let report = Report::new(shared.telemetry.open(meta), Arc::clone(&served));
    let admission = Admission::new(None, peer.ip(), dialled);
    let session = Session::new(&shared, &served, admission, peer, report, id);
    let client = match accepted.into_leg() {
        Ok(client) => client,
        Err(error) => {
            tracing::warn!(workload = %served.pod.name(), %error, "cannot register a connection");
            return session.report.finish(Reason::Internal);
        }
    };
    if session.speaks != Speaks::Opaque {
        // Boxed: an idle TCP connection shall not pay for it.
        return Box::pin(async {
            match session.admit() {
                Ok(()) => session.read(Caller::Plain(client), None).await,
                Err(reason) => session.report.finish(reason),
            }
        })
        .await;
    }
    // Boxed for the same reason as outbound.
    let connected = Box::pin(async {
        session.admit()?;
        tokio::select! {
            biased;
            connected = session.connect() => connected,
            _ = client.ready(Interest::ERROR) => Err(Reason::ClientReset),
        }
    })
    .await;
    let report = session.report;
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
    let said = incoming.service();
    let service = shared.catalog.load().inbound(shown).and_then(|port| {
        let service = port.reported(said.as_deref());
        service.cloned()
    });
    let meta = meta(
        &shared,
        &served,
        Direction::Inbound,
        client,
        shown,
        service,
        0,
    );
    let report = Report::new(shared.telemetry.open(meta), Arc::clone(&served));
    let (identity, baggage) = match shared.catalog.load().workload(served.pod.name()) {
        Some(workload) => (Some(workload.identity.clone()), baggage::of(workload)),
        None => (None, String::new()),
    };
    report.set_security(Some(source.clone()), identity);
    let admission = Admission::new(Some(source), client.ip(), shown);
    let session = Session::new(&shared, &served, admission, client, report, id);
    if let Err(status) = destination {
        incoming.refuse(status);
        return session.report.finish(Reason::TunnelProtocol);
    }
    // Also where requests are read: the other agent is to know at once that nothing listens, while it has sent nothing.
    // Boxed for the same reason as outbound.
    let connected = Box::pin(async {
        session.admit()?;
        tokio::select! {
            biased;
            connected = session.connect() => connected,
            () = incoming.given_up() => Err(Reason::ClientReset),
        }
    })
    .await;
    let leg = match connected {
        Ok(leg) => leg,
        Err(reason) => {
            incoming.refuse(match reason {
                Reason::PolicyDenied => StatusCode::UNAUTHORIZED,
                _ => StatusCode::SERVICE_UNAVAILABLE,
            });
            return session.report.finish(reason);
        }
    };
    let Some(stream) = incoming.accept(&baggage) else {
        return session.report.finish(Reason::ClientReset);
    };
    if session.speaks == Speaks::Opaque {
        return tunnel::run_accepted(stream, leg, &shared, session.report).await;
    }
    // Boxed: an idle connection that carries bytes shall not pay for it.
    let caller = Caller::Tunnel(Box::new(stream));
    Box::pin(session.read(caller, Some(leg))).await;
}

/// One connection to the workload.
struct Session<'a> {
    shared: &'a Arc<Shared>,
    served: &'a Arc<Served>,
    admission: Arc<Admission>,
    /// Whom the application is to see.
    client: SocketAddr,
    report: Report,
    speaks: Speaks,
}

/// The client's side of it.
enum Caller {
    Plain(Leg),
    Tunnel(Box<TunnelStream>),
}

impl<'a> Session<'a> {
    fn new(
        shared: &'a Arc<Shared>,
        served: &'a Arc<Served>,
        admission: Admission,
        client: SocketAddr,
        mut report: Report,
        id: ConnectionId,
    ) -> Self {
        let rules = served.rules(shared);
        let speaks = rules.speaks(shared, admission.destination);
        if speaks != Speaks::Opaque {
            admission.set_stage(Stage::Requests);
        }
        let admission = Arc::new(admission);
        served.register(id, Arc::clone(&admission));
        report.set_admission(Arc::clone(&admission));
        Self {
            shared,
            served,
            admission,
            client,
            report,
            speaks,
        }
    }

    /// Decides whether the workload takes the connection, and tells which policy said so. Where its requests are decided
    /// on, they tell.
    fn admit(&self) -> Result<(), Reason> {
        let (shared, served, admission) = (self.shared, self.served, &*self.admission);
        let rules = served.rules(shared);
        let facts = admission.facts();
        let decided = rules.admit(admission);
        if admission.stage() == Stage::Requests
            && decided.refusal().is_none()
            && rules.needs_http(admission.destination.port())
        {
            return Ok(());
        }
        let (refusal, policy) = tell(shared, served, admission, &rules, &facts, decided);
        if let Some(policy) = policy {
            self.report.set_policy(policy);
        }
        refusal.map_or(Ok(()), Err)
    }

    async fn connect(&self) -> Result<Leg, Reason> {
        let note = |note: Note<'_>| note.tell(&self.report);
        let destination = self.admission.destination;
        to_application(self.shared, self.served, destination, self.client, &note).await
    }

    /// Finds out what is spoken, and serves it. `leg`: to the application, where there is a connection already.
    async fn read(self, mut caller: Caller, leg: Option<Leg>) {
        // Nobody has to wait for bytes that would be refused, so a client may be slow.
        let rules = self.served.rules(self.shared);
        if self.speaks == Speaks::Http || rules.refuses_bytes(&self.admission) {
            let settings = ServerSettings::default();
            let sniff = caller.sniff(settings.header_timeout);
            return match timeout(settings.idle_timeout, sniff).await {
                Ok(Peeked::Http(version)) => self.requests(caller, leg, version).await,
                Ok(Peeked::NotHttp) if self.speaks == Speaks::Http => {
                    self.report.finish(Reason::NotHttp);
                }
                Ok(Peeked::NotHttp) => self.bytes(caller, leg).await,
                // It came, said nothing whole and went.
                Ok(Peeked::Closed) => self.report.finish(Reason::ClientReset),
                Ok(Peeked::Undecided) | Err(_) => self.report.finish(Reason::ClientTimeout),
            };
        }
        self.detect(caller, leg).await;
    }

    /// Connects while the client's first bytes are awaited: an application that speaks first, or a client that speaks
    /// something else, makes it a connection that carries bytes.
    async fn detect(self, mut caller: Caller, mut leg: Option<Leg>) {
        let mut failed = None;
        let peeked = {
            let mut peeking = Box::pin(caller.sniff(DETECTION));
            let mut connecting = Box::pin(self.connect());
            loop {
                tokio::select! {
                    biased;
                    result = &mut connecting, if leg.is_none() => match result {
                        Ok(made) => leg = Some(made),
                        Err(reason) => {
                            failed = Some(reason);
                            // A client that speaks HTTP gets an answer; it has sent its request by now.
                            let peeked = timeout(LAST_LOOK, &mut peeking).await;
                            break peeked.unwrap_or(Peeked::Undecided);
                        }
                    },
                    peeked = &mut peeking => break peeked,
                    () = spoken(leg.as_ref()) => break Peeked::NotHttp,
                }
            }
        };
        match (peeked, failed) {
            (Peeked::Http(version), _) => self.requests(caller, leg, version).await,
            (_, Some(reason)) => self.report.finish(reason),
            (_, None) => self.bytes(caller, leg).await,
        }
    }

    async fn requests(self, caller: Caller, leg: Option<Leg>, version: HttpVersion) {
        let Self {
            shared,
            served,
            admission,
            client,
            report,
            ..
        } = self;
        let io = match caller {
            Caller::Plain(leg) => leg.into(),
            Caller::Tunnel(stream) => (*stream).into(),
        };
        let inbound = http::Inbound::new(shared, served, report, admission, client, version, leg);
        inbound.run(io).await;
    }

    /// Carries a connection that turned out to speak something else than HTTP, if that is allowed.
    async fn bytes(self, caller: Caller, leg: Option<Leg>) {
        self.admission.set_stage(Stage::Bytes);
        let connected = match self.admit() {
            Ok(()) => match leg {
                Some(leg) => Ok(leg),
                None => self.connect().await,
            },
            Err(reason) => Err(reason),
        };
        match (connected, caller) {
            (Ok(leg), Caller::Plain(client)) => {
                tcp::run(client, leg, self.shared, self.report).await;
            }
            (Ok(leg), Caller::Tunnel(stream)) => {
                tunnel::run_accepted(*stream, leg, self.shared, self.report).await;
            }
            (Err(reason), _) => self.report.finish(reason),
        }
    }
}

impl Caller {
    /// What the client speaks, once it has begun: then it may take `patience` to show it.
    async fn sniff(&mut self, patience: Duration) -> Peeked {
        match self {
            Self::Plain(leg) => sniff(leg, patience).await,
            Self::Tunnel(stream) => {
                if poll_fn(|cx| stream.poll_peek(cx, 0)).await.is_err() {
                    return Peeked::Closed;
                }
                let peeked = timeout(patience, peek_stream(stream)).await;
                peeked.unwrap_or(Peeked::Undecided)
            }
        }
    }
}

async fn peek_stream(stream: &mut TunnelStream) -> Peeked {
    let mut have = 0;
    loop {
        match poll_fn(|cx| stream.poll_peek(cx, have)).await {
            Ok(data) if data.len() > have => match classify(&data) {
                Sniff::Http1 => return Peeked::Http(HttpVersion::Http1),
                Sniff::Http2 => return Peeked::Http(HttpVersion::Http2),
                Sniff::NotHttp => return Peeked::NotHttp,
                Sniff::More if data.len() >= MAX_REQUEST_LINE => return Peeked::NotHttp,
                Sniff::More => have = data.len(),
            },
            Ok(_) | Err(_) => return Peeked::Closed,
        }
    }
}

/// Resolves when the application has said something, or has ended.
async fn spoken(leg: Option<&Leg>) {
    match leg {
        Some(leg) => {
            // An error is found by whoever carries it.
            let _ = leg.ready(Interest::READABLE).await;
        }
        None => std::future::pending().await,
    }
}

/// Decides on one request, and tells which policy said so.
pub(super) fn decide_request(
    shared: &Shared,
    served: &Served,
    admission: &Admission,
    rules: &Rules,
    facts: &Facts<'_>,
) -> (Option<Reason>, Option<ResourceName>) {
    let decided = decide::admit(&rules.policy, &rules.authorizer, facts);
    tell(shared, served, admission, rules, facts, decided)
}

/// Tells what was decided, and what policies in dry run would have changed. Returns why not, and the policy that decided.
fn tell(
    shared: &Shared,
    served: &Served,
    admission: &Admission,
    rules: &Rules,
    facts: &Facts<'_>,
    decided: Admit<'_>,
) -> (Option<Reason>, Option<ResourceName>) {
    let telemetry = &shared.telemetry;
    let (method, path) = facts
        .http
        .as_ref()
        .map_or(("", ""), |http| (http.method, http.path.normal()));
    rules.authorizer.dry_run(facts, |policy, would_be| {
        let outcome = match would_be {
            WouldBe::Allowed => Outcome::DryRunAllow,
            WouldBe::Denied => Outcome::DryRunDeny,
        };
        telemetry.decision(Some(policy), outcome);
        tracing::info!(
            workload = %served.pod.name(), client = %admission.source_ip, source = ?admission.source,
            destination = %admission.destination, %policy, outcome = outcome.as_str(), ?method, ?path, "dry run of a policy"
        );
    });
    decided.report(telemetry);
    let refusal = decided.refusal();
    if let Some(reason) = refusal {
        tracing::debug!(
            workload = %served.pod.name(), client = %admission.source_ip, source = ?admission.source,
            destination = %admission.destination, %reason, policy = ?decided.policy(), ?method, ?path, "refused"
        );
    }
    (refusal, decided.policy().cloned())
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

    /// See [`Authorizer::needs_http`].
    pub(super) fn needs_http(&self, port: u16) -> bool {
        self.authorizer.needs_http(port)
    }

    /// See [`Authorizer::looks_at_paths`].
    pub(super) fn looks_at_paths(&self) -> bool {
        self.authorizer.looks_at_paths()
    }

    fn speaks(&self, shared: &Shared, destination: SocketAddr) -> Speaks {
        let catalog = shared.catalog.load();
        let port = catalog.inbound(destination).map(|port| &**port);
        decide::speaks_inbound(port, self.needs_http(destination.port()))
    }

    fn admit(&self, admission: &Admission) -> Admit<'_> {
        let facts = admission.facts();
        match admission.stage() {
            Stage::Bytes => decide::admit(&self.policy, &self.authorizer, &facts),
            Stage::Requests => decide::admit_connection(&self.policy, &self.authorizer, &facts),
        }
    }

    /// Whether the connection would be refused if it did not speak HTTP.
    fn refuses_bytes(&self, admission: &Admission) -> bool {
        let decided = decide::admit(&self.policy, &self.authorizer, &admission.facts());
        decided.refusal().is_some()
    }

    /// Why a connection may not go on, and by which policy.
    pub(super) fn refusal(&self, admission: &Admission) -> Option<(Reason, Option<ResourceName>)> {
        let decided = self.admit(admission);
        Some((decided.refusal()?, decided.policy().cloned()))
    }

    /// Ends the connection's requests that may not go on. Returns their number.
    pub(super) fn cut_requests(&self, admission: &Admission) -> usize {
        if admission.stage() == Stage::Bytes || !self.needs_http(admission.destination.port()) {
            return 0;
        }
        admission.requests.decide_anew(|request| {
            let facts = admission.facts_of(request);
            let decided = decide::admit(&self.policy, &self.authorizer, &facts);
            match decided.refusal() {
                Some(_) => Err(decided.policy().cloned()),
                None => Ok(()),
            }
        })
    }
}

/// What is to be reported of a connection to the application.
#[derive(Clone, Copy, Debug)]
pub(super) enum Note<'n> {
    Upstream(SocketAddr, &'n ResourceName),
    AgentCookie(u64),
}

impl Note<'_> {
    pub(super) fn tell(self, report: &Report) {
        match self {
            Self::Upstream(address, workload) => {
                report.set_upstream(address, Some(workload.clone()));
            }
            Self::AgentCookie(cookie) => report.set_agent_cookie(cookie),
        }
    }
}

/// Connects to the application, on behalf of `client`.
pub(super) async fn to_application(
    shared: &Shared,
    served: &Served,
    dialled: SocketAddr,
    client: SocketAddr,
    note: &(dyn Fn(Note<'_>) + Sync),
) -> Result<Leg, Reason> {
    let application = served
        .pod
        .application(dialled)
        .ok_or(Reason::NoOriginalDestination)?;
    note(Note::Upstream(application, served.pod.name()));
    let deadline = Instant::now() + shared.options.connect_timeout;
    let dial = dial(shared, served, application, client, note);
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
    note: &(dyn Fn(Note<'_>) + Sync),
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
    note(Note::AgentCookie(socket_cookie(&socket)?));
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
