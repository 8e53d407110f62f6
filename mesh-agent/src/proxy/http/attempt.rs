//! The attempts of one request: endpoint after endpoint, until one answers or the policy says that it is enough.

use std::{
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant as Clock, SystemTime},
};

use ::http::{
    HeaderName, HeaderValue, Request, Response, StatusCode, header::RETRY_AFTER, request::Parts,
};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Frame};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::{
    HttpVersion,
    body::{self, Body, Replay, Sent, Times},
    headers::{self, Hop},
    outbound::{Destination, Ended, Outbound},
    plan::Plan,
    pool::{PoolKey, SendFailed, Take, UpstreamBody},
    reply::Refusal,
    upgrade::Upgrade,
};
use crate::{
    balance::{Candidates, Pick, Usability, client_key},
    catalog::{Upstream, UpstreamEndpoint},
    model::{AppProtocol, TunnelProtocol},
    policy::RequestPath,
    proxy::{
        Shared,
        connect::{self, Client, Connected, now},
        decide::{self, Way},
        served::Served,
    },
    resilience::{
        Attempt, Busy, Circumstances, Decision, Next, Outcome, Permit, Pushback, RequestFacts,
        Retries, ServiceState, Verdict,
    },
    telemetry::{Reason, RequestGuard, Retry, TraceContext},
};

/// How many times an upstream has been asked, from 1.
const ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
/// How long the first frame of a gRPC response may take that retries depend on.
const FIRST_FRAME: Duration = Duration::from_millis(10);

/// The head of the response that the client gets, and what its stream holds on to.
pub(super) struct Answered {
    pub(super) response: Response<UpstreamBody>,
    pub(super) held: Held,
    pub(super) sent: Sent,
    pub(super) times: Times,
    /// Spoken with the upstream.
    pub(super) version: HttpVersion,
    /// Taken from the body already.
    pub(super) peeked: Option<Frame<Bytes>>,
    /// Retries were wanted and there were none left.
    pub(super) exhausted: bool,
}

/// Kept until the response has ended: what counts the request, and the attempt whose result is not known before.
pub(super) struct Held {
    pub(super) upstream: Arc<Upstream>,
    pub(super) index: usize,
    pub(super) attempt: Option<Attempt>,
    _permits: [Permit; 2],
}

/// One request on its way to an endpoint.
pub(super) struct Attempts<'a> {
    outbound: &'a Arc<Outbound>,
    upstream: &'a Arc<Upstream>,
    parts: Parts,
    replay: Replay,
    grpc: bool,
    /// What the fields of the client's connection said.
    hop: Hop,
    /// It turns its connection into something else.
    upgrade: Option<&'a Upgrade>,
    retries: Retries<'a>,
    times: Times,
    hash: Option<u64>,
    candidates: Candidates<'a, UpstreamEndpoint>,
    /// Goes before them: chosen already.
    first: Option<usize>,
    /// The same, from then on.
    begun_with: Option<usize>,
    /// How many the iterator has given; when it is through all it starts again.
    looked_at: usize,
    /// Why there was no endpoint: see [`Attempts::choose`].
    failure: Reason,
    count: u32,
    connect_deadline: Option<Instant>,
}

/// An endpoint that its breaker and limits let through.
struct Candidate {
    index: usize,
    attempt: Attempt,
    permit: Permit,
}

/// How one attempt ended. One at a time lives, for moments.
#[allow(clippy::large_enum_variant)]
enum Tried {
    Answered(Response<UpstreamBody>),
    Failed { reason: Reason, outcome: Outcome },
}

impl<'a> Attempts<'a> {
    #[allow(clippy::too_many_arguments)] // what one request is made of
    pub(super) fn new(
        outbound: &'a Arc<Outbound>,
        destination: &'a Destination,
        plan: &'a Plan<'a>,
        parts: Parts,
        replay: Replay,
        hop: Hop,
        hash: Option<u64>,
        upgrade: Option<&'a Upgrade>,
    ) -> Self {
        let upstream = &destination.upstream;
        let now = Instant::now();
        let grpc = headers::is_grpc(&parts.headers);
        let client = headers::grpc_timeout(&parts.headers).map(|left| now + left);
        Self {
            times: Times {
                request: plan.timeouts.request,
                attempt: plan.timeouts.attempt,
                client,
                stream: plan.timeouts.max_stream.map(|most| now + most),
                idle: plan.timeouts.idle,
            },
            retries: Retries::new(plan.retry, &parts.method),
            candidates: candidates(outbound, upstream, hash),
            outbound,
            upstream,
            parts,
            replay,
            grpc,
            hop,
            upgrade,
            hash,
            first: None,
            begun_with: None,
            looked_at: 0,
            failure: Reason::NoEndpoints,
            count: 0,
            connect_deadline: None,
        }
    }

