//! Spans as OTLP has them, with the attributes of OpenTelemetry's semantic conventions for HTTP and gRPC (1.30) and,
//! under `mesh.`, our own.

use std::collections::HashMap;

use http::{Method, StatusCode};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{
        ResourceSpans, ScopeSpans, Span, Status, span::SpanKind, status::StatusCode as SpanStatus,
    },
};

use super::{span::Trace, w3c};
use crate::{
    model::ResourceName,
    telemetry::{
        Party, Reason, access,
        directory::Directory,
        metrics::{CANONICAL_REVISION, CANONICAL_SERVICE},
        request::Attempt,
    },
};

const SCHEMA: &str = "https://opentelemetry.io/schemas/1.30.0";
/// `SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK`, `SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK`
const PARENT_KNOWN: u32 = 0x100;
const PARENT_REMOTE: u32 = 0x200;
/// Characters of a value that a client chose.
const MAX_VALUE: usize = 1_024;

/// Spans by the workload on whose behalf the agent acted: to a collector the agent is part of it.
pub(super) fn request(
    traces: &[Box<Trace>],
    node: &str,
    directory: &dyn Directory,
) -> ExportTraceServiceRequest {
    let mut by_workload: HashMap<&ResourceName, Vec<Span>> = HashMap::new();
    for trace in traces {
        let spans = by_workload.entry(&trace.workload).or_default();
        spans.push(server(trace));
        let attempts = trace.attempts.iter().enumerate();
        spans.extend(attempts.map(|(nth, (id, attempt))| client(trace, nth, *id, attempt)));
    }
    let resource_spans = by_workload
        .into_iter()
        .map(|(workload, spans)| ResourceSpans {
            resource: Some(resource(workload, node, directory)),
            scope_spans: vec![ScopeSpans {
                scope: Some(InstrumentationScope {
                    name: "mesh-agent".into(),
                    version: env!("CARGO_PKG_VERSION").into(),
                    ..InstrumentationScope::default()
                }),
                spans,
                schema_url: SCHEMA.into(),
            }],
            schema_url: SCHEMA.into(),
        });
    ExportTraceServiceRequest {
        resource_spans: resource_spans.collect(),
    }
}

fn resource(name: &ResourceName, node: &str, directory: &dyn Directory) -> Resource {
    let workload = directory.workload(name);
    let label = |keys: &[&str]| {
        let labels = &workload.as_ref()?.labels;
        keys.iter().find_map(|key| labels.get(*key)).cloned()
    };
    let service = label(&CANONICAL_SERVICE).unwrap_or_else(|| name.name.to_string());
    let mut attributes = Attributes::default();
    attributes.text("service.name", service);
    attributes.text("service.namespace", &*name.namespace);
    attributes.maybe("service.version", label(&CANONICAL_REVISION));
    attributes.text("k8s.namespace.name", &*name.namespace);
    attributes.text("k8s.pod.name", &*name.name);
    attributes.text("k8s.node.name", node);
    Resource {
        attributes: attributes.0,
        ..Resource::default()
    }
}

