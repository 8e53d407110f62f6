//! Spans, as a real collector gets them: what they say, and what becomes of them while the collector is slow or away.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, HeaderValue, StatusCode};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{ResourceSpans, Span, span::SpanKind, status::StatusCode as SpanStatus},
};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tonic::{Request, Response, Status, transport::server::TcpIncoming};

use super::fake::{answered, get, http, inbound, name, outbound, sum, telemetry};
use crate::telemetry::{
    Reason, RequestStart, Telemetry, TelemetryOptions, TraceContext, TraceParent, TracingError,
    TracingOptions, lock,
};

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Keeps what it gets.
#[derive(Clone, Debug, Default)]
struct Collector {
    got: Arc<Mutex<Vec<ResourceSpans>>>,
    stuck: Arc<AtomicBool>,
    refuses: Arc<AtomicBool>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        while self.stuck.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if self.refuses.load(Ordering::Relaxed) {
            return Err(Status::invalid_argument("not today"));
        }
        lock(&self.got).extend(request.into_inner().resource_spans);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    fn serve(&self, listener: TcpListener) -> JoinHandle<()> {
        let service = TraceServiceServer::new(self.clone());
        tokio::spawn(async move {
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpIncoming::from(listener))
                .await
                .unwrap();
        })
    }

    fn spans(&self) -> Vec<Span> {
        lock(&self.got)
            .iter()
            .flat_map(|r| r.scope_spans.iter().flat_map(|s| s.spans.clone()))
            .collect()
    }
}

/// Telemetry whose spans go to an address.
struct Traced {
    telemetry: Telemetry,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Traced {
    fn to(address: SocketAddr, ratio: f64) -> Self {
        let (telemetry, _) = telemetry(TelemetryOptions {
            node: "n1".into(),
            ..TelemetryOptions::default()
        });
        let options = TracingOptions {
            endpoint: format!("http://{address}"),
            ratio,
        };
        let exporter = telemetry.start_tracing(&options).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(exporter.run(async {
            let _ = stopped.await;
        }));
        Self {
            telemetry,
            stop,
            task,
        }
    }

    async fn flush(self) -> Telemetry {
        let _ = self.stop.send(());
        self.task.await.unwrap();
        self.telemetry
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn with_parent(text: &'static str) -> RequestStart {
    let mut headers = HeaderMap::new();
    headers.insert("traceparent", HeaderValue::from_static(text));
    headers.insert("tracestate", HeaderValue::from_static("a=1"));
    RequestStart {
        trace: TraceContext::extract(&headers),
        ..get()
    }
}

fn attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|a| a.key == key)?;
    Some(match found.value.clone()?.value? {
        Value::StringValue(text) => text,
        Value::IntValue(n) => n.to_string(),
        other => format!("{other:?}"),
    })
}

fn counted(t: &Telemetry, family: &str) -> u64 {
    sum(&t.exposition(), family, &[])
}

#[tokio::test]
async fn a_sampled_request_is_a_server_span_and_a_client_span_for_each_attempt() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let traced = Traced::to(listener.local_addr().unwrap(), 0.0);
    let collector = Collector::default();
    let server = collector.serve(listener);

    let connection = http(&traced.telemetry, outbound(1));
    let mut guard = connection.request(with_parent(PARENT));
    guard.set_route(&"shop/routes/0".into());
    let first = guard.attempt("10.0.0.3:8080".parse().unwrap(), None);
    guard.attempt_ended(Err(Reason::UpstreamRefused));
    let second = guard.attempt("10.0.0.2:8080".parse().unwrap(), Some(&name("shop/web-1")));
    guard.attempt_ended(Ok(StatusCode::SERVICE_UNAVAILABLE));
    guard.response_started(StatusCode::SERVICE_UNAVAILABLE);
    guard.finish(Reason::RetriesExhausted);
    let telemetry = traced.flush().await;