    /// Tries this endpoint first.
    pub(super) fn begin_with(&mut self, endpoint: SocketAddr) {
        let mut endpoints = self.upstream.endpoints.iter();
        self.first = endpoints.position(|known| known.endpoint.address == endpoint);
        self.begun_with = self.first;
    }

    /// Tries until there is an answer for the client.
    pub(super) async fn run(&mut self, guard: &mut RequestGuard) -> Result<Answered, Refusal> {
        let upstream = self.upstream;
        let policy = &upstream.service.traffic;
        let state = &upstream.state;
        state.budget.request(now());
        let pending = Instant::now() + ServiceState::pending_timeout(&policy.limits);
        let wait = || sleep_until(pending);
        let service_permit = state
            .acquire_request(&policy.limits, wait)
            .await
            .map_err(busy)?;
        let mut next = self.choose();
        if next.is_none() && self.failure == Reason::RequestLimit {
            next = state
                .acquire_place(&policy.limits, wait, || {
                    self.begin_again();
                    self.choose()
                })
                .await
                .map_err(busy)
                .map(Some)?;
        }
        let mut fresh = false;
        let telemetry = &self.outbound.shared.telemetry;
        let service = &upstream.service.name;
        let mut charged = false;
        let mut peeked = None;
        loop {
            if let Some(on) = self.candidates.panic_turned() {
                telemetry.panic(service, on);
            }
            let Some(Candidate {
                index,
                attempt,
                permit,
            }) = next.take()
            else {
                return Err(self.nobody());
            };
            self.count += 1;
            let begun = now();
            self.outbound.tell(upstream, index, attempt.transition());
            if !std::mem::replace(&mut charged, true) {
                self.charge(index)?;
            }
            let take = match fresh {
                true => Take::New,
                false if self.retries.is_repeatable() => Take::Any,
                false => Take::Young,
            };
            let mut tried = self.attempt(index, take, &attempt, guard).await;
            if let Tried::Failed {
                reason: Reason::ConnectionLimit,
                ..
            } = tried
            {
                // A connection may be idle again, or closed, soon. Nobody was asked.
                self.count -= 1;
                guard.attempt_ended(Err(Reason::ConnectionLimit));
                let mut asked = false;
                let again = || std::mem::replace(&mut asked, true).then_some(());
                drop((attempt, permit));
                state
                    .acquire_place(&policy.limits, wait, again)
                    .await
                    .map_err(|busy| limited(busy, Reason::ConnectionLimit))?;
                self.begin_again();
                next = self.choose();
                continue;
            }
            let (outcome, reason) = match &mut tried {
                Tried::Answered(response) => {
                    peeked = self.peek(response).await;
                    (self.answered(response, peeked.as_ref()), Reason::Completed)
                }
                Tried::Failed { reason, outcome } => (*outcome, *reason),
            };
            guard.attempt_ended(match &tried {
                Tried::Answered(response) => Ok(response.status()),
                Tried::Failed { reason, .. } => Err(*reason),
            });
            let following = match outcome {
                Outcome::NotConnected => self.choose(),
                _ => None,
            };
            let about = Circumstances {
                can_replay: !self.upgrades_sent(&outcome) && self.replay.can_replay(),
                another: following.is_some(),
                left: self.left(),
                now: now(),
                random: rand::random(),
            };
            let decided = if connect::is_ours(reason) || connect::is_verdict(reason) {
                Next::Pass
            } else {
                self.retries
                    .next(&outcome, &about, &state.budget, &policy.retry_budget)
            };
            if outcome == Outcome::NotConnected {
                self.failure = reason;
            }
            let (verdict, attempt) = match decided {
                // The connection was old, or the server drains: no word about the endpoint.
                Next::FreshConnection => (None, None),
                _ => self.judge(index, attempt, &outcome, reason, begun),
            };
            fresh = false;
            match decided {
                Next::Pass | Next::Exhausted => {
                    let exhausted = decided == Next::Exhausted;
                    if exhausted {
                        telemetry.retry(Some(service), Retry::LimitReached);
                    } else if self.retries.made() > 0 && verdict == Some(Verdict::Success) {
                        telemetry.retry(Some(service), Retry::Succeeded);
                    }
                    return match tried {
                        Tried::Answered(response) => {
                            self.replay.settle();
                            let version = self.version();
                            Ok(Answered {
                                response,
                                held: Held {
                                    upstream: Arc::clone(upstream),
                                    index,
                                    attempt,
                                    _permits: [service_permit, permit],
                                },
                                sent: self.replay.sent(),
                                times: self.times,
                                version,
                                peeked,
                                exhausted,
                            })
                        }
                        Tried::Failed { reason, .. } => Err(reason.into()),
                    };
                }
                Next::BudgetEmpty => {
                    telemetry.retry(Some(service), Retry::BudgetRefused);
                    drop(tried);
                    return Err(Refusal::after(Reason::RetryBudget, Duration::from_secs(1)));
                }
                Next::FreshConnection => {
                    fresh = true;
                    let breaker = policy.breaker.as_ref();
                    let state = &upstream.endpoints[index].state;
                    let again = state.admit(breaker, &upstream.ejections, now());
                    next = again.map(|attempt| Candidate {
                        index,
                        attempt,
                        permit,
                    });
                    if next.is_none() {
                        next = self.choose();
                    }
                }
                Next::NextEndpoint => next = following,
                Next::After(wait) => {
                    telemetry.retry(Some(service), Retry::Made);
                    drop(tried);
                    drop(permit);
                    self.pause(wait).await?;
                    next = self.choose().or_else(|| {
                        self.begin_again();
                        self.choose()
                    });
                }
            }
            if let Some(client) = self.replay.client_failed() {
                return Err(client.into());
            }
        }
    }

