//! Principals and the security policy: in the metrics, the rows and the label sets they make; decisions, handshakes.

use std::time::Duration;

use super::fake::{inbound, name, outbound, sum, telemetry};
use crate::{
    model::SpiffeId,
    telemetry::{Outcome, Reason, Role, TelemetryOptions},
};

fn id(account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/shop/sa/{account}")
        .parse()
        .unwrap()
}

const DEFAULT: &str = "spiffe://cluster.local/ns/shop/sa/default";

#[test]
fn principals_reach_metrics_and_rows_at_both_reporters() {
    let (t, _) = telemetry(TelemetryOptions::default());
    for meta in [outbound(11), inbound(12)] {
        let guard = t.open(meta);
        guard.set_upstream("10.0.0.2:8080".parse().unwrap(), Some(name("shop/web-1")));
        guard.set_security(Some(id("default")), Some(id("web")));
        guard.established(None);
        guard.counters().add_sent(7);
        let rows = t.open_connections();
        assert_eq!(rows[0].security, "mutual_tls");
        assert_eq!(rows[0].source_principal.as_deref(), Some(DEFAULT));
        assert_eq!(rows[0].source_workload.as_deref(), Some("shop/client"));
        guard.finish(Reason::Completed);
    }
    let closed = t.closed_connections();
    assert_eq!(
        closed[0].destination_principal.as_deref(),
        Some("spiffe://cluster.local/ns/shop/sa/web")
    );
    let text = t.exposition();
    for reporter in ["source", "destination"] {
        let labels = [
            ("reporter", reporter),
            ("source_workload", "client"),
            ("source_principal", DEFAULT),
            (
                "destination_principal",
                "spiffe://cluster.local/ns/shop/sa/web",
            ),
            ("connection_security_policy", "mutual_tls"),
        ];
        for family in [
            "istio_tcp_connections_opened_total",
            "istio_tcp_connections_closed_total",
        ] {
            assert_eq!(sum(&text, family, &labels), 1, "{family} {reporter}");
        }
        assert_eq!(sum(&text, "istio_tcp_received_bytes_total", &labels), 7);
    }
    assert_eq!(
        sum(
            &text,
            "istio_tcp_connections_opened_total",
            &[("connection_security_policy", "none")]
        ),
        0
    );
}

#[test]
fn plain_and_tunnelled_connections_of_one_pair_are_counted_apart() {
    let (t, _) = telemetry(TelemetryOptions::default());
    t.open(outbound(1)).finish(Reason::Completed);
    for account in ["web", "other", "web"] {
        let guard = t.open(outbound(2));
        guard.set_security(Some(id("default")), Some(id(account)));
        guard.finish(Reason::Completed);
    }
    let text = t.exposition();
    let closed = |labels: &[(&str, &str)]| sum(&text, "istio_tcp_connections_closed_total", labels);
    assert_eq!(
        closed(&[
            ("connection_security_policy", "none"),
            ("source_principal", "unknown"),
            ("destination_principal", "unknown")
        ]),
        1
    );
    assert_eq!(closed(&[("connection_security_policy", "mutual_tls")]), 3);
    assert_eq!(
        closed(&[(
            "destination_principal",
            "spiffe://cluster.local/ns/shop/sa/web"
        )]),
        2
    );
    assert_eq!(t.closed_connections()[3].security, "none");
}

#[test]
fn a_certificate_is_believed_more_than_an_address() {
    let (t, _) = telemetry(TelemetryOptions::default());
    // The address is shop/client's, whose service account is `default`.
    let guard = t.open(inbound(21));
    guard.set_security(Some(id("mallory")), Some(id("web")));
    guard.set_policy(name("shop/no-mallory"));
    guard.finish(Reason::PolicyDenied);
    let row = &t.closed_connections()[0];
    assert_eq!(row.source_workload, None);
    assert_eq!(row.policy.as_deref(), Some("shop/no-mallory"));
    assert_eq!(
        row.source_principal.as_deref(),
        Some("spiffe://cluster.local/ns/shop/sa/mallory")
    );
    let text = t.exposition();
    let closed = |workload| {
        sum(
            &text,
            "istio_tcp_connections_closed_total",
            &[
                ("source_workload", workload),
                (
                    "source_principal",
                    "spiffe://cluster.local/ns/shop/sa/mallory",
                ),
                ("response_flags", "DENY"),
            ],
        )
    };
    assert_eq!((closed("client"), closed("unknown")), (0, 1));
    // The same workload under an alias of the trust domain is no stranger.
    let guard = t.open(inbound(22));
    guard.set_security(
        Some("spiffe://old.example/ns/shop/sa/default".parse().unwrap()),
        None,
    );
    guard.finish(Reason::Completed);
    assert_eq!(
        t.closed_connections()[0].source_workload.as_deref(),
        Some("shop/client")
    );
}

