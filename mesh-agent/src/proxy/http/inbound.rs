//! The requests of one connection to a workload: whether each is allowed, what the application hears of the client, and
//! what the client gets back.
//!
//! Read from the top: [`Inbound::call`] takes a request through `authorize`, `charge` and `ask`. The application gets
//! connections of this one client alone, because it is to see the client's address on them.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use ::http::{
    HeaderName, HeaderValue, Method, Request, Response, Uri, request::Parts, uri::PathAndQuery,
};
use futures::FutureExt;
use hyper::body::{Body as _, Incoming};
use tokio::{io::Interest, task::JoinSet};

use super::{
    HttpVersion,
    body::{Body, End, Finish, Relay, Replay, Times},
    headers::{self, Doubts, Hop},
    io::Io,
    outbound::reason_of,
    pool::{PoolKey, SendFailed, Take, UpstreamBody},
    reply::{self, Refusal},
    running::{Place, Running},
    server::{self, Abort, Handler, ServerSettings, serve},
    upgrade::{Answer, Switched, Upgrade},
};
use crate::{
    catalog::InboundPort,
    model::{ConnectionPool, SpiffeId},
    policy::RequestPath,
    proxy::{
        Shared,
        admission::Admission,
        connect::{Connected, Link, now},
        inbound::{self, Rules},
        served::{Report, Served},
        socket::Leg,
    },
    resilience::{Decision, Quota, RequestFacts},
    telemetry::{Protocol, Reason, RequestGuard, TraceContext},
};

/// Who the client is, as the tunnel proved it (Envoy's name and form).
const FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// One connection to the workload on which requests come.
pub(in crate::proxy) struct Inbound {
    shared: Arc<Shared>,
    served: Arc<Served>,
    /// Until the connection has ended.
    report: Mutex<Option<Report>>,
    admission: Arc<Admission>,
    /// Whom the application is to see.
    client: SocketAddr,
    version: HttpVersion,
    /// Connections to the application.
    key: PoolKey,
    /// The first of them, where it was made before a request came.
    connected: Mutex<Option<Leg>>,
    /// Whom requests are for that do not say it: what was dialled.
    fallback: String,
    /// Value of `x-forwarded-client-cert`; `None` without a tunnel.
    forwarded: Option<HeaderValue>,
    view: Mutex<View>,
    /// What the client's raw bytes say against its requests.
    doubts: Arc<Doubts>,
    /// Connections that a request has turned into something else.
    upgraded: Mutex<JoinSet<()>>,
    /// Of an HTTP/1 connection, which ends with it: nothing of the request under way has reached the application.
    undelivered: Arc<AtomicBool>,
}

/// What requests are decided by, as long as the catalog stays the same.
#[derive(Clone)]
struct View {
    version: u64,
    rules: Rules,
    port: Option<Arc<InboundPort>>,
}

/// What the client gets, beside the application's answer.
struct Answered {
    response: Response<UpstreamBody>,
    upgrade: Option<Upgrade>,
    replay: Replay,
    quota: Option<Quota>,
}

