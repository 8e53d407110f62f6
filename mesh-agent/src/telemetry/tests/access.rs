//! The access log: one line a connection, with everything, in both formats.

use std::{
    io,
    sync::{Arc, Mutex},
};

use tracing_subscriber::{Layer, fmt::MakeWriter, layer::SubscriberExt};

use super::fake::{closed, name, outbound, record, telemetry};
use crate::telemetry::{Reason, TelemetryOptions, lock};

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

impl<'a> MakeWriter<'a> for Captured {
    type Writer = Self;
    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

fn lines(json: bool, work: impl FnOnce()) -> Vec<String> {
    let captured = Captured::default();
    let layer = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_writer(captured.clone());
    let layer = if json {
        layer.json().flatten_event(true).boxed()
    } else {
        layer.boxed()
    };
    let subscriber = tracing_subscriber::registry().with(layer);
    tracing::subscriber::with_default(subscriber, work);
    let text = String::from_utf8(lock(&captured.0).clone()).unwrap();
    text.lines()
        .filter(|l| l.contains("connection closed"))
        .map(str::to_owned)
        .collect()
}

fn one_of_each() {
    let (t, _) = telemetry(TelemetryOptions::default());
    let guard = t.open(outbound(11));
    guard.set_upstream("10.0.0.2:8080".parse().unwrap(), Some(name("shop/web-1")));
    guard.set_security(
        "spiffe://cluster.local/ns/shop/sa/default".parse().ok(),
        "spiffe://cluster.local/ns/shop/sa/web".parse().ok(),
    );
    guard.set_policy(name("shop/web-clients"));
    guard.counters().add_sent(5);
    guard.finish(Reason::UpstreamReset);
    t.on_closed(
        12,
        &closed(
            record(
                mesh_common::Direction::Outbound,
                mesh_common::Path::Unmeshed,
            ),
            mesh_common::KernelClose::FinLocalFirst,
        ),
    );
}

#[test]
fn json_lines_hold_every_field() {
    let lines = lines(true, one_of_each);
    assert_eq!(lines.len(), 2, "{lines:#?}");
    let line: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
    for (field, value) in [
        ("target", "access"),
        ("direction", "outbound"),
        ("path", "proxied"),
        ("workload", "shop/client"),
        ("source", "10.0.0.1:40000"),
        ("original_dst", "10.96.0.1:80"),
        ("service", "shop/web"),
        ("upstream", "10.0.0.2:8080"),
        ("upstream_workload", "shop/web-1"),
        (
            "source_principal",
            "spiffe://cluster.local/ns/shop/sa/default",
        ),
        (
            "destination_principal",
            "spiffe://cluster.local/ns/shop/sa/web",
        ),
        ("security", "mutual_tls"),
        ("policy", "shop/web-clients"),
        ("reason", "upstream_reset"),
        ("response_flags", "UC"),
        ("caused_by", "upstream"),
    ] {
        assert_eq!(line[field], value, "{field} in {line}");
    }
    assert_eq!(line["bytes_sent"], 5);
    assert!(line["duration_ms"].is_u64());
    let kernel: serde_json::Value = serde_json::from_str(&lines[1]).unwrap();
    assert_eq!(kernel["path"], "unmeshed");
    assert_eq!(kernel["workload"], "shop/client");
    assert_eq!(kernel["duration_ms"], 2500);
    assert_eq!(kernel["security"], "none");
    assert!(kernel.get("source_principal").is_none());
}

#[test]
fn text_lines_are_one_line_each() {
    let lines = lines(false, one_of_each);
    assert_eq!(lines.len(), 2);
    assert!(
        lines[0].contains("access: connection closed direction=\"outbound\""),
        "{}",
        lines[0]
    );
    assert!(lines[0].contains("reason=\"upstream_reset\""));
}
