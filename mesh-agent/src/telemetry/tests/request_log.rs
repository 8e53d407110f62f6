//! The access log of requests: one line each, in both formats, that says what happened and gives nothing away.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{HeaderValue, StatusCode};

use super::fake::{answered, get, http, name, outbound, telemetry};
use crate::telemetry::{
    ConnGuard, Reason, RequestStart, Telemetry, TelemetryOptions, TraceContext,
    access::RequestLog,
    lock,
    logging::{LogFlush, start_writer},
};

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The lines that requests of one connection leave.
fn lines(json: bool, query: bool, level: &str, work: impl FnOnce(&ConnGuard)) -> Vec<String> {
    let (t, _) = telemetry(TelemetryOptions::default());
    let captured = Captured::default();
    let queue = start_writer(captured.clone(), t.counts()).unwrap();
    t.log_requests(RequestLog::new(queue.clone(), json, query));
    let filter = tracing_subscriber::EnvFilter::new(level);
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::sink)
        .finish();
    tracing::subscriber::with_default(subscriber, || work(&http(&t, outbound(1))));
    drop(LogFlush(queue));
    let text = String::from_utf8(lock(&captured.0).clone()).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_json_line_holds_every_field() {
    let lines = lines(true, false, "info", |connection| {
        let mut headers = http::HeaderMap::new();
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        headers.insert("traceparent", HeaderValue::from_static(parent));
        let mut guard = connection.request(RequestStart {
            trace: TraceContext::extract(&headers),
            ..get()
        });
        guard.set_route(&"shop/web-routes/rule-1".into());
        guard.set_policy(&name("shop/limits"));
        guard.attempt("10.0.0.3:8080".parse().unwrap(), None);
        guard.attempt_ended(Err(Reason::UpstreamRefused));
        guard.attempt("10.0.0.2:8080".parse().unwrap(), Some(&name("shop/web-1")));
        guard.attempt_connected();
        guard.set_security(
            "spiffe://cluster.local/ns/shop/sa/default"
                .parse()
                .ok()
                .as_ref(),
            "spiffe://cluster.local/ns/shop/sa/web"
                .parse()
                .ok()
                .as_ref(),
        );
        guard.bytes().add_request(3);
        guard.response_started(StatusCode::BAD_GATEWAY);
        guard.bytes().add_response(5);
        guard.set_grpc_status(14);
        guard.finish(Reason::RetriesExhausted);
    });
    assert_eq!(lines.len(), 1, "{lines:#?}");
    let line: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
    for (field, value) in [
        ("level", "INFO"),
        ("target", "access"),
        ("message", "request finished"),
        ("direction", "outbound"),
        ("workload", "shop/client"),
        ("source", "10.0.0.1:40000"),
        ("source_workload", "shop/client"),
        (
            "source_principal",
            "spiffe://cluster.local/ns/shop/sa/default",
        ),
        ("original_dst", "10.96.0.1:80"),
        ("service", "shop/web"),
        ("route", "shop/web-routes/rule-1"),
        ("upstream", "10.0.0.2:8080"),
        ("upstream_workload", "shop/web-1"),
        (
            "destination_principal",
            "spiffe://cluster.local/ns/shop/sa/web",
        ),
        ("security", "mutual_tls"),
        ("policy", "shop/limits"),
        ("protocol", "http"),
        ("http_version", "1.1"),
        ("method", "GET"),
        ("authority", "web.shop:80"),
        ("url_path", "/cart"),
        ("request_id", "r-1"),
        ("trace_id", "4bf92f3577b34da6a3ce929d0e0e4736"),
        ("user_agent", "curl/8"),
        ("reason", "retries_exhausted"),
        ("response_flags", "URX"),
        ("caused_by", "upstream"),
    ] {
        assert_eq!(line[field], value, "{field} in {line}");
    }
    for (field, value) in [
        ("response_code", 502),
        ("grpc_status", 14),
        ("attempts", 2),
        ("request_bytes", 3),
        ("response_bytes", 5),
    ] {
        assert_eq!(line[field], value, "{field} in {line}");
    }
    for field in [
        "duration_ms",
        "wait_ms",
        "connect_ms",
        "first_byte_ms",
        "upstream_ms",
    ] {
        assert!(line[field].is_f64(), "{field} in {line}");
    }
    assert!(
        !lines[0].contains("secret"),
        "queries are not logged unless asked for"
    );
}

#[test]
fn a_query_is_there_only_where_it_was_asked_for() {
    let with = lines(false, true, "info", |c| answered(c, get(), 200));
    assert!(
        with[0].contains("url_query=\"id=7&token=secret\""),
        "{with:?}"
    );
    let without = lines(false, false, "info", |c| answered(c, get(), 200));
    assert!(without[0].contains("url_path=\"/cart\"") && !without[0].contains("secret"));
}

#[test]
fn neither_headers_nor_an_authority_forge_a_line_or_give_a_password_away() {
    let start = RequestStart {
        user_agent: HeaderValue::from_bytes(b"a\tb\"\xff reason=\"completed\"").ok(),
        authority: Some(HeaderValue::from_static("user:pass@web")),
        ..get()
    };
    for json in [false, true] {
        let lines = lines(json, false, "info", |c| answered(c, start.clone(), 200));
        assert_eq!(lines.len(), 1);
        assert!(!lines[0].contains("pass"), "{}", lines[0]);
        assert!(
            !lines[0].contains(r#" reason="completed"""#),
            "{}",
            lines[0]
        );
        if json {
            let line: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
            assert_eq!(line["reason"], "completed");
            assert_eq!(line["authority"], "web");
        }
    }
}

#[test]
fn the_filter_of_the_log_silences_it() {
    for (level, number) in [("info", 1), ("info,access=off", 0), ("warn", 0)] {
        let lines = lines(false, false, level, |c| answered(c, get(), 200));
        assert_eq!(lines.len(), number, "{level}");
    }
}

#[test]
fn what_does_not_fit_the_queue_is_dropped_and_counted() {
    struct Stuck;
    impl io::Write for Stuck {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            loop {
                std::thread::park();
            }
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let t = Telemetry::new(TelemetryOptions::default());
    let queue = start_writer(Stuck, t.counts()).unwrap();
    let line = vec![b'x'; 64 * 1024];
    let begin = std::time::Instant::now();
    for _ in 0..300 {
        queue.push(&line);
    }
    assert!(begin.elapsed() < Duration::from_secs(5), "nobody waits");
    let dropped = t
        .counts()
        .log_lines_dropped
        .load(std::sync::atomic::Ordering::Relaxed);
    // The writer may have taken one load before it got stuck.
    assert!((44..=172).contains(&dropped), "{dropped}");
}