impl Inbound {
    /// `connected`: to the application, where there is a connection already.
    pub(in crate::proxy) fn new(
        shared: &Arc<Shared>,
        served: &Arc<Served>,
        report: Report,
        admission: Arc<Admission>,
        client: SocketAddr,
        version: HttpVersion,
        connected: Option<Leg>,
    ) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let destination = admission.destination;
        let key = PoolKey {
            // Apart from every workload's own connections, and from every other client's.
            pod: 1 << 63 | NEXT.fetch_add(1, Ordering::Relaxed),
            endpoint: destination,
            source: None,
            version,
            identity: None,
        };
        let own = shared
            .catalog
            .load()
            .workload(served.pod.name())
            .map(|workload| workload.identity.clone());
        let forwarded = admission
            .source
            .as_ref()
            .and_then(|source| forwarded(own.as_ref(), source));
        Arc::new(Self {
            view: Mutex::new(view(shared, served, destination)),
            shared: Arc::clone(shared),
            served: Arc::clone(served),
            report: Mutex::new(Some(report)),
            admission,
            client,
            version,
            key,
            connected: Mutex::new(connected),
            fallback: destination.to_string(),
            forwarded,
            doubts: Arc::default(),
            upgraded: Mutex::default(),
            undelivered: Arc::default(),
        })
    }

    /// Serves the connection to its end and reports it.
    pub(in crate::proxy) async fn run(self: Arc<Self>, io: Io) {
        self.note(|report| report.set_protocol(Protocol::Http));
        // Reports the connection also when the task is cut.
        let closing = Closing(self);
        let this = &closing.0;
        let draining = this.served.draining();
        let settings = ServerSettings::default();
        let io = match this.version {
            HttpVersion::Http1 => io
                .watching(Arc::clone(&this.doubts))
                .refuse_when(&this.undelivered),
            HttpVersion::Http2 => io,
        };
        let end = serve(io, this.version, &settings, draining, Arc::clone(this)).await;
        let mut upgraded = std::mem::take(&mut *lock(&this.upgraded));
        while upgraded.join_next().await.is_some() {}
        let reason = reason_of(&end);
        let report = lock(&this.report).take();
        if let Some(report) = report {
            report.finish(reason);
        }
    }

    fn note<T>(&self, note: impl FnOnce(&Report) -> T) -> Option<T> {
        lock(&self.report).as_ref().map(note)
    }

    fn view(&self) -> View {
        let mut view = lock(&self.view);
        if view.version != self.shared.catalog.load().version {
            *view = self::view(&self.shared, &self.served, self.admission.destination);
        }
        view.clone()
    }

    /// Takes one request to its answer.
    async fn answer(
        self: &Arc<Self>,
        mut parts: Parts,
        incoming: Incoming,
        running: &Running,
        guard: &mut RequestGuard,
    ) -> Result<Answered, Refusal> {
        if self.version == HttpVersion::Http1 {
            self.doubts
                .next()
                .map_err(|what| Refusal::because(Reason::BadRequest, what))?;
        }
        headers::refuse(&parts)
            .map_err(|refused| Refusal::because(refused.reason(), refused.detail()))?;
        let hop = headers::strip_hop_by_hop(&mut parts.headers);
        let upgrade = Upgrade::of(&mut parts, &hop);
        headers::canonical(&mut parts);
        parts.headers.remove(FORWARDED_CLIENT_CERT);
        // What it is decided on again, should policy change. From here on a change finds it.
        running.begin(&parts);
        let view = self.view();
        self.authorize(&view.rules, running, guard)?;
        let path = RequestPath::new(parts.uri.path());
        let quota = self.charge(&view, &parts, &path)?;
        if view.rules.looks_at_paths()
            && let Some(uri) = with_path(&parts.uri, path.normal())
        {
            // What was decided on is what the application does.
            parts.uri = uri;
        }
        if let Some(forwarded) = &self.forwarded {
            parts
                .headers
                .insert(FORWARDED_CLIENT_CERT, forwarded.clone());
        }
        let replay = Replay::new(incoming, 0, Arc::clone(guard.bytes()));
        let asked = self.ask(parts, &hop, upgrade.as_ref(), replay, guard);
        let (response, replay) = tokio::select! {
            biased;
            asked = asked => asked?,
            policy = running.cut() => return Err(Refusal::by(Reason::PolicyDenied, policy)),
        };
        Ok(Answered {
            response,
            upgrade,
            replay,
            quota,
        })
    }

    /// Decides on the request, where policy is about requests at all; else its connection was decided on.
    fn authorize(
        &self,
        rules: &Rules,
        running: &Running,
        guard: &mut RequestGuard,
    ) -> Result<(), Refusal> {
        if !rules.needs_http(self.admission.destination.port()) {
            return Ok(());
        }
        let decided = running.with_facts(|http| {
            let facts = self.admission.facts_of(http);
            inbound::decide_request(&self.shared, &self.served, &self.admission, rules, &facts)
        });
        // Unknown facts are none that could be allowed.
        let (refusal, policy) = decided.unwrap_or((Some(Reason::Internal), None));
        if let Some(policy) = &policy {
            guard.set_policy(policy);
        }
        match refusal {
            None => Ok(()),
            Some(reason) => Err(Refusal::by(reason, policy)),
        }
    }

    /// Charges the request to the rate limits of the services in front.
    fn charge(
        &self,
        view: &View,
        parts: &Parts,
        path: &RequestPath<'_>,
    ) -> Result<Option<Quota>, Refusal> {
        let mut least: Option<Quota> = None;
        let Some(port) = &view.port else {
            return Ok(None);
        };
        let facts = RequestFacts {
            identity: self.admission.source.as_ref(),
            source: self.admission.source_ip,
            method: &parts.method,
            path: path.normal(),
            headers: &parts.headers,
        };
        for service in &port.limited {
            match service.limiters.check(&facts, now()) {
                Decision::Allowed(quota) => {
                    let less =
                        |than: &Quota| quota.as_ref().is_some_and(|q| q.remaining < than.remaining);
                    if least.as_ref().is_none_or(less) {
                        least = quota.or(least);
                    }
                }
                Decision::Refused(refused) => return Err(refused.into()),
            }
        }
        Ok(least)
    }

    /// Asks the application.
    async fn ask(
        &self,
        parts: Parts,
        hop: &Hop,
        upgrade: Option<&Upgrade>,
        mut replay: Replay,
        guard: &mut RequestGuard,
    ) -> Result<(Response<UpstreamBody>, Replay), Refusal> {
        let trace = guard.attempt(self.key.endpoint, Some(self.served.pod.name()));
        // Where there is no body, the request can be asked again on another connection.
        let again = replay.is_empty().then(|| parts.clone());
        let mut body = replay.next().ok_or(Reason::Internal)?;
        let mut parts = Some(parts);
        let mut ready: Option<Request<Body>> = None;
        let mut fresh = false;
        // Something of the request may have reached the application.
        let mut sent = false;
        let rested = match parts.as_ref().is_some_and(|p| p.method.is_idempotent()) {
            true => Take::Any,
            false => Take::Young,
        };
        loop {
            let options = ConnectionPool::default();
            let take = if fresh { Take::New } else { rested };
            let checkout = self
                .shared
                .http
                .checkout(&self.key, &options, take, || self.connect());
            let checkout = match checkout.await {
                Ok(checkout) => checkout,
                // It broke off, which is all that is known of the first time.
                Err(_) if sent => return Err(Reason::UpstreamReset.into()),
                Err(reason) => return Err(Refusal::undelivered(reason)),
            };
            guard.attempt_connected();
            let request = match (ready.take(), parts.take()) {
                (Some(request), _) => request,
                (None, Some(parts)) => {
                    let body = std::mem::take(&mut body);
                    self.request(parts, body, hop, upgrade, &trace)
                }
                (None, None) => return Err(Reason::Internal.into()),
            };
            let failed: SendFailed<Body> = match checkout.send(request).await {
                Ok(response) => {
                    guard.attempt_ended(Ok(response.status()));
                    return Ok((response, replay));
                }
                Err(failed) => failed,
            };
            // The application closed a connection that rested while the request was on its way: not a failure of the
            // request, if nothing came back.
            let undelivered = failed.refused_stream
                || (failed.nothing_sent && failed.reason == Reason::UpstreamReset);
            sent |= !undelivered;
            if !fresh && failed.reused {
                fresh = true;
                ready = failed.request;
                if ready.is_none() && repeatable(&again) {
                    parts.clone_from(&again);
                }
                if ready.is_some() || parts.is_some() {
                    continue;
                }
            }
            guard.attempt_ended(Err(failed.reason));
            return Err(match replay.client_failed() {
                Some(reason) => reason.into(),
                None if sent => failed.reason.into(),
                None => Refusal::undelivered(failed.reason),
            });
        }
    }

    /// The request as the application gets it.
    fn request(
        &self,
        mut parts: Parts,
        body: Body,
        hop: &Hop,
        upgrade: Option<&Upgrade>,
        trace: &TraceContext,
    ) -> Request<Body> {
        trace.inject(&mut parts.headers);
        let streamed = !body.is_end_stream() && body.size_hint().exact().is_none();
        headers::for_upstream(&mut parts, self.version, hop, &self.fallback, streamed);
        if let Some(upgrade) = upgrade {
            upgrade.ask(&mut parts, self.version);
        }
        Request::from_parts(parts, body)
    }

    async fn connect(&self) -> Result<Connected, Reason> {
        let first = lock(&self.connected).take();
        // An application that has said something before it was asked, or has ended, gets another connection.
        if let Some(leg) = first
            && leg.ready(Interest::READABLE).now_or_never().is_none()
        {
            return Ok(to_connected(leg, self.key.endpoint));
        }
        let leg = inbound::to_application(
            &self.shared,
            &self.served,
            self.admission.destination,
            self.client,
            &|note| {
                self.note(|report| note.tell(report));
            },
        )
        .await?;
        Ok(to_connected(leg, self.key.endpoint))
    }

    /// Turns the application's answer into the client's.
    fn respond(
        self: &Arc<Self>,
        answered: Answered,
        grpc: bool,
        mut guard: RequestGuard,
        running: Place,
    ) -> Response<Body> {
        let Answered {
            mut response,
            upgrade,
            replay,
            quota,
        } = answered;
        headers::strip_hop_by_hop(response.headers_mut());
        let answer = match upgrade {
            Some(upgrade) => upgrade.answered(response, self.version),
            None => Answer::Other(response),
        };
        let response = match answer {
            Answer::Other(response) => response,
            Answer::Switched(head, switched) => {
                guard.response_started(head.status);
                self.carry(switched, guard, running);
                return Response::from_parts(head, Body::Empty);
            }
            Answer::Broken => {
                return self.refuse(Reason::UpstreamProtocol.into(), grpc, Some(guard));
            }
        };
        guard.response_started(response.status());
        let (mut head, body) = response.into_parts();
        if let Some(quota) = &quota {
            reply::limited(&mut head.headers, quota);
        }
        let bytes = Arc::clone(guard.bytes());
        let policy = Arc::clone(running.running());
        let finish = Ending {
            guard: Some(guard),
            running,
        };
        let times = Times::default();
        let body = Relay::body(&head, body, grpc, replay.sent(), times, bytes, finish);
        Response::from_parts(head, body.until(policy))
    }

    /// Carries what a connection was switched to, until it ends or policy ends it.
    fn carry(&self, switched: Switched, mut guard: RequestGuard, running: Place) {
        let bytes = Arc::clone(guard.bytes());
        lock(&self.upgraded).spawn(async move {
            let reason = tokio::select! {
                biased;
                reason = switched.carry(&bytes) => reason,
                policy = running.cut() => {
                    if let Some(policy) = policy {
                        guard.set_policy(&policy);
                    }
                    Reason::PolicyDenied
                }
            };
            drop(running);
            guard.finish(reason);
        });
    }

    /// What became of a request that a tunnel brought is told without an answer: the client's agent decides what is made
    /// of it, a retry or an answer.
    fn abort(&self, refusal: &Refusal) -> Option<Abort> {
        self.admission.source.as_ref()?;
        if refusal.undelivered {
            if self.version == HttpVersion::Http1 {
                self.undelivered.store(true, Ordering::Relaxed);
            }
            return Some(Abort::Refused);
        }
        (refusal.reason == Reason::UpstreamReset).then_some(Abort::Reset)
    }

    /// An answer of ours.
    fn refuse(&self, refusal: Refusal, grpc: bool, guard: Option<RequestGuard>) -> Response<Body> {
        let catalog = self.shared.catalog.load();
        refusal.answer(catalog.node(), grpc, self.version, guard)
    }
}

