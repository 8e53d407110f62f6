//! The answers that the proxy makes itself: status, `Proxy-Status`, and a text that names what to check.

use std::{borrow::Cow, fmt::Write as _, time::Duration};

use ::http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER},
};

use super::{HttpVersion, body::Body};
use crate::{
    model::ResourceName,
    resilience::{self, Quota},
    telemetry::{Reason, RequestGuard},
};

/// What an answer says beside its reason.
#[derive(Clone, Copy, Debug)]
pub(in crate::proxy) struct About<'a> {
    /// The client speaks gRPC and reads its status from `grpc-status`.
    pub(in crate::proxy) grpc: bool,
    /// Name of this node.
    pub(in crate::proxy) node: &'a str,
    /// What happened here: the service, the limit, the address. May hold what the client sent; it is escaped.
    pub(in crate::proxy) detail: &'a str,
    /// When it makes sense to come again, where that is known.
    pub(in crate::proxy) retry_after: Option<Duration>,
}

/// Why a request gets an answer of ours.
#[derive(Debug)]
pub(in crate::proxy) struct Refusal {
    pub(in crate::proxy) reason: Reason,
    /// See [`About::detail`].
    pub(in crate::proxy) detail: Cow<'static, str>,
    /// The policy that decided.
    pub(in crate::proxy) policy: Option<ResourceName>,
    pub(in crate::proxy) retry_after: Option<Duration>,
    /// Of the rate limit that refused.
    pub(in crate::proxy) quota: Option<Quota>,
    /// Nothing of the request has reached the application.
    pub(in crate::proxy) undelivered: bool,
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self::because(reason, "")
    }
}

impl From<resilience::Refusal> for Refusal {
    fn from(refused: resilience::Refusal) -> Self {
        Self {
            detail: format!("limit {}", refused.quota.limit.name).into(),
            quota: Some(refused.quota),
            ..Self::after(Reason::RateLimited, refused.wait)
        }
    }
}

impl Refusal {
    pub(in crate::proxy) fn because(reason: Reason, detail: &'static str) -> Self {
        Self {
            reason,
            detail: Cow::Borrowed(detail),
            policy: None,
            retry_after: None,
            quota: None,
            undelivered: false,
        }
    }

    /// Nothing of it has reached the application.
    pub(in crate::proxy) fn undelivered(reason: Reason) -> Self {
        Self {
            undelivered: true,
            ..reason.into()
        }
    }

    /// It makes sense to come again after `wait`.
    pub(in crate::proxy) fn after(reason: Reason, wait: Duration) -> Self {
        Self {
            retry_after: Some(wait),
            ..reason.into()
        }
    }

    /// By a policy, which is named where it has a name.
    pub(in crate::proxy) fn by(reason: Reason, policy: Option<ResourceName>) -> Self {
        Self {
            detail: policy.as_ref().map_or(Cow::Borrowed(""), |policy| {
                format!("policy {policy}").into()
            }),
            policy,
            ..reason.into()
        }
    }

