//! The access log: one line for every finished connection and every finished request, target `access`, level INFO.

use std::{cell::RefCell, fmt::Display, net::SocketAddr, sync::Arc, time::Duration};

use http::Version;

use super::{Reason, conn::direction_name, line, logging::LogQueue, request::Finished, security};
use crate::model::{ResourceName, SpiffeId};

/// Target of the lines, for the log filter (`access=off` silences them).
pub const TARGET: &str = "access";

/// All that a line says.
#[derive(Debug)]
pub(super) struct Line<'a> {
    pub(super) direction: &'static str,
    pub(super) path: &'static str,
    pub(super) protocol: &'static str,
    pub(super) workload: Option<&'a ResourceName>,
    pub(super) source: SocketAddr,
    pub(super) source_workload: Option<&'a ResourceName>,
    /// From the certificates; `None` without mutual TLS.
    pub(super) source_principal: Option<&'a SpiffeId>,
    pub(super) destination_principal: Option<&'a SpiffeId>,
    pub(super) security: &'static str,
    /// The AuthorizationPolicy that decided.
    pub(super) policy: Option<&'a ResourceName>,
    pub(super) original_dst: SocketAddr,
    pub(super) service: Option<&'a ResourceName>,
    pub(super) upstream: Option<SocketAddr>,
    pub(super) upstream_workload: Option<&'a ResourceName>,
    /// The workload's own view, as everywhere but in the Istio metrics.
    pub(super) bytes_sent: u64,
    pub(super) bytes_received: u64,
    pub(super) duration: Duration,
    pub(super) rtt_us: Option<u32>,
    pub(super) retransmits: Option<u32>,
    pub(super) reason: Reason,
}

pub(super) fn write(line: &Line<'_>) {
    tracing::info!(
        target: TARGET,
        direction = line.direction,
        workload = line.workload.map(display),
        source = %line.source,
        source_workload = line.source_workload.map(display),
        source_principal = line.source_principal.map(display),
        original_dst = %line.original_dst,
        service = line.service.map(display),
        upstream = line.upstream.map(display),
        upstream_workload = line.upstream_workload.map(display),
        destination_principal = line.destination_principal.map(display),
        security = line.security,
        policy = line.policy.map(display),
        protocol = line.protocol,
        path = line.path,
        bytes_sent = line.bytes_sent,
        bytes_received = line.bytes_received,
        duration_ms = line.duration.as_millis() as u64,
        rtt_us = line.rtt_us,
        retransmits = line.retransmits,
        reason = line.reason.as_str(),
        response_flags = line.reason.flag(),
        caused_by = line.reason.party().as_str(),
        "connection closed"
    );
}

/// Where the lines of requests go: past tracing (see [`line`]), into the queue of its lines.
#[derive(Debug)]
pub(super) struct RequestLog {
    queue: Arc<LogQueue>,
    json: bool,
    /// Queries hold secrets often enough.
    query: bool,
}

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl RequestLog {
    pub(super) fn new(queue: Arc<LogQueue>, json: bool, query: bool) -> Self {
        Self { queue, json, query }
    }

    pub(super) fn request(&self, request: &Finished<'_>) {
        if !tracing::enabled!(target: TARGET, tracing::Level::INFO) {
            return;
        }
        // Gone while a thread ends, in use if a value's Display were to end a request.
        let _ = BUFFER.try_with(|buffer| {
            if let Ok(mut buffer) = buffer.try_borrow_mut() {
                self.queue
                    .push(format(request, &mut buffer, self.json, self.query));
            }
        });
    }
}

/// One line.
pub(super) fn format<'b>(
    request: &Finished<'_>,
    buffer: &'b mut Vec<u8>,
    json: bool,
    query: bool,
) -> &'b [u8] {
    let (conn, start) = (request.conn, request.start);
    let (meta, security) = (&conn.meta, request.security);
    let mut line = line::Line::new(buffer, json, request.ended_at, TARGET, "request finished");
    line.word("direction", direction_name(meta.direction));
    line.name("workload", Some(&meta.workload));
    line.name("source", Some(&meta.source.addr));
    line.name("source_workload", shown(request.source_workload));
    let principals = security.map(|s| (s.source.as_ref(), s.destination.as_ref()));
    let (source, destination) = principals.unwrap_or_default();
    line.name("source_principal", shown(source));
    line.name("original_dst", Some(&meta.original_dst));
    line.name("service", shown(request.service));
    line.name("route", shown(request.route));
    line.name("upstream", shown(request.upstream.map(|u| &u.addr)));
    let workload = request.upstream.and_then(|u| u.workload.as_ref());
    line.name("upstream_workload", shown(workload));
    line.name("destination_principal", shown(destination));
    line.word("security", security::policy_name(security));
    line.name("policy", shown(request.policy));
    line.word("protocol", if start.grpc { "grpc" } else { "http" });
    line.word("http_version", version_name(start.version));
    line.foreign("method", Some(start.method.as_str().as_bytes()));
    line.foreign(
        "authority",
        start.authority.as_ref().map(|a| bare(a.as_bytes())),
    );
    line.foreign("url_path", Some(start.uri.path().as_bytes()));
    if query {
        line.foreign("url_query", start.uri.query().map(str::as_bytes));
    }
    if let Some(status) = request.status {
        line.number("response_code", status.as_u16().into());
    }
    if let Some(code) = request.grpc_status {
        line.number("grpc_status", code.into());
    }
    line.foreign(
        "request_id",
        start.request_id.as_ref().map(|v| v.as_bytes()),
    );
    if let Some(trace) = start.trace.trace_id() {
        line.name("trace_id", Some(&format_args!("{trace:032x}")));
    }
    line.foreign(
        "user_agent",
        start.user_agent.as_ref().map(|v| v.as_bytes()),
    );
    line.number("attempts", request.attempts.into());
    line.number("request_bytes", request.request_bytes);
    line.number("response_bytes", request.response_bytes);
    line.millis("duration_ms", Some(request.duration));
    line.millis("wait_ms", request.phases.wait);
    line.millis("connect_ms", request.phases.connect);
    line.millis("first_byte_ms", request.phases.first_byte);
    line.millis("upstream_ms", request.phases.upstream);
    line.word("reason", request.reason.as_str());
    line.word("response_flags", request.reason.flag());
    line.word("caused_by", request.reason.party().as_str());
    line.end()
}

fn shown<T: Display>(value: Option<&T>) -> Option<&dyn Display> {
    value.map(|value| value as &dyn Display)
}

/// An authority without what stands before `@`: a name and a password.
pub(super) fn bare(authority: &[u8]) -> &[u8] {
    let at = authority.iter().rposition(|b| *b == b'@');
    at.map_or(authority, |at| &authority[at + 1..])
}

/// `1.0`, `1.1`, `2`: as OpenTelemetry's network.protocol.version.
pub(super) fn version_name(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "0.9",
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        Version::HTTP_3 => "3",
        _ => "1.1",
    }
}
