//! The exposition: complete, well formed, bounded.

use std::{
    collections::BTreeSet,
    io::Write as _,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use super::fake::{name, outbound, sum, telemetry};
use crate::{
    resilience::{BreakerState, LimitCounts},
    telemetry::{
        AgentGauges, AgentSource, CertificateGauge, ConfigGauges, ConnMeta, EndpointGauge,
        FileGauge, HealthGauges, IdentityGauges, MapGauge, Outcome, PoolGauge, Reason, Role,
        ServiceGauge, Telemetry, TelemetryOptions, TunnelGauge,
    },
};

struct Gauges;

impl AgentSource for Gauges {
    fn gauges(&self) -> AgentGauges {
        AgentGauges {
            maps: vec![MapGauge {
                name: "conns".into(),
                entries: 3,
                max_entries: 65_536,
            }],
            bpf_events: vec![("captured_outbound", 12)],
            workloads: vec![("enrolled", 2), ("failed", 1)],
            config: vec![ConfigGauges {
                source: "file".into(),
                last_applied: Some(SystemTime::now() - Duration::from_secs(5)),
                last_reload_ok: false,
                resources: 9,
            }],
            identity: IdentityGauges {
                certificates: [("client", Some(3_600)), ("web", None)]
                    .map(|(account, left)| CertificateGauge {
                        identity: format!("spiffe://cluster.local/ns/shop/sa/{account}"),
                        validity: left.map(|s| {
                            let now = SystemTime::now();
                            (now - Duration::from_secs(60), now + Duration::from_secs(s))
                        }),
                        failures: 4,
                    })
                    .to_vec(),
                ca: "built-in".into(),
                ca_requests: vec![("signed", 7), ("unavailable", 2)],
                roots: [2_000_000_000, 1_900_000_000]
                    .map(|s| SystemTime::UNIX_EPOCH + Duration::from_secs(s))
                    .to_vec(),
                bundle: Some(FileGauge {
                    ok: true,
                    errors: 0,
                }),
                crl: Some(FileGauge {
                    ok: false,
                    errors: 5,
                }),
                revoked: 3,
            },
            tunnels: vec![TunnelGauge {
                direction: "outbound",
                open: 2,
                streams: 40,
            }],
            services: vec![ServiceGauge {
                name: name("shop/web"),
                in_flight: 3,
                pending: 1,
                budget: Some(9.0),
                limits: vec![(
                    "per-client".into(),
                    LimitCounts {
                        allowed: 5,
                        refused: 2,
                        shadow_refused: 1,
                    },
                )],
                endpoints: vec![EndpointGauge {
                    address: "10.0.0.2:8080".into(),
                    breaker: BreakerState::Open {
                        until: Instant::now(),
                    },
                }],
            }],
            pool: PoolGauge {
                open: 4,
                idle: 3,
                opened: 9,
                closed: 5,
                reused: 100,
                stale: 1,
            },
            health: HealthGauges {
                checks: vec![("good", 5), ("bad", 2), ("unknown", 0)],
                unhealthy: vec![(name("shop/web"), 1)],
            },
        }
    }
}

/// One that shows every family.
fn full() -> Telemetry {
    let (t, _) = telemetry(TelemetryOptions {
        node: "node-\"1\"".into(),
        ..TelemetryOptions::default()
    });
    t.set_agent_source(Arc::new(Gauges));
    for reason in Reason::ALL {
        t.open(outbound(0)).finish(*reason);
    }
    t.enrolment_error("no_netns");
    t.config_rejected("file");
    t.handshake_failed(Role::Server, "unknown_root");
    t.handshake_done(Role::Client, Duration::from_micros(1_500));
    t.handshake_done(Role::Client, Duration::from_secs(60));
    t.decision(Some(&name("shop/web-clients")), Outcome::Allow);
    t.decision(None, Outcome::Deny);
    t
}

fn to(service: &str) -> ConnMeta {
    ConnMeta {
        service: Some(name(service)),
        ..outbound(0)
    }
}

fn families(text: &str, comment: &str) -> BTreeSet<String> {
    text.lines()
        .filter_map(|l| l.strip_prefix(comment)?.split(' ').next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_sample_has_a_type_and_a_help() {
    let text = full().exposition();
    let (types, helps) = (families(&text, "# TYPE "), families(&text, "# HELP "));
    assert_eq!(types, helps);
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let family = line.split(['{', ' ']).next().unwrap();
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|part| family.strip_suffix(part).filter(|f| types.contains(*f)))
            .unwrap_or(family);
        assert!(types.contains(family), "{line}");
        assert!(
            line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(),
            "{line}"
        );
    }
    assert!(!text.contains("# EOF"));
    assert!(
        text.contains("node=\"node-\\\"1\\\"\""),
        "labels are escaped"
    );
    assert_eq!(
        sum(&text, "mesh_config_rejected_total", &[("source", "file")]),
        1
    );
    assert_eq!(sum(&text, "mesh_config_last_reload_success", &[]), 0);
    assert_eq!(
        sum(
            &text,
            "mesh_enrolment_errors_total",
            &[("reason", "no_netns")]
        ),
        1
    );
    assert!(sum(&text, "process_max_fds", &[]) > 0);
}

#[test]
fn what_the_parts_hold_is_shown() {
    let text = full().exposition();
    let web = ("destination_service_name", "web");
    for (family, labels, n) in [
        ("mesh_requests_in_flight", &[web][..], 3),
        ("mesh_requests_pending", &[web], 1),
        ("mesh_retry_budget_balance", &[web], 9),
        ("mesh_endpoints_ejected", &[web], 1),
        (
            "mesh_breaker_state",
            &[web, ("endpoint", "10.0.0.2:8080")],
            2,
        ),
        (
            "mesh_rate_limit_decisions_total",
            &[web, ("limit", "per-client"), ("outcome", "refused")],
            2,
        ),
        ("mesh_pool_connections", &[("state", "idle")], 3),
        ("mesh_pool_events_total", &[("event", "reused")], 100),
    ] {
        assert_eq!(sum(&text, family, labels), n, "{family}");
    }
}

#[test]
fn no_series_stands_twice() {
    let text = full().exposition();
    let mut seen = BTreeSet::new();
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let series = line.rsplit_once(' ').unwrap().0;
        assert!(seen.insert(series), "{series} twice");
    }
}