    let spans = collector.spans();
    assert_eq!(spans.len(), 3);
    assert_eq!(counted(&telemetry, "mesh_spans_exported_total"), 3);
    let of = |kind: SpanKind| spans.iter().filter(move |s| s.kind == kind as i32);
    let served = of(SpanKind::Server).next().unwrap();
    assert_eq!(
        served.parent_span_id,
        0x00f0_67aa_0ba9_02b7_u64.to_be_bytes()
    );
    assert_eq!(
        (served.name.as_str(), served.trace_state.as_str()),
        ("GET", "a=1")
    );
    assert_eq!(
        served.status.as_ref().unwrap().code,
        SpanStatus::Error as i32
    );
    for (key, value) in [
        ("http.request.method", "GET"),
        ("url.path", "/cart"),
        ("url.scheme", "http"),
        ("server.address", "web.shop"),
        ("server.port", "80"),
        ("client.address", "10.0.0.1"),
        ("user_agent.original", "curl/8"),
        ("network.protocol.version", "1.1"),
        ("http.response.status_code", "503"),
        ("error.type", "retries_exhausted"),
        ("mesh.reason", "retries_exhausted"),
        ("mesh.response_flags", "URX"),
        ("mesh.route", "shop/routes/0"),
        ("mesh.attempts", "2"),
        ("mesh.service", "shop/web"),
    ] {
        assert_eq!(
            attribute(&served.attributes, key).as_deref(),
            Some(value),
            "{key}"
        );
    }
    let attempts: Vec<_> = of(SpanKind::Client).collect();
    for (span, context, peer, kind, again) in [
        (attempts[0], first, "10.0.0.3", "upstream_refused", None),
        (
            attempts[1],
            second,
            "10.0.0.2",
            "retries_exhausted",
            Some("1"),
        ),
    ] {
        assert_eq!(span.parent_span_id, served.span_id);
        assert_eq!(
            attribute(&span.attributes, "network.peer.address").as_deref(),
            Some(peer)
        );
        assert_eq!(
            attribute(&span.attributes, "error.type").as_deref(),
            Some(kind)
        );
        assert_eq!(
            attribute(&span.attributes, "http.request.resend_count").as_deref(),
            again
        );
        let full = attribute(&span.attributes, "url.full");
        assert_eq!(
            full.as_deref(),
            Some("http://web.shop:80/cart"),
            "without the query"
        );
        // What the attempt sends along names its own span.
        let mut headers = HeaderMap::new();
        context.inject(&mut headers);
        let sent = TraceParent::parse(headers["traceparent"].as_bytes()).unwrap();
        assert_eq!(sent.parent.to_be_bytes(), *span.span_id);
        assert_eq!(
            format!("{:032x}", sent.trace),
            "4bf92f3577b34da6a3ce929d0e0e4736"
        );
        assert_eq!(sent.flags, 1);
        assert!(served.start_time_unix_nano <= span.start_time_unix_nano);
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano);
        assert!(span.end_time_unix_nano <= served.end_time_unix_nano);
    }
    let resource = lock(&collector.got)[0].resource.clone().unwrap();
    for (key, value) in [
        ("service.name", "client-app"),
        ("service.namespace", "shop"),
        ("service.version", "v2"),
        ("k8s.pod.name", "client"),
        ("k8s.node.name", "n1"),
    ] {
        assert_eq!(
            attribute(&resource.attributes, key).as_deref(),
            Some(value),
            "{key}"
        );
    }
    server.abort();
}

#[tokio::test]
async fn the_clients_decision_is_respected_and_the_ratio_decides_where_there_is_none() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let collector = Collector::default();
    let server = collector.serve(listener);
    let not_sampled = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
    for (ratio, start, spans, flags) in [
        (1.0, with_parent(not_sampled), 0, 0),
        (0.0, with_parent(PARENT), 2, 1),
        (0.0, get(), 0, 0),
        (1.0, get(), 2, 1),
    ] {
        lock(&collector.got).clear();
        let traced = Traced::to(address, ratio);
        let connection = http(&traced.telemetry, outbound(1));
        let mut guard = connection.request(start);
        let sent = guard.attempt("10.0.0.2:8080".parse().unwrap(), None);
        guard.response_started(StatusCode::OK);
        guard.finish(Reason::Completed);
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", HeaderValue::from_static(not_sampled));
        sent.inject(&mut headers);
        let sent = TraceParent::parse(headers["traceparent"].as_bytes()).unwrap();
        assert_eq!(sent.flags, flags);
        traced.flush().await;
        assert_eq!(collector.spans().len(), spans, "{ratio}");
        for span in collector.spans() {
            assert_eq!(
                span.status.unwrap_or_default().code,
                SpanStatus::Unset as i32
            );
        }
    }
    server.abort();
}