/// The request as the agent served it.
fn server(trace: &Trace) -> Span {
    let start = &trace.start;
    let mut attributes = common(trace);
    attributes.text("url.scheme", "http");
    attributes.text("url.path", cut(start.uri.path().as_bytes()));
    attributes.text("client.address", trace.source.ip().to_string());
    attributes.number("client.port", trace.source.port().into());
    attributes.text("network.protocol.name", "http");
    attributes.text(
        "network.protocol.version",
        access::version_name(start.version),
    );
    let user_agent = start.user_agent.as_ref().map(|v| cut(v.as_bytes()));
    attributes.maybe("user_agent.original", user_agent);
    attributes.size("http.request.body.size", trace.request_bytes);
    attributes.size("http.response.body.size", trace.response_bytes);
    let status = trace.status.map(|s| s.as_u16());
    attributes.code(status);
    attributes.grpc(trace.grpc_status);
    attributes.text(
        "mesh.direction",
        if trace.inbound { "inbound" } else { "outbound" },
    );
    attributes.text("mesh.reason", trace.reason.as_str());
    attributes.text("mesh.response_flags", trace.reason.flag());
    attributes.text("mesh.security", trace.security);
    attributes.number("mesh.attempts", trace.attempts.len() as i64);
    attributes.maybe("mesh.route", trace.route.as_deref());
    attributes.maybe(
        "mesh.policy",
        trace.policy.as_ref().map(ToString::to_string),
    );
    attributes.maybe(
        "mesh.service",
        trace.service.as_ref().map(ToString::to_string),
    );
    let source = trace.source_workload.as_ref().map(ToString::to_string);
    attributes.maybe("mesh.source_workload", source);
    let id = start.request_id.as_ref().map(|v| cut(v.as_bytes()));
    attributes.maybe("mesh.request_id", id);

    let ours = trace.reason != Reason::Completed && trace.reason.party() != Party::Client;
    let server_error = trace.status.is_some_and(|s| s.is_server_error());
    // Codes that are the server's fault, by the conventions for RPC.
    let grpc_error = matches!(trace.grpc_status, Some(2 | 4 | 12 | 13 | 14 | 15));
    let failed = ours || server_error || grpc_error;
    if failed {
        attributes.error(
            trace.reason,
            status.filter(|_| server_error),
            trace.grpc_status,
        );
    }
    let parent = trace.start.trace.remote.then_some(trace.start.trace.span);
    Span {
        kind: SpanKind::Server.into(),
        start_time_unix_nano: trace
            .unix_nanos(None)
            .saturating_sub(u64::try_from(trace.duration.as_nanos()).unwrap_or(u64::MAX)),
        end_time_unix_nano: trace.unix_nanos(None),
        status: Some(span_status(failed, trace.reason)),
        flags: u32::from(w3c::SAMPLED) | PARENT_KNOWN | parent.map_or(0, |_| PARENT_REMOTE),
        ..span(trace, trace.server, parent, attributes)
    }
}

/// One attempt.
fn client(trace: &Trace, nth: usize, id: u64, attempt: &Attempt) -> Span {
    let mut attributes = common(trace);
    let authority = trace
        .start
        .authority
        .as_ref()
        .map(|a| cut(access::bare(a.as_bytes())));
    let path = cut(trace.start.uri.path().as_bytes());
    attributes.text(
        "url.full",
        format!("http://{}{path}", authority.unwrap_or_default()),
    );
    attributes.text(
        "network.peer.address",
        attempt.upstream.addr.ip().to_string(),
    );
    attributes.number("network.peer.port", attempt.upstream.addr.port().into());
    if nth > 0 {
        attributes.number("http.request.resend_count", nth as i64);
    }
    let workload = attempt.upstream.workload.as_ref().map(ToString::to_string);
    attributes.maybe("mesh.destination_workload", workload);
    // Of the last attempt the request says how it ended.
    let last = nth + 1 == trace.attempts.len();
    let (status, reason) = match attempt.outcome {
        Some(Ok(status)) if last => (Some(status), trace.reason),
        Some(Ok(status)) => (Some(status), Reason::Completed),
        Some(Err(reason)) => (None, reason),
        None => (trace.status.filter(|_| last), trace.reason),
    };
    let refused = |s: StatusCode| s.is_client_error() || s.is_server_error();
    attributes.code(status.map(|s| s.as_u16()));
    let grpc = trace.grpc_status.filter(|_| last);
    attributes.grpc(grpc);
    let answered_badly = status.is_some_and(refused);
    let failed = answered_badly
        || grpc.is_some_and(|code| code != 0)
        || (reason != Reason::Completed && reason.party() != Party::Client);
    if failed {
        let code = status.filter(|s| refused(*s)).map(|s| s.as_u16());
        attributes.error(reason, code, grpc);
    }
    Span {
        kind: SpanKind::Client.into(),
        start_time_unix_nano: trace.unix_nanos(Some(attempt.began)),
        end_time_unix_nano: trace.unix_nanos(attempt.ended),
        status: Some(span_status(failed, reason)),
        flags: u32::from(w3c::SAMPLED) | PARENT_KNOWN,
        ..span(trace, id, Some(trace.server), attributes)
    }
}

