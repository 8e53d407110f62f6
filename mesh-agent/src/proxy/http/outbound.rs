//! The requests of one captured connection: which rule each takes, where it goes, and what the client gets back.
//!
//! Read from the top: [`Outbound::call`] takes a request through `route`, the attempts (`attempt`) and `respond`; every
//! way out is an answer, made here or by an endpoint.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ::http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode,
    header::{HOST, LOCATION, SET_COOKIE},
    request::Parts,
};
use hyper::body::Incoming;
use tokio::task::JoinSet;

use super::{
    HttpVersion,
    attempt::{self, Answered, Attempts, Held},
    body::{Body, End, Finish, Relay, Replay},
    headers::{self, Doubts},
    io::Io,
    mirror,
    plan::Plan,
    reply::Refusal,
    server::{self, Handler, ServerEnd, ServerSettings, serve},
    upgrade::{Answer, Upgrade},
};
use crate::{
    balance::{client_key, hash_key},
    catalog::{Snapshot, Upstream},
    model::{HashKey, Strategy},
    proxy::{
        Shared,
        connect::{Client, Connected, now},
        served::{Report, Served},
    },
    resilience::{Attempt, Transition, Verdict},
    routing::{Cors, Dialled, Filters, RequestView, Rule},
    telemetry::{Protocol, Reason, RequestGuard},
};

/// Bytes of a request's body that are kept for another attempt.
pub(super) const REPLAY: usize = 64 << 10;

/// One captured connection on which requests come.
pub(in crate::proxy) struct Outbound {
    pub(super) shared: Arc<Shared>,
    pub(super) served: Arc<Served>,
    /// Until the connection has ended.
    report: Mutex<Option<Report>>,
    pub(super) dialled: SocketAddr,
    pub(super) client: Client,
    pub(super) version: HttpVersion,
    /// Whom requests of clients are for that do not say it: what was dialled.
    pub(super) fallback: String,
    /// The endpoint that was connected to while the protocol was detected: the first request's.
    first: Mutex<Option<SocketAddr>>,
    /// What is wrong with the bytes of the requests.
    doubts: Arc<Doubts>,
    /// Connections that a request has turned into something else.
    upgraded: Mutex<JoinSet<()>>,
}

/// Where a request goes.
pub(super) struct Destination {
    pub(super) upstream: Arc<Upstream>,
    pub(super) rule: Option<Arc<Rule>>,
    /// Position among the rule's backends.
    backend: Option<usize>,
    /// The client's own headers, where CORS answers to them.
    asked: Option<HeaderMap>,
}

impl Destination {
    /// The backend's own filters, then the rule's: the order in which a response meets them.
    fn filters(&self) -> impl Iterator<Item = &Filters> {
        let rule = self.rule.as_deref();
        let backend = rule
            .zip(self.backend)
            .and_then(|(rule, at)| rule.backends.get(at));
        backend
            .map(|backend| &backend.filters)
            .into_iter()
            .chain(rule.map(|rule| &rule.filters))
    }
}

enum Routed {
    To(Destination),
    /// A redirect, or the answer to a preflight.
    Answer(Response<Body>),
}

impl Outbound {
    pub(in crate::proxy) fn new(
        shared: Arc<Shared>,
        served: Arc<Served>,
        report: Report,
        dialled: SocketAddr,
        client: Client,
        version: HttpVersion,
        first: Option<SocketAddr>,
    ) -> Arc<Self> {
        Arc::new(Self {
            shared,
            served,
            report: Mutex::new(Some(report)),
            dialled,
            client,
            version,
            fallback: dialled.to_string(),
            first: Mutex::new(first),
            doubts: Arc::default(),
            upgraded: Mutex::default(),
        })
    }