impl Handler for Inbound {
    async fn call(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let (mut parts, incoming) = request.into_parts();
        let start = server::start(&mut parts);
        let grpc = start.grpc;
        let Some(mut guard) = self.note(|report| report.request(start)).flatten() else {
            // The connection has ended.
            return self.refuse(Reason::Drained.into(), grpc, None);
        };
        let running = self.admission.requests.add();
        match self.answer(parts, incoming, &running, &mut guard).await {
            Ok(answered) => self.respond(answered, grpc, guard, running),
            Err(refusal) => match self.abort(&refusal) {
                Some(abort) => {
                    guard.finish(refusal.reason);
                    let mut response = Response::new(Body::Empty);
                    response.extensions_mut().insert(abort);
                    response
                }
                None => self.refuse(refusal, grpc, Some(guard)),
            },
        }
    }
}

/// What is done when a response has ended.
struct Ending {
    guard: Option<RequestGuard>,
    running: Place,
}

impl Finish for Ending {
    fn finish(&mut self, end: End) {
        let Some(mut guard) = self.guard.take() else {
            return;
        };
        if let Some(code) = end.grpc_status {
            guard.set_grpc_status(code);
        }
        let cut = self.running.was_cut();
        if let Some(Some(policy)) = &cut {
            guard.set_policy(policy);
        }
        guard.finish(cut.map_or(end.reason, |_| Reason::PolicyDenied));
    }
}

