//! One request as telemetry sees it, and the guard that reports its end exactly once.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderValue, Method, StatusCode, Uri, Version};

use super::{
    Reason, TraceContext,
    conn::{ByteCounters, Conn, Direction, Peer},
    lock,
    metrics::{Answer, FlowRef, Measured},
    security::Principals,
    shared::Shared,
    trace::Spans,
};
use crate::model::{ResourceName, SpiffeId};

/// What is known when the headers of a request came. Clones count references.
#[derive(Clone, Debug)]
pub struct RequestStart {
    pub method: Method,
    pub uri: Uri,
    pub version: Version,
    /// `:authority` or `Host`.
    pub authority: Option<HeaderValue>,
    pub request_id: Option<HeaderValue>,
    pub user_agent: Option<HeaderValue>,
    pub grpc: bool,
    /// What the client says of its trace.
    pub trace: TraceContext,
}

/// Payload bytes of one request and its response.
#[derive(Debug, Default)]
pub struct RequestBytes {
    request: AtomicU64,
    response: AtomicU64,
    /// Of the client's connection, which shows them while the request lives.
    connection: Option<Arc<ByteCounters>>,
}

impl RequestBytes {
    pub fn add_request(&self, bytes: u64) {
        self.request.fetch_add(bytes, Ordering::Relaxed);
        if let Some(connection) = &self.connection {
            connection.add_sent(bytes);
        }
    }

    pub fn add_response(&self, bytes: u64) {
        self.response.fetch_add(bytes, Ordering::Relaxed);
        if let Some(connection) = &self.connection {
            connection.add_received(bytes);
        }
    }

    /// Of the request, of the response.
    pub fn get(&self) -> (u64, u64) {
        (
            self.request.load(Ordering::Relaxed),
            self.response.load(Ordering::Relaxed),
        )
    }
}

/// One attempt to have a request answered.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) upstream: Peer,
    pub(super) began: Instant,
    pub(super) connected: Option<Instant>,
    /// `Err`: without a response; `None`: it is the one that the request ends with.
    pub(super) outcome: Option<Result<StatusCode, Reason>>,
    pub(super) ended: Option<Instant>,
}

/// A request that has ended, for the log, taps and traces.
#[derive(Debug)]
pub(super) struct Finished<'a> {
    pub(super) conn: &'a Conn,
    pub(super) start: &'a RequestStart,
    pub(super) source_workload: Option<&'a ResourceName>,
    pub(super) service: Option<&'a ResourceName>,
    pub(super) route: Option<&'a Arc<str>>,
    pub(super) policy: Option<&'a ResourceName>,
    pub(super) upstream: Option<&'a Peer>,
    pub(super) security: Option<&'a Principals>,
    pub(super) attempts: u32,
    pub(super) status: Option<StatusCode>,
    pub(super) grpc_status: Option<u32>,
    pub(super) request_bytes: u64,
    pub(super) response_bytes: u64,
    /// The end, by both clocks.
    pub(super) ended_at: SystemTime,
    pub(super) ended: Instant,
    pub(super) duration: Duration,
    pub(super) phases: Phases,
    pub(super) reason: Reason,
}

/// Where the time of a request went; `None`: it did not come that far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Phases {
    /// Before the first attempt: routing, limits, queues.
    pub(super) wait: Option<Duration>,
    /// Of the last attempt: until it had a connection.
    pub(super) connect: Option<Duration>,
    /// Of the last attempt: from then until the headers of the response.
    pub(super) first_byte: Option<Duration>,
    /// Of the last attempt: all of it.
    pub(super) upstream: Option<Duration>,
}

impl Finished<'_> {
    pub(super) fn inbound(&self) -> bool {
        self.conn.meta.direction == Direction::Inbound
    }

    /// The workload that serves it.
    pub(super) fn destination_workload(&self) -> Option<&ResourceName> {
        if self.inbound() {
            Some(&self.conn.meta.workload)
        } else {
            self.upstream.and_then(|u| u.workload.as_ref())
        }
    }
}

