//! The spans of a sampled request: who decides that it is sampled, and what its end hands to the export.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime},
};

use http::StatusCode;
use tokio::sync::mpsc;

use super::{TraceContext, w3c};
use crate::{
    model::ResourceName,
    telemetry::{
        Reason,
        metrics::Counts,
        request::{Attempt, Finished, RequestStart},
        security,
    },
};

/// Decides which requests are sampled, and takes the spans of those that are.
#[derive(Debug)]
pub(in crate::telemetry) struct Tracing {
    /// Share of the requests that begin a trace here.
    pub(super) ratio: f64,
    pub(super) queue: mpsc::Sender<Box<Trace>>,
    pub(super) counts: Arc<Counts>,
}

impl Tracing {
    /// A request has come. What its client decided is respected; where nobody has decided, this does.
    pub(in crate::telemetry) fn begin(&self, context: &mut TraceContext) -> Option<Box<Spans>> {
        if context.trace == 0 {
            (context.trace, context.span) = (w3c::random_trace(), w3c::random_span());
            (context.changed, context.drop_state) = (true, true);
        }
        let sampled = context.sampled.unwrap_or_else(|| {
            context.changed = true;
            rand::random::<f64>() < self.ratio
        });
        context.sampled = Some(sampled);
        sampled.then(|| {
            Box::new(Spans {
                server: w3c::random_span(),
                clients: Vec::new(),
                attempts: Vec::new(),
            })
        })
    }

    /// A sampled request has ended. While the queue is full, spans are lost and counted.
    pub(in crate::telemetry) fn end(&self, spans: Spans, request: &Finished<'_>) {
        let trace = Box::new(Trace::new(spans, request));
        let number = trace.spans();
        if self.queue.try_send(trace).is_err() {
            let dropped = &self.counts.traffic.spans_dropped;
            dropped.fetch_add(number, Ordering::Relaxed);
        }
    }
}

/// Of one sampled request, while it lives.
#[derive(Debug)]
pub(in crate::telemetry) struct Spans {
    server: u64,
    /// One for each attempt.
    clients: Vec<u64>,
    attempts: Vec<Attempt>,
}

impl Spans {
    /// An attempt begins: what it sends along.
    pub(in crate::telemetry) fn attempt(&mut self, context: &TraceContext) -> TraceContext {
        let span = w3c::random_span();
        self.clients.push(span);
        TraceContext {
            span,
            changed: true,
            ..context.clone()
        }
    }

    /// An attempt has ended.
    pub(in crate::telemetry) fn past(&mut self, attempt: Attempt) {
        self.attempts.push(attempt);
    }
}

/// All that the spans of a request say.
#[derive(Debug)]
pub(super) struct Trace {
    pub(super) server: u64,
    /// With the IDs of their spans.
    pub(super) attempts: Vec<(u64, Attempt)>,
    pub(super) start: RequestStart,
    pub(super) workload: ResourceName,
    pub(super) inbound: bool,
    pub(super) source: SocketAddr,
    pub(super) source_workload: Option<ResourceName>,
    pub(super) service: Option<ResourceName>,
    pub(super) route: Option<Arc<str>>,
    pub(super) policy: Option<ResourceName>,
    pub(super) security: &'static str,
    pub(super) status: Option<StatusCode>,
    pub(super) grpc_status: Option<u32>,
    pub(super) request_bytes: u64,
    pub(super) response_bytes: u64,
    pub(super) reason: Reason,
    pub(super) duration: Duration,
    ended_at: SystemTime,
    ended: Instant,
}

impl Trace {
    fn new(spans: Spans, request: &Finished<'_>) -> Self {
        Self {
            server: spans.server,
            attempts: spans.clients.into_iter().zip(spans.attempts).collect(),
            start: request.start.clone(),
            workload: request.conn.meta.workload.clone(),
            inbound: request.inbound(),
            source: request.conn.meta.source.addr,
            source_workload: request.source_workload.cloned(),
            service: request.service.cloned(),
            route: request.route.cloned(),
            policy: request.policy.cloned(),
            security: security::policy_name(request.security),
            status: request.status,
            grpc_status: request.grpc_status,
            request_bytes: request.request_bytes,
            response_bytes: request.response_bytes,
            reason: request.reason,
            duration: request.duration,
            ended_at: request.ended_at,
            ended: request.ended,
        }
    }

    /// The server's, and one for each attempt.
    pub(super) fn spans(&self) -> u64 {
        1 + self.attempts.len() as u64
    }

    /// Nanoseconds since the epoch, of a moment before the end; `None`: the end.
    pub(super) fn unix_nanos(&self, at: Option<Instant>) -> u64 {
        let before = at.map_or(Duration::ZERO, |at| {
            self.ended.saturating_duration_since(at)
        });
        let since = self.ended_at.duration_since(SystemTime::UNIX_EPOCH);
        let nanos = since.unwrap_or_default().saturating_sub(before).as_nanos();
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }
}