fn span(trace: &Trace, id: u64, parent: Option<u64>, attributes: Attributes) -> Span {
    let context = &trace.start.trace;
    let state = context.state.as_ref().map(|s| cut(s.as_bytes()));
    Span {
        trace_id: context.trace.to_be_bytes().into(),
        span_id: id.to_be_bytes().into(),
        parent_span_id: parent.map_or_else(Vec::new, |p| p.to_be_bytes().into()),
        trace_state: state.unwrap_or_default(),
        name: name(trace),
        attributes: attributes.0,
        ..Span::default()
    }
}

fn span_status(failed: bool, reason: Reason) -> Status {
    if !failed {
        return Status::default();
    }
    let message = if reason == Reason::Completed {
        String::new()
    } else {
        reason.explain().into()
    };
    Status {
        message,
        code: SpanStatus::Error.into(),
    }
}

/// What server and client spans say alike.
fn common(trace: &Trace) -> Attributes {
    let start = &trace.start;
    let mut attributes = Attributes::default();
    match known(&start.method) {
        Some(method) => attributes.text("http.request.method", method),
        None => {
            attributes.text("http.request.method", "_OTHER");
            attributes.text(
                "http.request.method_original",
                cut(start.method.as_str().as_bytes()),
            );
        }
    }
    if let Some(authority) = &start.authority {
        let authority = cut(access::bare(authority.as_bytes()));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && !port.contains(']') => {
                (host, port.parse().ok())
            }
            _ => (authority.as_str(), None),
        };
        attributes.text("server.address", host.trim_matches(['[', ']']));
        if let Some(port) = port {
            attributes.number("server.port", port);
        }
    }
    if start.grpc {
        attributes.text("rpc.system", "grpc");
        if let Some((service, method)) = rpc(trace) {
            attributes.text("rpc.service", service);
            attributes.text("rpc.method", method);
        }
    }
    attributes
}

/// `{method}`, or of gRPC the full name of its method: paths of HTTP are too many to be names.
fn name(trace: &Trace) -> String {
    if trace.start.grpc
        && let Some((service, method)) = rpc(trace)
    {
        return cut(format!("{service}/{method}").as_bytes());
    }
    known(&trace.start.method).unwrap_or("HTTP").into()
}

fn rpc(trace: &Trace) -> Option<(&str, &str)> {
    trace.start.uri.path().strip_prefix('/')?.rsplit_once('/')
}

/// The methods that the conventions know.
fn known(method: &Method) -> Option<&'static str> {
    [
        "GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS", "CONNECT", "TRACE",
    ]
    .into_iter()
    .find(|known| *known == method.as_str())
}

fn cut(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * MAX_VALUE)]);
    text.chars().take(MAX_VALUE).collect()
}

#[derive(Debug, Default)]
struct Attributes(Vec<KeyValue>);

impl Attributes {
    fn put(&mut self, key: &str, value: Value) {
        self.0.push(KeyValue {
            key: key.into(),
            value: Some(AnyValue { value: Some(value) }),
            ..KeyValue::default()
        });
    }

    fn text(&mut self, key: &str, value: impl Into<String>) {
        self.put(key, Value::StringValue(value.into()));
    }

    fn maybe(&mut self, key: &str, value: Option<impl Into<String>>) {
        if let Some(value) = value {
            self.text(key, value);
        }
    }

    fn number(&mut self, key: &str, value: i64) {
        self.put(key, Value::IntValue(value));
    }

    fn size(&mut self, key: &str, bytes: u64) {
        self.number(key, i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    fn code(&mut self, status: Option<u16>) {
        if let Some(status) = status {
            self.number("http.response.status_code", status.into());
        }
    }

    fn grpc(&mut self, status: Option<u32>) {
        if let Some(status) = status {
            self.number("rpc.grpc.status_code", status.into());
        }
    }

    /// The reason, where there is one; else the code.
    fn error(&mut self, reason: Reason, status: Option<u16>, grpc: Option<u32>) {
        let kind = match (reason, status, grpc) {
            (Reason::Completed, Some(status), _) => status.to_string(),
            (Reason::Completed, None, Some(grpc)) => grpc.to_string(),
            (reason, ..) => reason.as_str().into(),
        };
        self.text("error.type", kind);
    }
}