#[test]
fn promtool_is_content() {
    let Ok(mut promtool) = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
    else {
        eprintln!("skipped: promtool (Debian package prometheus) is not installed");
        return;
    };
    let text = full().exposition();
    promtool
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let out = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success() && said.is_empty(), "{said}");
}

#[test]
fn docs_and_exposition_name_the_same_metrics() {
    let docs = include_str!("../../../../docs/reference/metrics.md");
    let documented: BTreeSet<String> = docs
        .lines()
        .filter_map(|l| l.strip_prefix("| `")?.split('`').next())
        .filter(|n| {
            ["istio_", "mesh_", "process_"]
                .iter()
                .any(|p| n.starts_with(p))
        })
        .map(str::to_owned)
        .collect();
    assert_eq!(documented, families(&full().exposition(), "# TYPE "));
    for reason in Reason::ALL {
        assert!(
            docs.contains(&format!(
                "| `{reason}` | `{}` | {} | {} |",
                reason.flag(),
                reason.party().as_str(),
                reason.explain()
            )),
            "{reason}"
        );
    }
}

#[test]
fn causes_of_failed_handshakes_are_documented() {
    let docs = include_str!("../../../../docs/reference/metrics.md");
    for cause in crate::identity::PeerRefused::CAUSES {
        let listed = docs
            .lines()
            .any(|line| line.starts_with("| `") && line.contains(&format!("`{cause}`")));
        assert!(listed, "{cause}");
    }
}

#[test]
fn istios_labels_are_complete() {
    let text = full().exposition();
    let line = text
        .lines()
        .find(|l| l.starts_with("istio_tcp_connections_closed_total{"))
        .unwrap();
    let labels: Vec<&str> = line
        .split_once('{')
        .unwrap()
        .1
        .split("\",")
        .filter_map(|pair| pair.split('=').next())
        .collect();
    for label in [
        "reporter",
        "source_workload",
        "source_workload_namespace",
        "source_principal",
        "source_app",
        "source_version",
        "source_cluster",
        "source_canonical_service",
        "source_canonical_revision",
        "destination_workload",
        "destination_workload_namespace",
        "destination_principal",
        "destination_app",
        "destination_version",
        "destination_cluster",
        "destination_canonical_service",
        "destination_canonical_revision",
        "destination_service",
        "destination_service_name",
        "destination_service_namespace",
        "request_protocol",
        "response_flags",
        "connection_security_policy",
    ] {
        assert!(labels.contains(&label), "{label} in {labels:?}");
    }
    assert_eq!(
        labels.len(),
        23,
        "no label of our own among Istio's: {labels:?}"
    );
}

#[test]
fn above_the_cap_one_series_takes_the_rest() {
    let (t, _) = telemetry(TelemetryOptions {
        flows_max: 3,
        ..TelemetryOptions::default()
    });
    for n in 0..10 {
        t.open(to(&format!("shop/s{n}"))).finish(Reason::Completed);
    }
    let text = t.exposition();
    let series = text
        .lines()
        .filter(|l| l.starts_with("istio_tcp_connections_closed_total{"))
        .count();
    assert_eq!(series, 4);
    let overflow = [
        ("destination_service", "overflow"),
        ("source_workload", "overflow"),
    ];
    assert_eq!(
        sum(&text, "istio_tcp_connections_closed_total", &overflow),
        7
    );
    assert_eq!(sum(&text, "mesh_metrics_overflow_total", &[]), 7);
    assert_eq!(
        sum(&text, "istio_tcp_connections_closed_total", &[]),
        10,
        "none is lost"
    );
}

#[test]
fn idle_series_go_and_those_in_use_stay() {
    let (t, _) = telemetry(TelemetryOptions::default());
    t.open(to("shop/old")).finish(Reason::Completed);
    let living = t.open(to("shop/long"));
    living.counters().add_sent(1);
    t.exposition();
    let idle = t.options().flows_idle;
    t.shared
        .flows
        .expire(Instant::now() + idle - Duration::from_secs(1));
    let has = |t: &Telemetry, s: &str| {
        let text = t.exposition();
        sum(
            &text,
            "istio_tcp_connections_opened_total",
            &[("destination_service_name", s)],
        ) > 0
    };
    assert!(has(&t, "old"), "not idle for long enough");
    t.shared
        .flows
        .expire(Instant::now() + idle + Duration::from_secs(1));
    assert!(!has(&t, "old"));
    assert!(has(&t, "long"), "a connection holds it");
    living.finish(Reason::Completed);
    t.shared
        .flows
        .expire(Instant::now() + idle + Duration::from_secs(1));
    assert!(
        !has(&t, "long"),
        "the ring of closed connections does not hold it"
    );
}
