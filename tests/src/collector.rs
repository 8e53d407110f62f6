//! A collector of traces (OTLP over gRPC): keeps the spans that agents send.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value},
    trace::v1::{ResourceSpans, span::SpanKind},
};
use tokio::sync::oneshot;
use tonic::{Request, Response, Status, transport::server::TcpIncoming};

use crate::{netns::NetNs, traffic::server::listen};

/// The option of an agent that sends its spans to the collector of its node.
pub const ENDPOINT: &str = "http://127.0.0.1:4317";

/// A span as a test looks at it: IDs in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    pub trace: String,
    pub id: String,
    /// Empty: none.
    pub parent: String,
    /// `server` or `client`.
    pub kind: &'static str,
    pub name: String,
    /// `service.name` of its resource.
    pub service: String,
    attributes: Vec<(String, String)>,
}

impl Span {
    /// An attribute as text; empty if it is not there.
    pub fn attribute(&self, key: &str) -> &str {
        let found = self.attributes.iter().find(|(name, _)| name == key);
        found.map_or("", |(_, value)| value)
    }
}

/// What every collector of a test got.
#[derive(Clone, Debug, Default)]
pub struct Spans(Arc<Mutex<Vec<Span>>>);

impl Spans {
    pub fn of(&self, trace: &str) -> Vec<Span> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter(|s| s.trace == trace).cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn add(&self, resource: ResourceSpans) {
        let attributes = resource.resource.map(|r| r.attributes).unwrap_or_default();
        let service = texts(&attributes).into_iter();
        let service = service
            .filter(|(key, _)| key == "service.name")
            .map(|(_, v)| v);
        let service = service.collect::<String>();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for span in resource.scope_spans.into_iter().flat_map(|s| s.spans) {
            all.push(Span {
                kind: match span.kind() {
                    SpanKind::Server => "server",
                    SpanKind::Client => "client",
                    _ => "another",
                },
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                attributes: texts(&span.attributes),
                name: span.name,
                service: service.clone(),
            });
        }
    }
}

#[tonic::async_trait]
impl TraceService for Spans {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for resource in request.into_inner().resource_spans {
            self.add(resource);
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn texts(attributes: &[KeyValue]) -> Vec<(String, String)> {
    let text = |a: &KeyValue| match a.value.as_ref().and_then(|v| v.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    attributes
        .iter()
        .map(|a| (a.key.clone(), text(a)))
        .collect()
}

/// Listens at [`ENDPOINT`] of a node; gone on drop.
#[derive(Debug)]
pub struct Collector {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    pub fn start(ns: &NetNs, spans: &Spans) -> Collector {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 4317));
        let listener = listen(ns, address, false).expect("listen");
        listener.set_nonblocking(true).expect("O_NONBLOCK");
        let service = TraceServiceServer::new(spans.clone());
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                let serving = tonic::transport::Server::builder()
                    .add_service(service)
                    .serve_with_incoming(TcpIncoming::from(listener));
                tokio::select! {
                    ended = serving => ended.expect("serve"),
                    _ = stopped => {}
                }
            });
        });
        Collector {
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