    fn report(&self) -> MutexGuard<'_, Option<Report>> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn first(&self) -> MutexGuard<'_, Option<SocketAddr>> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the request goes by the routes of now, and what they do to it on the way.
    fn route(&self, catalog: &Snapshot, parts: &mut Parts) -> Result<Routed, Refusal> {
        let dialled = catalog
            .upstream(self.dialled.ip(), self.dialled.port())
            .ok_or(Reason::NoServicePort)?;
        let service = &dialled.service.name;
        let Some(table) = catalog.routes(
            &self.served.pod.name().namespace,
            service,
            dialled.port.port,
        ) else {
            return Ok(Routed::To(Destination {
                upstream: Arc::clone(dialled),
                rule: None,
                backend: None,
                asked: None,
            }));
        };
        let view = RequestView {
            method: &parts.method,
            uri: &parts.uri,
            headers: &parts.headers,
        };
        let found = table.find(view).ok_or(Reason::RouteNotFound)?;
        let rule = Arc::clone(found.rule);
        let prefix = found.prefix;
        if let Some(answer) = self.answered_by_rule(&rule.filters, parts, prefix) {
            return Ok(Routed::Answer(answer));
        }
        let own = rule
            .policy
            .as_ref()
            .and_then(|policy| policy.redistribute_unavailable);
        let redistribute = own.unwrap_or(dialled.service.traffic.redistribute_unavailable);
        let ipv6 = self.dialled.is_ipv6();
        let backend = rule
            .pick(redistribute, |backend| {
                let found = backend.service.as_ref().ok();
                let upstream = found.and_then(|(name, port)| catalog.backend(name, *port, ipv6));
                upstream.is_some_and(|upstream| takes_traffic(upstream))
            })
            .ok_or(Reason::BackendNotFound)?;
        let chosen = rule.backends.get(backend).ok_or(Reason::Internal)?;
        let (name, port) = chosen
            .service
            .as_ref()
            .map_err(|_| Reason::BackendNotFound)?;
        let upstream = catalog
            .backend(name, *port, ipv6)
            .ok_or(Reason::BackendNotFound)?;
        let asked = rule.filters.cors.is_some().then(|| parts.headers.clone());
        for filters in [&rule.filters, &chosen.filters] {
            if let Some(headers) = &filters.request_headers {
                headers.apply(&mut parts.headers);
            }
            if let Some(rewrite) = &filters.rewrite {
                rewrite.apply(&mut parts.uri, &mut parts.headers, prefix);
            }
        }
        Ok(Routed::To(Destination {
            upstream: Arc::clone(upstream),
            rule: Some(rule),
            backend: Some(backend),
            asked,
        }))
    }

    /// The answer that a rule gives by itself.
    fn answered_by_rule(
        &self,
        filters: &Filters,
        parts: &Parts,
        prefix: Option<&str>,
    ) -> Option<Response<Body>> {
        if let Some(cors) = &filters.cors
            && Cors::is_preflight(&parts.method, &parts.headers)
        {
            let mut response = Response::new(Body::Empty);
            *response.status_mut() = StatusCode::NO_CONTENT;
            *response.headers_mut() = cors.preflight(&parts.headers);
            return Some(response);
        }
        let redirect = filters.redirect.as_ref()?;
        let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
        let dialled = Dialled {
            scheme: "http",
            host,
            port: self.dialled.port(),
        };
        let location = redirect.location(&parts.uri, dialled, prefix);
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = StatusCode::from_u16(redirect.status).unwrap_or(StatusCode::FOUND);
        response
            .headers_mut()
            .insert(LOCATION, HeaderValue::from_str(&location).ok()?);
        Some(response)
    }

    /// Takes one request to its answer.
    async fn answer(
        self: &Arc<Self>,
        mut parts: Parts,
        incoming: Incoming,
        guard: &mut Option<RequestGuard>,
    ) -> Result<Response<Body>, Refusal> {
        let Some(open) = guard.as_mut() else {
            return Err(Reason::Drained.into());
        };
        if self.version == HttpVersion::Http1 {
            self.doubts
                .next()
                .map_err(|what| Refusal::because(Reason::BadRequest, what))?;
        }
        headers::refuse(&parts)
            .map_err(|refused| Refusal::because(refused.reason(), refused.detail()))?;
        headers::canonical(&mut parts);
        let hop = headers::strip_hop_by_hop(&mut parts.headers);
        let upgrade = Upgrade::of(&mut parts, &hop);
        let catalog = self.shared.catalog.snapshot();
        let destination = match self.route(&catalog, &mut parts)? {
            Routed::To(destination) => destination,
            Routed::Answer(response) => {
                open.response_started(response.status());
                if let Some(guard) = guard.take() {
                    guard.finish(Reason::Completed);
                }
                return Ok(response);
            }
        };
        let upstream = &destination.upstream;
        open.set_service(&upstream.service.name);
        if let Some(rule) = &destination.rule {
            open.set_route(&rule.label);
        }
        let plan = Plan::of(&upstream.service.traffic, destination.rule.as_deref());
        let (hash, cookie) = self.hash(upstream, &parts);
        let replay = Replay::new(incoming, REPLAY, Arc::clone(open.bytes()));
        if upgrade.is_none() {
            mirror::mirror(self, &catalog, destination.filters(), &parts, &hop, &replay);
        }
        let grpc = headers::is_grpc(&parts.headers);
        let mut attempts = Attempts::new(
            self,
            &destination,
            &plan,
            parts,
            replay,
            hop,
            hash,
            upgrade.as_ref(),
        );
        if let Some(first) = self.first().take() {
            attempts.begin_with(first);
        }
        let answered = attempts.run(open).await?;
        self.respond(answered, &destination, grpc, cookie, upgrade, guard)
    }