/// Reports the end of one request: one access-log line, one request in the metrics, one server span. Kept until the
/// response's body has ended. Dropped without [`Self::finish`] it reports [`Reason::ClientReset`]: hyper drops what serves
/// a request when its client goes away.
#[derive(Debug)]
#[must_use = "dropping the guard reports that the client went away"]
pub struct RequestGuard {
    shared: Arc<Shared>,
    conn: Arc<Conn>,
    bytes: Arc<RequestBytes>,
    start: RequestStart,
    began: Instant,
    service: Option<ResourceName>,
    route: Option<Arc<str>>,
    policy: Option<ResourceName>,
    security: Option<Principals>,
    attempts: u32,
    first_attempt: Option<Instant>,
    /// The last one.
    attempt: Option<Attempt>,
    response: Option<(StatusCode, Instant)>,
    grpc_status: Option<u32>,
    reason: Option<Reason>,
    /// `None`: the request is not sampled.
    spans: Option<Box<Spans>>,
}

impl RequestGuard {
    pub(super) fn new(shared: Arc<Shared>, conn: Arc<Conn>, mut start: RequestStart) -> Self {
        conn.requests.fetch_add(1, Ordering::Relaxed);
        let inbound = conn.meta.direction == Direction::Inbound;
        shared.counts.traffic.in_flight(inbound, 1);
        let spans = shared
            .tracing
            .get()
            .and_then(|tracing| tracing.begin(&mut start.trace));
        let bytes = RequestBytes {
            connection: Some(Arc::clone(&conn.counters)),
            ..RequestBytes::default()
        };
        Self {
            shared,
            conn,
            bytes: Arc::new(bytes),
            start,
            began: Instant::now(),
            service: None,
            route: None,
            policy: None,
            security: None,
            attempts: 0,
            first_attempt: None,
            attempt: None,
            response: None,
            grpc_status: None,
            reason: None,
            spans,
        }
    }

    pub fn bytes(&self) -> &Arc<RequestBytes> {
        &self.bytes
    }

    /// The service that serves it, where a route chose another than was dialled.
    pub fn set_service(&mut self, service: &ResourceName) {
        self.service = Some(service.clone());
    }

    /// Label of the route's rule ([`crate::routing::Rule::label`]).
    pub fn set_route(&mut self, rule: &Arc<str>) {
        self.route = Some(Arc::clone(rule));
    }

    /// The policy that refused it.
    pub fn set_policy(&mut self, policy: &ResourceName) {
        self.policy = Some(policy.clone());
    }

    /// An attempt goes to an endpoint: opens a client span. Returns the context to send along.
    pub fn attempt(
        &mut self,
        address: SocketAddr,
        workload: Option<&ResourceName>,
    ) -> TraceContext {
        let now = Instant::now();
        self.attempts += 1;
        self.first_attempt.get_or_insert(now);
        self.end_attempt(None, now);
        if let (Some(spans), Some(past)) = (&mut self.spans, self.attempt.take()) {
            spans.past(past);
        }
        self.security = None;
        self.attempt = Some(Attempt {
            upstream: Peer {
                addr: address,
                workload: workload.cloned(),
            },
            began: now,
            connected: None,
            outcome: None,
            ended: None,
        });
        match &mut self.spans {
            Some(spans) => spans.attempt(&self.start.trace),
            None => self.start.trace.clone(),
        }
    }

    /// The attempt has its connection, a new one or one that was there.
    pub fn attempt_connected(&mut self) {
        if let Some(attempt) = &mut self.attempt {
            attempt.connected.get_or_insert_with(Instant::now);
        }
    }

    /// What mutual TLS proved of the connection that the attempt takes.
    pub fn set_security(&mut self, source: Option<&SpiffeId>, destination: Option<&SpiffeId>) {
        self.security = Some(Principals {
            source: source.cloned(),
            destination: destination.cloned(),
        });
    }

    /// The attempt has ended; `Err`: without a response. The last one ends with the request.
    pub fn attempt_ended(&mut self, outcome: Result<StatusCode, Reason>) {
        self.end_attempt(Some(outcome), Instant::now());
    }