    /// Tells the breaker and the balancer what came of an attempt. The attempt stays where its end is yet to come.
    fn judge(
        &self,
        index: usize,
        attempt: Attempt,
        outcome: &Outcome,
        reason: Reason,
        begun: Clock,
    ) -> (Option<Verdict>, Option<Attempt>) {
        let upstream = self.upstream;
        let verdict = match *outcome {
            Outcome::NotConnected if connect::is_ours(reason) => return (None, Some(attempt)),
            // It answered, and means it.
            Outcome::NotConnected if connect::is_verdict(reason) => {
                let transition = attempt.succeeded(now());
                self.outbound.tell(upstream, index, transition);
                return (None, None);
            }
            Outcome::NotConnected => {
                let transition = attempt.failed(reason.as_str(), now(), rand::random());
                self.outbound.tell(upstream, index, transition);
                upstream.balancer.report(index, false);
                return (None, None);
            }
            // Known at the end of its stream.
            Outcome::Answered {
                status, grpc: None, ..
            } if self.grpc && status == StatusCode::OK => {
                attempt.answered(now());
                None
            }
            Outcome::Answered { status, grpc, .. } => {
                Some(Verdict::of_answer(status, self.grpc, grpc))
            }
            _ => Verdict::of_reason(reason),
        };
        let ok = verdict.is_none_or(|verdict| verdict == Verdict::Success);
        let state = &upstream.endpoints[index].state;
        state.observe(now().saturating_duration_since(begun), ok, now());
        upstream.balancer.report(index, ok);
        let Some(verdict) = verdict else {
            return (None, Some(attempt));
        };
        let what = match *outcome {
            Outcome::Answered { status, grpc, .. } => Ended::Answered(status, grpc),
            _ => Ended::Broken(reason),
        };
        self.outbound
            .verdict(upstream, index, attempt, verdict, &what);
        (Some(verdict), None)
    }

    /// Where retries go by the status of gRPC, which most servers send in trailers without any message before: the first
    /// frame, if it comes soon. It is passed on with the rest.
    async fn peek(&self, response: &mut Response<UpstreamBody>) -> Option<Frame<Bytes>> {
        let wanted = self.retries.wants_grpc_status() && self.replay.can_replay();
        if !self.grpc || !wanted || body::grpc_status(response.headers()).is_some() {
            return None;
        }
        match timeout(FIRST_FRAME, response.body_mut().frame()).await {
            Ok(Some(Ok(frame))) => Some(frame),
            // An error comes again when the body is read.
            _ => None,
        }
    }