    /// The key of consistent hashing, and the cookie to issue for it.
    fn hash(&self, upstream: &Upstream, parts: &Parts) -> (Option<u64>, Option<HeaderValue>) {
        let balancer = &upstream.service.traffic.load_balancer;
        if balancer.strategy != Strategy::ConsistentHash {
            return (None, None);
        }
        match &balancer.hash {
            HashKey::SourceAddress => {
                let ip = self.client.address.ip();
                (Some(client_key(ip)), None)
            }
            HashKey::Header(name) => {
                let value = parts.headers.get(name);
                (value.map(|value| hash_key(value.as_bytes())), None)
            }
            HashKey::QueryParameter(name) => {
                let query = parts.uri.query().unwrap_or_default();
                let value = query
                    .split('&')
                    .filter_map(|pair| pair.split_once('='))
                    .find_map(|(key, value)| (key == &**name).then_some(value));
                (value.map(|value| hash_key(value.as_bytes())), None)
            }
            HashKey::Cookie { name, path, ttl } => {
                if let Some(value) = headers::cookie(&parts.headers, name) {
                    return (Some(hash_key(value)), None);
                }
                let value: u64 = rand::random();
                let key = hash_key(format!("{value:016x}").as_bytes());
                (
                    Some(key),
                    headers::set_cookie(name, value, path.as_deref(), *ttl),
                )
            }
        }
    }

    /// Turns an endpoint's answer into the client's.
    #[allow(clippy::too_many_arguments)] // what one response is made of
    fn respond(
        self: &Arc<Self>,
        answered: Answered,
        destination: &Destination,
        grpc: bool,
        cookie: Option<HeaderValue>,
        upgrade: Option<Upgrade>,
        guard: &mut Option<RequestGuard>,
    ) -> Result<Response<Body>, Refusal> {
        let Answered {
            mut response,
            held,
            sent,
            times,
            version,
            peeked,
            exhausted,
        } = answered;
        headers::strip_hop_by_hop(response.headers_mut());
        let answer = match upgrade {
            Some(upgrade) => upgrade.answered(response, version),
            None => Answer::Other(response),
        };
        let (mut head, next) = match answer {
            Answer::Other(response) => {
                let (head, body) = response.into_parts();
                (head, Ok(body))
            }
            Answer::Switched(head, switched) => (head, Err(switched)),
            Answer::Broken => return Err(Reason::UpstreamProtocol.into()),
        };
        let Some(mut guard) = guard.take() else {
            return Err(Reason::Drained.into());
        };
        guard.response_started(head.status);
        for filters in destination.filters() {
            if let Some(headers) = &filters.response_headers {
                headers.apply(&mut head.headers);
            }
            if let (Some(cors), Some(asked)) = (&filters.cors, &destination.asked) {
                cors.respond(asked, &mut head.headers);
            }
        }
        if let Some(cookie) = cookie {
            head.headers.append(SET_COOKIE, cookie);
        }
        let body = match next {
            Ok(body) => body,
            Err(switched) => {
                let bytes = Arc::clone(guard.bytes());
                self.upgraded().spawn(async move {
                    let reason = switched.carry(&bytes).await;
                    drop(held);
                    guard.finish(reason);
                });
                return Ok(Response::from_parts(head, Body::Empty));
            }
        };
        let bytes = Arc::clone(guard.bytes());
        let finish = Ending {
            outbound: Arc::clone(self),
            held: Some(held),
            guard: Some(guard),
            status: head.status,
            grpc,
            exhausted,
        };
        let body = Relay::body(&head, (peeked, body), grpc, sent, times, bytes, finish);
        Ok(Response::from_parts(head, body))
    }

    /// Tells the breaker what came of an attempt.
    pub(super) fn verdict(
        &self,
        upstream: &Upstream,
        index: usize,
        attempt: Attempt,
        verdict: Verdict,
        what: &Ended,
    ) {
        let transition = match (verdict, what) {
            (Verdict::Success, _) => attempt.request_succeeded(now()),
            (_, Ended::Broken(reason)) => {
                attempt.request_ended(verdict, reason.as_str(), now(), rand::random())
            }
            (_, Ended::Answered(status, grpc)) => {
                let text = match grpc {
                    Some(code) => format!("status {}, grpc-status {code}", status.as_u16()),
                    None => format!("status {}", status.as_u16()),
                };
                attempt.request_ended(verdict, &text, now(), rand::random())
            }
        };
        self.tell(upstream, index, transition);
    }

    /// Logs and counts what became of a breaker.
    pub(super) fn tell(&self, upstream: &Upstream, index: usize, transition: Option<Transition>) {
        let address = upstream.endpoints[index].endpoint.address;
        let service = &upstream.service.name;
        self.shared.telemetry.breaker(service, address, transition);
    }