struct Closing(Arc<Inbound>);

impl Drop for Closing {
    fn drop(&mut self) {
        // Dropped, a report gives the reason of the cut.
        drop(lock(&self.0.report).take());
        self.0.shared.http.forget(&self.0.key);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn view(shared: &Shared, served: &Served, destination: SocketAddr) -> View {
    // The version first: what comes after it may be newer, and is looked at again then.
    let version = shared.catalog.load().version;
    View {
        version,
        rules: served.rules(shared),
        port: shared.catalog.load().inbound(destination).cloned(),
    }
}

fn to_connected(leg: Leg, endpoint: SocketAddr) -> Connected {
    Connected {
        link: Link::Plain(leg),
        endpoint,
        permits: None,
        principals: None,
    }
}

/// `By=spiffe://...;URI=spiffe://...`: who was dialled, and who dials.
fn forwarded(own: Option<&SpiffeId>, source: &SpiffeId) -> Option<HeaderValue> {
    let by = own.map_or_else(String::new, |own| format!("By={own};"));
    HeaderValue::from_str(&format!("{by}URI={source}")).ok()
}

/// The target with another path. `None`: it has this one.
fn with_path(uri: &Uri, path: &str) -> Option<Uri> {
    if uri.path() == path || path.is_empty() {
        return None;
    }
    let target = match uri.query() {
        Some(query) => PathAndQuery::try_from(format!("{path}?{query}")),
        None => PathAndQuery::try_from(path),
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(target.ok()?);
    Uri::from_parts(parts).ok()
}

/// Whether the request may be asked twice.
fn repeatable(parts: &Option<Parts>) -> bool {
    let idempotent = |method: &Method| method.is_idempotent();
    parts
        .as_ref()
        .is_some_and(|parts| idempotent(&parts.method))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_replaced_and_the_query_stays() {
        for (uri, path, expected) in [
            ("/a/../b?x=/../y", "/b", Some("/b?x=/../y")),
            ("/a", "/a", None),
            ("//a", "/a", Some("/a")),
            ("*", "*", None),
            ("/%61", "/a", Some("/a")),
            ("http://h/%61?q", "/a", Some("http://h/a?q")),
        ] {
            let uri: Uri = uri.parse().unwrap();
            let made = with_path(&uri, path).map(|uri| uri.to_string());
            assert_eq!(made.as_deref(), expected, "{uri}");
        }
    }

    #[test]
    fn the_client_is_named_as_envoy_names_it() {
        let id = |account: &str| -> SpiffeId {
            format!("spiffe://cluster.local/ns/shop/sa/{account}")
                .parse()
                .unwrap()
        };
        assert_eq!(
            forwarded(Some(&id("db")), &id("web")).unwrap(),
            "By=spiffe://cluster.local/ns/shop/sa/db;URI=spiffe://cluster.local/ns/shop/sa/web"
        );
    }
}