    fn end_attempt(&mut self, outcome: Option<Result<StatusCode, Reason>>, now: Instant) {
        let Some(attempt) = &mut self.attempt else {
            return;
        };
        if attempt.ended.is_none() {
            attempt.ended = Some(now);
            attempt.outcome = outcome;
        }
    }

    /// The headers of the response to the client.
    pub fn response_started(&mut self, status: StatusCode) {
        self.response = Some((status, Instant::now()));
    }

    /// `grpc-status`, from the headers or the trailers.
    pub fn set_grpc_status(&mut self, code: u32) {
        self.grpc_status = Some(code);
    }

    pub fn finish(mut self, reason: Reason) {
        self.reason = Some(reason);
    }

    fn phases(&self, now: Instant) -> Phases {
        let since = |from: Instant, to: Instant| to.saturating_duration_since(from);
        let Some(attempt) = &self.attempt else {
            return Phases::default();
        };
        let connected = attempt.connected;
        Phases {
            wait: self.first_attempt.map(|at| since(self.began, at)),
            connect: connected.map(|at| since(attempt.began, at)),
            first_byte: self
                .response
                .map(|(_, at)| since(connected.unwrap_or(attempt.began), at)),
            upstream: Some(since(attempt.began, attempt.ended.unwrap_or(now))),
        }
    }

    fn report(&mut self) {
        let now = Instant::now();
        let reason = self.reason.unwrap_or(Reason::ClientReset);
        let conn = &*self.conn;
        let inbound = conn.meta.direction == Direction::Inbound;
        let (source_workload, security) = {
            let progress = lock(&conn.progress);
            let source = if inbound {
                progress.source_workload(&conn.meta)
            } else {
                Some(&conn.meta.workload)
            };
            let of_connection = inbound.then(|| progress.security.clone()).flatten();
            (source, self.security.take().or(of_connection))
        };
        let (request_bytes, response_bytes) = self.bytes.get();
        let request = Finished {
            conn,
            start: &self.start,
            source_workload,
            service: self.service.as_ref().or(conn.meta.service.as_ref()),
            route: self.route.as_ref(),
            policy: self.policy.as_ref(),
            upstream: self.attempt.as_ref().map(|a| &a.upstream),
            security: security.as_ref(),
            attempts: self.attempts,
            status: self.response.map(|(status, _)| status),
            grpc_status: self.grpc_status,
            request_bytes,
            response_bytes,
            ended_at: SystemTime::now(),
            ended: now,
            duration: now.saturating_duration_since(self.began),
            phases: self.phases(now),
            reason,
        };
        self.shared.request_finished(&request, now);
        if let Some(mut spans) = self.spans.take()
            && let Some(tracing) = self.shared.tracing.get()
        {
            if let Some(last) = &self.attempt {
                spans.past(last.clone());
            }
            tracing.end(*spans, &request);
        }
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.report();
    }
}

impl Shared {
    fn request_finished(&self, request: &Finished<'_>, now: Instant) {
        let inbound = request.inbound();
        self.counts.traffic.in_flight(inbound, -1);
        let traffic = &self.counts.traffic;
        traffic.violation(request.reason);
        if request.attempts > 0 && !inbound {
            traffic.attempts(request.service, u64::from(request.attempts));
        }
        let flow = FlowRef {
            inbound,
            source: request.source_workload,
            destination: request.destination_workload(),
            service: request.service,
            security: request.security,
            grpc: request.start.grpc,
        };
        let answer = Answer {
            code: request.status.map_or(0, |status| status.as_u16()),
            grpc_status: request.grpc_status,
            reason: request.reason,
        };
        let measured = Measured {
            duration: request.duration,
            request_bytes: request.request_bytes,
            response_bytes: request.response_bytes,
        };
        let cache = &request.conn.series;
        self.requests
            .add(cache, flow, answer, measured, self.directory(), now);
        if lock(&request.conn.progress).done {
            cache.clear();
        }
        if let Some(log) = self.access.get() {
            log.request(request);
        }
        self.taps.offer(request);
    }
}