    /// The next endpoint that may be tried.
    fn choose(&mut self) -> Option<Candidate> {
        let upstream = self.upstream;
        let policy = &upstream.service.traffic;
        loop {
            let first = self.first.take();
            let Some(index) = first.or_else(|| self.candidates.next()) else {
                break;
            };
            if first.is_none() && self.begun_with == Some(index) {
                continue;
            }
            self.looked_at += 1;
            let state = &upstream.endpoints[index].state;
            let breaker = policy.breaker.as_ref();
            let admitted = state.admit(breaker, &upstream.ejections, now());
            let admitted = match admitted {
                None if self.candidates.in_panic() => {
                    Some(state.admit_in_panic(breaker, &upstream.ejections))
                }
                admitted => admitted,
            };
            let Some(attempt) = admitted else {
                if self.failure == Reason::NoEndpoints {
                    self.failure = Reason::BreakerOpen;
                }
                continue;
            };
            let Some(permit) = state.acquire_request(policy.limits.max_requests_per_endpoint)
            else {
                if matches!(self.failure, Reason::NoEndpoints | Reason::BreakerOpen) {
                    self.failure = Reason::RequestLimit;
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
        // The balancer leaves out what is open.
        if self.candidates.skipped() == Some(Usability::Ejected)
            && self.failure == Reason::NoEndpoints
        {
            self.failure = Reason::BreakerOpen;
        }
        None
    }

    /// All were looked at: a retry may go to one that failed before.
    fn begin_again(&mut self) {
        self.candidates = candidates(self.outbound, self.upstream, self.hash);
        if self.count > 0 {
            self.candidates.tried();
        }
        self.begun_with = None;
        self.looked_at = 0;
    }

    fn nobody(&self) -> Refusal {
        match self.failure {
            Reason::BreakerOpen => {
                let until = self.upstream.open_until(now());
                let wait = until.map_or(Duration::from_secs(1), |until| {
                    until.saturating_duration_since(now())
                });
                Refusal::after(Reason::BreakerOpen, wait)
            }
            Reason::RequestLimit => Refusal::after(Reason::RequestLimit, Duration::from_secs(1)),
            reason => reason.into(),
        }
    }

    fn upgrades_sent(&self, outcome: &Outcome) -> bool {
        self.upgrade.is_some() && matches!(outcome, Outcome::Answered { .. })
    }

    /// Rate limits of an endpoint without an agent that would charge them.
    fn charge(&self, index: usize) -> Result<(), Refusal> {
        let limiters = &self.upstream.state.limiters;
        let limits = &self.upstream.service.traffic.rate_limits;
        if limits.is_empty() {
            return Ok(());
        }
        let outbound = self.outbound;
        let address = self.upstream.endpoints[index].endpoint.address;
        let catalog = outbound.shared.catalog.load();
        let owner = catalog.workload_by_address(address.ip());
        let captured = |name| outbound.shared.catalog.is_captured(name);
        if owner
            .is_some_and(|owner| owner.protocol == TunnelProtocol::Hbone || captured(&owner.name))
        {
            return Ok(());
        }
        let path = RequestPath::new(self.parts.uri.path());
        let source = catalog.workload(outbound.served.pod.name());
        let facts = RequestFacts {
            identity: source.map(|source| &source.identity),
            source: outbound.client.address.ip(),
            method: &self.parts.method,
            path: path.normal(),
            headers: &self.parts.headers,
        };
        match limiters.check(&facts, now()) {
            Decision::Allowed(_) => Ok(()),
            Decision::Refused(refused) => Err(refused.into()),
        }
    }

    async fn attempt(
        &mut self,
        index: usize,
        take: Take,
        admitted: &Attempt,
        guard: &mut RequestGuard,
    ) -> Tried {
        let outbound = self.outbound;
        let endpoint = &self.upstream.endpoints[index].endpoint;
        let trace = guard.attempt(endpoint.address, endpoint.workload.as_ref());
        let not_connected = |reason| Tried::Failed {
            reason,
            outcome: Outcome::NotConnected,
        };
        let (key, http) = match self.key(index) {
            Ok(key) => key,
            Err(reason) => return not_connected(reason),
        };
        let policy = &self.upstream.service.traffic;
        let options = &outbound.shared.options;
        let total = policy.connect_timeout.unwrap_or(options.connect_timeout);
        let deadline = *self
            .connect_deadline
            .get_or_insert_with(|| Instant::now() + total);
        let another = self.looked_at < self.upstream.endpoints.len();
        let soon = if another {
            connect::attempt_deadline(Instant::now(), deadline, options.attempt_timeout)
        } else {
            deadline
        };
        let connecting = outbound.shared.http.checkout(&key, &policy.pool, take, || {
            connect(outbound, self.upstream, index, soon)
        });
        let checkout = {
            let connecting = timeout_at(soon, connecting);
            let late = clock(&self.replay, &self.times);
            tokio::select! {
                biased;
                connected = connecting => match connected {
                    Ok(Ok(checkout)) => checkout,
                    Ok(Err(reason)) => return not_connected(reason),
                    Err(_) => return not_connected(Reason::UpstreamTimeout),
                },
                reason = late => return Tried::Failed { reason, outcome: Outcome::Final },
            }
        };
        self.connect_deadline = None;
        guard.attempt_connected();
        if let Some((source, destination)) = checkout.principals() {
            guard.set_security(Some(source), Some(destination));
        }
        if !checkout.is_reused() {
            admitted.connected(now());
        }
        let Some(body) = self.replay.next() else {
            return Tried::Failed {
                reason: self.replay.client_failed().unwrap_or(Reason::ClientReset),
                outcome: Outcome::Final,
            };
        };
        let mut request = self.request(http, body, &trace);
        body::pass_expectation(&mut request, &self.replay, self.parts.version);
        let sending = checkout.send(request);
        let sent = tokio::select! {
            biased;
            sent = sending => sent,
            reason = clock(&self.replay, &self.times) => {
                let outcome = match reason {
                    Reason::AttemptTimeout => Outcome::TimedOut,
                    _ => Outcome::Final,
                };
                return Tried::Failed { reason, outcome };
            }
        };
        match sent {
            Ok(response) => Tried::Answered(response),
            Err(failed) => self.broken(&failed),
        }
    }

    fn broken(&self, failed: &SendFailed<Body>) -> Tried {
        if let Some(reason) = self.replay.client_failed() {
            return Tried::Failed {
                reason,
                outcome: Outcome::Final,
            };
        }
        let outcome = match failed.refused_stream {
            true => Outcome::StreamRefused,
            false => Outcome::Broken {
                // Not where a stream alone was reset: the connection lives, so the server has seen the request.
                idle: failed.reused,
                nothing_sent: failed.nothing_sent,
            },
        };
        Tried::Failed {
            reason: failed.reason,
            outcome,
        }
    }

    /// What an answer means for retries.
    fn answered(
        &self,
        response: &Response<UpstreamBody>,
        peeked: Option<&Frame<Bytes>>,
    ) -> Outcome {
        let fields = response.headers();
        let pushback = match headers::pushback(fields) {
            Some(headers::Pushback::After(wait)) => Some(Pushback::Exactly(wait)),
            Some(headers::Pushback::Never) => Some(Pushback::Never),
            None if fields.contains_key(RETRY_AFTER) => {
                headers::retry_after(fields, SystemTime::now()).map(Pushback::Least)
            }
            None => None,
        };
        Outcome::Answered {
            status: response.status(),
            grpc: if self.grpc {
                let trailers = peeked.and_then(Frame::trailers_ref);
                body::grpc_status(fields).or_else(|| body::grpc_status(trailers?))
            } else {
                None
            },
            pushback,
        }
    }

    /// Until the request's deadline.
    fn left(&self) -> Option<Duration> {
        let (at, _) = self.times.next(&self.replay.sent(), None)?;
        Some(at.saturating_duration_since(Instant::now()))
    }

    async fn pause(&self, wait: Duration) -> Result<(), Refusal> {
        let times = Times {
            attempt: None,
            ..self.times
        };
        tokio::select! {
            () = sleep(wait) => Ok(()),
            reason = clock(&self.replay, &times) => Err(reason.into()),
        }
    }

    fn version(&self) -> HttpVersion {
        version(self.outbound, self.upstream)
    }

    /// Which connections the attempt may take, and the version that is spoken on them.
    fn key(&self, index: usize) -> Result<(PoolKey, HttpVersion), Reason> {
        let http = self.version();
        let address = self.upstream.endpoints[index].endpoint.address;
        let key = key(
            &self.outbound.shared,
            &self.outbound.served,
            self.outbound.client,
            http,
            address,
        )?;
        Ok((key, http))
    }

    /// The request as this attempt sends it.
    fn request(&self, http: HttpVersion, body: Body, trace: &TraceContext) -> Request<Body> {
        let mut parts = self.parts.clone();
        parts
            .headers
            .insert(ATTEMPT_COUNT, HeaderValue::from(self.count));
        trace.inject(&mut parts.headers);
        if let Some(client) = self.times.client {
            let left = client.saturating_duration_since(Instant::now());
            headers::reduce_grpc_timeout(&mut parts.headers, left);
        }
        let streamed = !body.is_end_stream() && body.size_hint().exact().is_none();
        headers::for_upstream(
            &mut parts,
            http,
            &self.hop,
            &self.outbound.fallback,
            streamed,
        );
        if let Some(upgrade) = self.upgrade {
            upgrade.ask(&mut parts, http);
        }
        Request::from_parts(parts, body)
    }
}

/// What the backend's port declares, else what the client speaks.
pub(super) fn version(outbound: &Outbound, upstream: &Upstream) -> HttpVersion {
    match upstream.port.app_protocol {
        AppProtocol::Http2 | AppProtocol::Grpc => HttpVersion::Http2,
        _ => outbound.version,
    }
}

/// Which connections requests of a workload to an endpoint may take.
pub(super) fn key(
    shared: &Shared,
    served: &Served,
    client: Client,
    version: HttpVersion,
    endpoint: SocketAddr,
) -> Result<PoolKey, Reason> {
    let catalog = &shared.catalog;
    let way = decide::way(&catalog.load(), |name| catalog.is_captured(name), endpoint)?;
    Ok(PoolKey {
        pod: served.pod.cookie(),
        endpoint,
        source: client.chosen.then(|| client.address.ip()),
        version,
        identity: match way {
            Way::Plain => None,
            Way::Tunnel { expected, .. } => Some(expected),
        },
    })
}

fn busy(busy: Busy) -> Refusal {
    limited(busy, Reason::RequestLimit)
}

fn limited(busy: Busy, limit: Reason) -> Refusal {
    let reason = match busy {
        Busy::Limit => limit,
        Busy::QueueFull | Busy::TimedOut => Reason::PendingLimit,
    };
    Refusal::after(reason, Duration::from_secs(1))
}

fn candidates<'a>(
    outbound: &Outbound,
    upstream: &'a Upstream,
    hash: Option<u64>,
) -> Candidates<'a, UpstreamEndpoint> {
    let affinity = upstream.service.client_ip_affinity;
    let policy = &upstream.service.traffic;
    let catalog = outbound.shared.catalog.load();
    let pick = Pick {
        affinity: affinity.then(|| client_key(outbound.client.address.ip())),
        hash,
        client: connect::place_of(&catalog, outbound.served.pod.as_ref(), policy),
        may_panic: policy
            .breaker
            .as_ref()
            .is_none_or(|breaker| breaker.max_ejection_percent < 100),
        now: now(),
    };
    upstream
        .balancer
        .candidates(&upstream.endpoints, pick, &mut rand::rng())
}

/// Some endpoint that takes traffic, for what does not count.
pub(super) fn any(outbound: &Outbound, upstream: &Upstream) -> Option<usize> {
    let now = now();
    candidates(outbound, upstream, None).find(|index| upstream.endpoints[*index].state.usable(now))
}

/// Makes a connection to an endpoint, within the limits.
pub(super) async fn connect(
    outbound: &Outbound,
    upstream: &Upstream,
    index: usize,
    deadline: Instant,
) -> Result<Connected, Reason> {
    let policy = &upstream.service.traffic;
    let endpoint = &upstream.endpoints[index];
    let service = upstream
        .state
        .connections
        .acquire(policy.limits.max_connections);
    let own = endpoint
        .state
        .acquire(policy.limits.max_connections_per_endpoint);
    let (Some(service), Some(own)) = (service, own) else {
        return Err(Reason::ConnectionLimit);
    };
    let mut connected = connect::to_endpoint(
        &outbound.shared,
        outbound.served.pod.as_ref(),
        endpoint.endpoint.address,
        &upstream.service.name,
        outbound.client,
        deadline,
    )
    .await?;
    connected.permits = Some([service, own]);
    Ok(connected)
}

/// Resolves when a deadline has passed; those that run from the end of the request start when it has gone out.
async fn clock(replay: &Replay, times: &Times) -> Reason {
    if !times.any() {
        return std::future::pending().await;
    }
    let sent = replay.sent();
    let mut flushed = pin!(replay.flushed());
    let mut waits = true;
    loop {
        let next = times.next(&sent, None);
        let passed = async {
            match next {
                Some((at, reason)) => {
                    sleep_until(at).await;
                    reason
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = &mut flushed, if waits => waits = false,
            reason = passed => {
                // That of idleness moves on.
                let next = times.next(&sent, None);
                if next.is_some_and(|(at, _)| at <= Instant::now()) {
                    return reason;
                }
            }
        }
    }
}