#[test]
fn the_overflow_series_keep_the_security_policy() {
    let (t, _) = telemetry(TelemetryOptions {
        flows_max: 0,
        ..TelemetryOptions::default()
    });
    t.open(outbound(1)).finish(Reason::Completed);
    let guard = t.open(outbound(2));
    guard.set_security(Some(id("default")), Some(id("web")));
    guard.finish(Reason::Completed);
    let text = t.exposition();
    for policy in ["none", "mutual_tls"] {
        let labels = [
            ("connection_security_policy", policy),
            ("source_principal", "overflow"),
        ];
        assert_eq!(
            sum(&text, "istio_tcp_connections_closed_total", &labels),
            1,
            "{policy}"
        );
    }
}

#[test]
fn decisions_and_handshakes_are_counted_by_cause() {
    let (t, _) = telemetry(TelemetryOptions::default());
    let policy = name("shop/web-clients");
    for outcome in [Outcome::Allow, Outcome::Allow, Outcome::DryRunDeny] {
        t.decision(Some(&policy), outcome);
    }
    t.decision(None, Outcome::Deny);
    t.handshake_failed(Role::Client, "expired");
    t.handshake_failed(Role::Server, "expired");
    t.handshake_failed(Role::Server, "expired");
    t.handshake_done(Role::Server, Duration::from_millis(2));
    t.handshake_done(Role::Server, Duration::from_secs(30));
    let text = t.exposition();
    let decided =
        |labels: &[(&str, &str)]| sum(&text, "mesh_authorization_decisions_total", labels);
    let by_policy = [("policy", "web-clients"), ("namespace", "shop")];
    assert_eq!(decided(&by_policy), 3);
    assert_eq!(decided(&[by_policy[0], ("outcome", "allow")]), 2);
    assert_eq!(decided(&[("policy", "-"), ("outcome", "deny")]), 1);
    let failed = |labels: &[(&str, &str)]| sum(&text, "mesh_tls_handshake_failures_total", labels);
    assert_eq!(failed(&[("cause", "expired")]), 3);
    assert_eq!(failed(&[("role", "client"), ("cause", "expired")]), 1);
    let took = |part, labels: &[(&str, &str)]| {
        sum(
            &text,
            &format!("mesh_tls_handshake_duration_seconds_{part}"),
            labels,
        )
    };
    assert_eq!(took("count", &[("role", "server")]), 2);
    assert_eq!(took("bucket", &[("role", "server"), ("le", "0.001")]), 0);
    assert_eq!(took("bucket", &[("role", "server"), ("le", "0.0025")]), 1);
    assert_eq!(took("bucket", &[("role", "server"), ("le", "+Inf")]), 2);
    assert_eq!(took("sum", &[("role", "server")]), 30);
}

#[test]
fn the_kernels_record_says_whether_there_is_mutual_tls() {
    use mesh_common::{Direction, Path};
    let (t, store) = telemetry(TelemetryOptions::default());
    let record = super::fake::record(Direction::Outbound, Path::Proxied);
    for cookie in [31, 32] {
        store.put(cookie, record);
    }
    let plain = t.open(outbound(31));
    let secured = t.open(outbound(32));
    secured.set_security(Some(id("default")), Some(id("web")));
    secured.established(None);
    plain.counters().add_sent(1);
    t.refresh(1);
    let security = |cookie| store.get(cookie).map(|r| r.security);
    assert_eq!((security(31), security(32)), (Some(0), Some(1)));
    let writes = crate::telemetry::lock(&store.writes).len();
    t.refresh(2);
    assert_eq!(
        crate::telemetry::lock(&store.writes).len(),
        writes,
        "nothing has changed"
    );
    // Read by an agent that did not carry it.
    let (later, other) = telemetry(TelemetryOptions::default());
    other.put(32, store.get(32).unwrap());
    assert_eq!(later.open_connections()[0].security, "mutual_tls");
    plain.finish(Reason::Completed);
    secured.finish(Reason::Completed);
}

#[test]
fn a_policy_takes_its_series_along() {
    let (t, _) = telemetry(TelemetryOptions::default());
    for policy in ["shop/web-clients", "shop/gone"] {
        t.decision(Some(&name(policy)), Outcome::Allow);
    }
    let decided = |t: &crate::telemetry::Telemetry, policy| {
        let text = t.exposition();
        sum(
            &text,
            "mesh_authorization_decisions_total",
            &[("policy", policy)],
        )
    };
    assert_eq!(decided(&t, "gone"), 1);
    t.refresh(0);
    assert_eq!((decided(&t, "gone"), decided(&t, "web-clients")), (0, 1));
}