    /// Answers the request and reports its end.
    pub(in crate::proxy) fn answer(
        self,
        node: &str,
        grpc: bool,
        version: HttpVersion,
        guard: Option<RequestGuard>,
    ) -> Response<Body> {
        let about = About {
            grpc,
            node,
            detail: &self.detail,
            retry_after: self.retry_after,
        };
        let mut response = reply(self.reason, &about);
        let headers = response.headers_mut();
        if let Some(quota) = &self.quota {
            limited(headers, quota);
        }
        if version == HttpVersion::Http1 && self.reason == Reason::BadRequest {
            // What follows on it may be a request in disguise.
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(mut guard) = guard {
            if let Some(policy) = &self.policy {
                guard.set_policy(policy);
            }
            guard.response_started(response.status());
            guard.finish(self.reason);
        }
        response
    }
}

/// Says what a limit left (draft-ietf-httpapi-ratelimit-headers).
pub(in crate::proxy) fn limited(headers: &mut HeaderMap, quota: &Quota) {
    for (name, value) in [
        (RATE_LIMIT_POLICY, quota.policy_field()),
        (RATE_LIMIT, quota.field()),
    ] {
        // The application may limit as well.
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.append(name, value);
        }
    }
}

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Status of HTTP, error type of RFC 9209 section 2.3, status of gRPC.
type Answer = (StatusCode, &'static str, u32);

const DEADLINE_EXCEEDED: u32 = 4;
const NOT_FOUND: u32 = 12;
const PERMISSION_DENIED: u32 = 7;
const RESOURCE_EXHAUSTED: u32 = 8;
const INTERNAL: u32 = 13;
const UNAVAILABLE: u32 = 14;

/// How a reason is answered; `None`: there is nobody to answer, or nothing that could be. HTTP statuses are those that
/// RFC 9209 recommends; those of gRPC follow from them by its http-grpc-status-mapping, but for 429 and the timeouts.
const fn answer(reason: Reason) -> Option<Answer> {
    use StatusCode as S;
    Some(match reason {
        Reason::RouteNotFound => (S::NOT_FOUND, "destination_not_found", NOT_FOUND),
        Reason::NoServicePort | Reason::UnknownDestination | Reason::AgentPort => {
            (S::BAD_GATEWAY, "destination_not_found", UNAVAILABLE)
        }
        Reason::BackendNotFound => (
            S::INTERNAL_SERVER_ERROR,
            "proxy_configuration_error",
            UNAVAILABLE,
        ),
        Reason::NoEndpoints
        | Reason::BreakerOpen
        | Reason::RetryBudget
        | Reason::RetriesExhausted => (
            S::SERVICE_UNAVAILABLE,
            "destination_unavailable",
            UNAVAILABLE,
        ),
        Reason::ConnectionLimit
        | Reason::RequestLimit
        | Reason::PendingLimit
        | Reason::AgentLimit
        | Reason::HandshakeLimit
        | Reason::NoDescriptors => (
            S::SERVICE_UNAVAILABLE,
            "connection_limit_reached",
            UNAVAILABLE,
        ),
        Reason::UpstreamRefused | Reason::UnreachableByPeer => {
            (S::BAD_GATEWAY, "connection_refused", UNAVAILABLE)
        }
        Reason::UpstreamTimeout => (S::GATEWAY_TIMEOUT, "connection_timeout", UNAVAILABLE),
        Reason::UpstreamUnreachable | Reason::TunnelUnreachable => {
            (S::BAD_GATEWAY, "destination_ip_unroutable", UNAVAILABLE)
        }
        Reason::UpstreamReset
        | Reason::StreamReset
        | Reason::StreamRefused
        | Reason::TunnelBroken
        | Reason::PeerVanished => (S::BAD_GATEWAY, "connection_terminated", UNAVAILABLE),
        Reason::TlsFailed => (S::BAD_GATEWAY, "tls_protocol_error", UNAVAILABLE),
        Reason::PeerIdentity | Reason::CertificateRevoked => {
            (S::BAD_GATEWAY, "tls_certificate_error", UNAVAILABLE)
        }
        Reason::NoCertificate => (S::SERVICE_UNAVAILABLE, "tls_certificate_error", UNAVAILABLE),
        Reason::TunnelProtocol | Reason::UpstreamProtocol | Reason::GrpcStatusMissing => {
            (S::BAD_GATEWAY, "http_protocol_error", UNAVAILABLE)
        }
        Reason::RequestTimeout
        | Reason::AttemptTimeout
        | Reason::DeadlineExceeded
        | Reason::IdleTimeout
        | Reason::StreamTimeout => (
            S::GATEWAY_TIMEOUT,
            "http_response_timeout",
            DEADLINE_EXCEEDED,
        ),
        Reason::PolicyDenied | Reason::PlaintextRefused | Reason::DeniedByPeer => {
            (S::FORBIDDEN, "http_request_denied", PERMISSION_DENIED)
        }
        Reason::RateLimited => (
            S::TOO_MANY_REQUESTS,
            "http_request_denied",
            RESOURCE_EXHAUSTED,
        ),
        Reason::BadRequest | Reason::NotHttp | Reason::ClientAbuse => {
            (S::BAD_REQUEST, "http_request_error", INTERNAL)
        }
        Reason::UriTooLong => (S::URI_TOO_LONG, "http_request_error", RESOURCE_EXHAUSTED),
        Reason::RequestTooLarge => (
            S::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "http_request_error",
            RESOURCE_EXHAUSTED,
        ),
        Reason::ClientTimeout => (S::REQUEST_TIMEOUT, "http_request_error", DEADLINE_EXCEEDED),
        Reason::Drained => (
            S::SERVICE_UNAVAILABLE,
            "proxy_internal_response",
            UNAVAILABLE,
        ),
        Reason::NoOriginalDestination | Reason::Internal => {
            (S::INTERNAL_SERVER_ERROR, "proxy_internal_error", INTERNAL)
        }
        // It went well, the one who asked is gone, or only the kernel saw it.
        Reason::Completed
        | Reason::ClientReset
        | Reason::WorkloadGone
        | Reason::ConnectFailed
        | Reason::Aborted => return None,
    })
}

/// The status that [`reply`] answers with.
#[cfg(test)]
pub(super) fn status(reason: Reason) -> StatusCode {
    answer(reason).unwrap_or(FALLBACK).0
}

const FALLBACK: Answer = (
    StatusCode::INTERNAL_SERVER_ERROR,
    "proxy_internal_error",
    INTERNAL,
);

/// An answer of the proxy. hyper leaves the body out when the request was HEAD.
pub(in crate::proxy) fn reply(reason: Reason, about: &About<'_>) -> Response<Body> {
    let (status, error, grpc_status) = answer(reason).unwrap_or(FALLBACK);
    let mut response = if about.grpc {
        let mut response = Response::new(Body::Empty);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from(grpc_status));
        if let Some(message) = value(&percent_encode(&sentence(reason, about))) {
            headers.insert("grpc-message", message);
        }
        response
    } else {
        let mut text = sentence(reason, about);
        text.push('\n');
        let mut response = Response::new(Body::fixed(text));
        *response.status_mut() = status;
        response.headers_mut().insert(
            CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        );
        response
    };
    let headers = response.headers_mut();
    if let Some(value) = value(&proxy_status(reason, error, about)) {
        headers.insert("proxy-status", value);
    }
    if let Some(wait) = about.retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds_up(wait).max(1)));
    }
    response
}