    fn upgraded(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.upgraded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a backend has an endpoint that may get the next request.
fn takes_traffic(upstream: &Upstream) -> bool {
    let now = now();
    let mut endpoints = upstream.endpoints.iter();
    endpoints.any(|endpoint| endpoint.endpoint.weight > 0 && endpoint.state.usable(now))
}

/// How an attempt ended, as it is shown of the endpoint.
pub(super) enum Ended {
    /// With its grpc-status.
    Answered(StatusCode, Option<u32>),
    Broken(Reason),
}

/// What is done when a response has ended.
struct Ending {
    outbound: Arc<Outbound>,
    held: Option<Held>,
    guard: Option<RequestGuard>,
    status: StatusCode,
    grpc: bool,
    exhausted: bool,
}

impl Finish for Ending {
    fn finish(&mut self, end: End) {
        if let Some(mut held) = self.held.take()
            && let Some(attempt) = held.attempt.take()
        {
            let verdict = match end.reason {
                Reason::Completed => {
                    Some(Verdict::of_answer(self.status, self.grpc, end.grpc_status))
                }
                reason => Verdict::of_reason(reason),
            };
            if let Some(verdict) = verdict {
                let what = match end.reason {
                    Reason::Completed => Ended::Answered(self.status, end.grpc_status),
                    reason => Ended::Broken(reason),
                };
                self.outbound
                    .verdict(&held.upstream, held.index, attempt, verdict, &what);
            }
        }
        let Some(mut guard) = self.guard.take() else {
            return;
        };
        if let Some(code) = end.grpc_status {
            guard.set_grpc_status(code);
        }
        guard.finish(match end.reason {
            Reason::Completed if self.exhausted => Reason::RetriesExhausted,
            reason => reason,
        });
    }
}

impl Handler for Outbound {
    async fn call(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let (mut parts, incoming) = request.into_parts();
        let start = server::start(&mut parts);
        let grpc = start.grpc;
        let mut guard = self
            .report()
            .as_ref()
            .and_then(|report| report.request(start));
        match self.answer(parts, incoming, &mut guard).await {
            Ok(response) => response,
            Err(refusal) => {
                let catalog = self.shared.catalog.load();
                refusal.answer(catalog.node(), grpc, self.version, guard)
            }
        }
    }
}

impl Outbound {
    /// Serves the connection to its end and reports it.
    pub(in crate::proxy) async fn run(self: Arc<Self>, io: Io) {
        if let Some(report) = &*self.report() {
            report.set_protocol(Protocol::Http);
        }
        // Reports the connection also when the task is cut.
        let closing = Closing(self);
        let this = &closing.0;
        let draining = this.served.draining();
        let io = match this.version {
            HttpVersion::Http1 => io.watching(Arc::clone(&this.doubts)),
            HttpVersion::Http2 => io,
        };
        let end = serve(
            io,
            this.version,
            &ServerSettings::default(),
            draining,
            Arc::clone(this),
        )
        .await;
        let mut upgraded = std::mem::take(&mut *this.upgraded());
        while upgraded.join_next().await.is_some() {}
        closing.end(reason_of(&end));
    }
}

/// What the end of a client's connection means.
pub(super) fn reason_of(end: &ServerEnd) -> Reason {
    match end {
        ServerEnd::Done | ServerEnd::Idle => Reason::Completed,
        ServerEnd::Gone(error) => {
            tracing::debug!(%error, "a client's connection broke");
            Reason::ClientReset
        }
        ServerEnd::Protocol(error) => {
            tracing::debug!(%error, "a client does not speak HTTP as it should");
            if error.is_parse_too_large() {
                Reason::RequestTooLarge
            } else {
                Reason::BadRequest
            }
        }
        ServerEnd::HeaderTimeout => Reason::ClientTimeout,
    }
}

struct Closing(Arc<Outbound>);

impl Closing {
    fn end(self, reason: Reason) {
        let report = self.0.report().take();
        if let Some(report) = report {
            report.finish(reason);
        }
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        // Dropped, it gives the reason of the cut.
        drop(self.0.report().take());
    }
}

/// Gives a connection that was made while the client's protocol was detected to the pool.
pub(in crate::proxy) async fn adopt(
    shared: &Shared,
    served: &Served,
    client: Client,
    version: HttpVersion,
    upstream: &Upstream,
    connected: Connected,
) {
    // An endpoint that is reached in another way by now gets a new one.
    if let Ok(key) = attempt::key(shared, served, client, version, connected.endpoint) {
        let options = &upstream.service.traffic.pool;
        shared.http.adopt(&key, connected, options).await;
    }
}