#[tokio::test]
async fn spans_of_two_hops_hang_together() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let collector = Collector::default();
    let server = collector.serve(listener);
    let (source, destination) = (Traced::to(address, 1.0), Traced::to(address, 0.0));
    let mut guard = http(&source.telemetry, outbound(1)).request(get());
    let sent = guard.attempt("10.0.0.2:8080".parse().unwrap(), Some(&name("shop/web-1")));
    let mut headers = HeaderMap::new();
    sent.inject(&mut headers);
    let start = RequestStart {
        trace: TraceContext::extract(&headers),
        ..get()
    };
    answered(&http(&destination.telemetry, inbound(7)), start, 200);
    guard.response_started(StatusCode::OK);
    guard.finish(Reason::Completed);
    source.flush().await;
    destination.flush().await;
    let spans = collector.spans();
    assert_eq!(spans.len(), 4);
    let root = spans.iter().find(|s| s.parent_span_id.is_empty()).unwrap();
    let mut at = root;
    for _ in 0..3 {
        assert_eq!(at.trace_id, root.trace_id);
        at = spans
            .iter()
            .find(|s| s.parent_span_id == at.span_id)
            .unwrap();
    }
    server.abort();
}

#[tokio::test]
async fn a_collector_that_is_away_gets_what_was_kept_when_it_is_back() {
    // Nobody listens on the port until later.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let traced = Traced::to(address, 1.0);
    let connection = http(&traced.telemetry, outbound(1));
    answered(&connection, get(), 200);
    until("an attempt failed", || {
        counted(&traced.telemetry, "mesh_span_exports_failed_total") > 0
    })
    .await;
    let collector = Collector::default();
    let server = collector.serve(TcpListener::bind(address).await.unwrap());
    until("the collector got the spans", || {
        collector.spans().len() == 2
    })
    .await;
    assert_eq!(counted(&traced.telemetry, "mesh_spans_dropped_total"), 0);
    server.abort();
}

#[tokio::test]
async fn while_the_collector_is_slow_requests_go_on_and_what_is_lost_is_counted() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let traced = Traced::to(listener.local_addr().unwrap(), 1.0);
    let collector = Collector::default();
    collector.stuck.store(true, Ordering::Relaxed);
    let server = collector.serve(listener);
    let connection = http(&traced.telemetry, outbound(1));
    for _ in 0..3_000 {
        answered(&connection, get(), 200);
    }
    let dropped = counted(&traced.telemetry, "mesh_spans_dropped_total");
    // The queue, and at most one batch that was taken from it.
    assert!((2 * 600..=2 * 952).contains(&dropped), "{dropped}");
    collector.stuck.store(false, Ordering::Relaxed);
    let telemetry = traced.flush().await;
    let (exported, dropped) = (
        counted(&telemetry, "mesh_spans_exported_total"),
        counted(&telemetry, "mesh_spans_dropped_total"),
    );
    assert_eq!(exported + dropped, 6_000);
    assert_eq!(collector.spans().len() as u64, exported);
    server.abort();
}

#[tokio::test]
async fn what_the_collector_refuses_for_good_is_not_sent_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let traced = Traced::to(listener.local_addr().unwrap(), 1.0);
    let collector = Collector::default();
    collector.refuses.store(true, Ordering::Relaxed);
    let server = collector.serve(listener);
    answered(&http(&traced.telemetry, outbound(1)), get(), 200);
    until("they are dropped", || {
        counted(&traced.telemetry, "mesh_spans_dropped_total") == 2
    })
    .await;
    assert_eq!(
        counted(&traced.telemetry, "mesh_span_exports_failed_total"),
        1
    );
    server.abort();
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_agent_does_not_wait_for_a_collector_that_hangs() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let traced = Traced::to(listener.local_addr().unwrap(), 1.0);
    answered(&http(&traced.telemetry, outbound(1)), get(), 200);
    let begin = tokio::time::Instant::now();
    // The kernel takes the connection, and nobody answers on it.
    let telemetry = traced.flush().await;
    assert!(
        begin.elapsed() <= Duration::from_secs(6),
        "{:?}",
        begin.elapsed()
    );
    assert_eq!(counted(&telemetry, "mesh_spans_dropped_total"), 2);
}

#[tokio::test]
async fn only_plain_addresses_are_taken_and_only_one() {
    for bad in [
        "https://collector:4317",
        "collector:4317",
        "http://user:pass@collector:4317",
        "http://collector:4317/v1/traces",
        "http://",
        "unix:/run/collector",
    ] {
        assert!(
            matches!(TracingOptions::check(bad), Err(TracingError::Endpoint(_))),
            "{bad}"
        );
    }
    let (t, _) = telemetry(TelemetryOptions::default());
    let options = TracingOptions {
        endpoint: "http://127.0.0.1:4317".into(),
        ratio: 0.01,
    };
    assert!(t.start_tracing(&options).is_ok());
    assert!(matches!(
        t.start_tracing(&options),
        Err(TracingError::AlreadyStarted)
    ));
}