/// Whole seconds, rounded up: who comes when he was told to must not be refused again.
fn seconds_up(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// `mesh-agent on n1: no_endpoints: The service has ... (detail)`
fn sentence(reason: Reason, about: &About<'_>) -> String {
    let mut text = String::with_capacity(160);
    let _ = write!(text, "mesh-agent on ");
    escape(&mut text, about.node);
    let _ = write!(text, ": {}: {}", reason.as_str(), reason.explain());
    if !about.detail.is_empty() {
        text.push_str(" (");
        escape(&mut text, bounded(about.detail));
        text.push(')');
    }
    text
}

/// RFC 9209: `node; error=...; details="..."`.
fn proxy_status(reason: Reason, error: &str, about: &About<'_>) -> String {
    let mut text = String::with_capacity(96);
    quoted(&mut text, about.node);
    let _ = write!(text, "; error={error}; details=");
    let mut details = String::with_capacity(64);
    details.push_str(reason.as_str());
    if !about.detail.is_empty() {
        details.push_str(": ");
        details.push_str(bounded(about.detail));
    }
    quoted(&mut text, &details);
    text
}

/// As much of a detail as fits a header.
fn bounded(detail: &str) -> &str {
    const MOST: usize = 256;
    match detail.char_indices().nth(MOST) {
        Some((end, _)) => &detail[..end],
        None => detail,
    }
}

/// A string of structured fields (RFC 9651 section 3.3.3).
pub(in crate::proxy) fn quoted(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            ' '..='~' => out.push(c),
            _ => out.push('?'),
        }
    }
    out.push('"');
}

/// Control characters and what lies outside ASCII as Rust writes them.
fn escape(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            ' '..='~' => out.push(c),
            _ => out.extend(c.escape_default()),
        }
    }
}

/// `grpc-message` as gRPC's HTTP/2 mapping wants it.
fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    for byte in text.bytes() {
        if (b' '..=b'~').contains(&byte) && byte != b'%' {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

fn value(text: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(text).ok()
}

#[cfg(test)]
mod tests;
