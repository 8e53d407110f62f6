//! Traces over two agents, as a collector gets them: one trace, each span below the one before; and requests that go on whether a
//! collector is there or not.

use std::{sync::Arc, time::Duration};

use mesh_tests::{
    Mesh, Pod,
    collector::{self, Collector, Span, Spans},
    config, eventually, eventually_some,
    http::{Answer, Ask, HttpServer, Load, Speaks},
    runner::Shared,
    tests,
};

use crate::http_common::{BOTH, ask, get, service, vip};

static BENCH: Shared<Bench> = Shared::new();

tests! {
    four_spans_one_below_the_other,
    a_span_for_each_attempt,
    what_is_not_sampled_stays_so,
    b3_in_either_form,
    a_trace_begins_here,
    a_collector_that_is_away(deadline = 120),
}

pub(crate) fn teardown() {
    BENCH.clear();
}

struct Bench {
    spans: Spans,
    _servers: Vec<HttpServer>,
    mesh: Mesh,
    _collectors: Vec<Collector>,
}

/// `client` on one node, `web` on another, a collector on each; what nobody has decided on is sampled.
fn bench() -> Arc<Bench> {
    BENCH.get(|| {
        let mut mesh = Mesh::plan(2)
            .pod(0, "client")
            .pod(1, "web")
            .file(
                "service.yaml",
                &service("shop", "web", 1, "web", &[(80, 8080, "http")]),
            )
            .file(
                "traffic.yaml",
                &config::traffic_policy(
                    "shop",
                    "web",
                    "  retries: {attempts: 2, budget: {percent: 100}}",
                ),
            )
            .args(&[
                "--otlp-endpoint",
                collector::ENDPOINT,
                "--trace-sampling",
                "100",
            ])
            .prepare();
        let spans = Spans::default();
        let collectors = (0..2)
            .map(|at| Collector::start(mesh.node(at), &spans))
            .collect();
        mesh.start_agents();
        let web = mesh.pod("web");
        let server = HttpServer::start(web, web.v4(8080), "web");
        Bench {
            spans,
            _servers: vec![server],
            mesh,
            _collectors: collectors,
        }
    })
}

/// Of who sends the request.
const PARENT: &str = "00f067aa0ba902b7";

/// A trace that nobody else has.
fn trace(n: u8, speaks: Speaks) -> String {
    format!(
        "4bf92f3577b34da6a3ce929d0e0e{n:02x}{:02x}",
        speaks as u8 + 1
    )
}

impl Bench {
    fn client(&self) -> &Arc<Pod> {
        self.mesh.pod("client")
    }

    fn send(&self, speaks: Speaks, request: &Ask) -> Answer {
        let answer = ask(self.client(), vip(1, 80), speaks, request);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer
    }

    /// The spans of a trace, once there are so many, in the order of the way.
    fn spans(&self, trace: &str, n: usize) -> Vec<Span> {
        let mut spans = eventually_some("spans", Duration::from_secs(15), || {
            let spans = self.spans.of(trace);
            if spans.len() >= n {
                Ok(spans)
            } else {
                Err(format!("{spans:?}"))
            }
        });
        assert_eq!(spans.len(), n, "{spans:?}");
        let place = |s: &Span| (s.service != "client", s.kind != "server");
        spans.sort_by_key(place);
        spans
    }
}

/// The one below the other, down from who asked; returns the last one's ID.
fn hangs_together(spans: &[Span], mut parent: String) -> String {
    let ways: Vec<_> = spans.iter().map(|s| (s.service.as_str(), s.kind)).collect();
    let expected = [
        ("client", "server"),
        ("client", "client"),
        ("web", "server"),
        ("web", "client"),
    ];
    assert_eq!(ways, expected, "{spans:?}");
    for span in spans {
        assert_eq!(span.parent, parent, "{spans:?}");
        parent.clone_from(&span.id);
    }
    parent
}

fn four_spans_one_below_the_other() {
    let bench = bench();
    for speaks in BOTH {
        let trace = trace(1, speaks);
        let request = Ask::get("/traced?secret=word")
            .header("traceparent", &format!("00-{trace}-{PARENT}-01"))
            .header("tracestate", "vendor=1");
        let answer = bench.send(speaks, &request);
        let spans = bench.spans(&trace, 4);
        let last = hangs_together(&spans, PARENT.into());
        assert_eq!(
            answer.sent("traceparent"),
            Some(format!("00-{trace}-{last}-01"))
        );
        assert_eq!(answer.sent("tracestate").as_deref(), Some("vendor=1"));
        for (span, direction) in spans.iter().zip(["outbound", "", "inbound", ""]) {
            assert_eq!(span.attribute("mesh.direction"), direction, "{span:?}");
            assert_eq!(
                span.attribute("http.response.status_code"),
                "200",
                "{span:?}"
            );
            assert_eq!(span.name, "GET");
            assert!(!format!("{span:?}").contains("secret"), "{span:?}");
        }
        assert_eq!(spans[0].attribute("mesh.service"), "shop/web");
        assert_eq!(spans[1].attribute("mesh.destination_workload"), "shop/web");
        assert_eq!(spans[2].attribute("mesh.source_workload"), "shop/client");
        assert_eq!(spans[2].attribute("mesh.security"), "mutual_tls");
    }
}

fn a_span_for_each_attempt() {
    let bench = bench();
    for speaks in BOTH {
        let trace = trace(2, speaks);
        let request = Ask::get(&format!("/fail/1/503/{speaks:?}"))
            .header("traceparent", &format!("00-{trace}-{PARENT}-01"));
        let answer = bench.send(speaks, &request);
        // Of the client's agent one and two attempts below it, of the other's two times two.
        let spans = bench.spans(&trace, 7);
        let served: Vec<_> = spans.iter().filter(|s| s.parent == PARENT).collect();
        assert_eq!(served.len(), 1, "{spans:?}");
        assert_eq!(served[0].attribute("mesh.attempts"), "2");
        let attempts: Vec<_> = spans.iter().filter(|s| s.parent == served[0].id).collect();
        let codes = |status: &str| {
            let of = attempts
                .iter()
                .filter(|s| s.attribute("http.response.status_code") == status);
            of.map(|s| s.attribute("http.request.resend_count"))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            (codes("503"), codes("200")),
            (vec![""], vec!["1"]),
            "{attempts:?}"
        );
        for attempt in attempts {
            let far: Vec<_> = spans.iter().filter(|s| s.parent == attempt.id).collect();
            assert_eq!(far.len(), 1, "{spans:?}");
            assert_eq!((far[0].service.as_str(), far[0].kind), ("web", "server"));
            let asked: Vec<_> = spans.iter().filter(|s| s.parent == far[0].id).collect();
            assert_eq!(asked.len(), 1, "{spans:?}");
            if attempt.attribute("http.response.status_code") == "200" {
                let sent = answer.sent("traceparent").unwrap();
                assert_eq!(sent, format!("00-{trace}-{}-01", asked[0].id));
            }
        }
    }
}

fn what_is_not_sampled_stays_so() {
    let bench = bench();
    for speaks in BOTH {
        let (quiet, loud) = (trace(3, speaks), trace(4, speaks));
        let sent = format!("00-{quiet}-{PARENT}-00");
        let answer = bench.send(speaks, &Ask::get("/quiet").header("traceparent", &sent));
        assert_eq!(answer.sent("traceparent"), Some(sent));
        let b3 = format!("{quiet}-{PARENT}-0");
        let answer = bench.send(speaks, &Ask::get("/quiet").header("b3", &b3));
        assert_eq!(
            (answer.sent("b3"), answer.sent("traceparent")),
            (Some(b3), None)
        );
        // The decision alone.
        let answer = bench.send(speaks, &Ask::get("/quiet").header("x-b3-sampled", "0"));
        assert_eq!(answer.sent("x-b3-sampled").as_deref(), Some("0"));
        let begun = answer.sent("x-b3-traceid").unwrap();
        // What came later has arrived of both agents: so would have what came before.
        let request = Ask::get("/").header("traceparent", &format!("00-{loud}-{PARENT}-01"));
        bench.send(speaks, &request);
        bench.spans(&loud, 4);
        assert_eq!(bench.spans.of(&quiet), []);
        assert_eq!(bench.spans.of(&begun), []);
    }
}

fn b3_in_either_form() {
    let bench = bench();
    for speaks in BOTH {
        let single = trace(5, speaks);
        let request = Ask::get("/").header("b3", &format!("{single}-{PARENT}-1-05e3ac9a4f6e3b90"));
        let answer = bench.send(speaks, &request);
        let last = hangs_together(&bench.spans(&single, 4), PARENT.into());
        assert_eq!(answer.sent("b3"), Some(format!("{single}-{last}-1")));
        assert_eq!(answer.sent("traceparent"), None, "its form is kept");
        // In several headers, with a short ID.
        let several = trace(6, speaks)[16..].to_owned();
        let request = Ask::get("/")
            .header("x-b3-traceid", &several)
            .header("x-b3-spanid", PARENT)
            .header("x-b3-sampled", "1");
        let answer = bench.send(speaks, &request);
        let whole = format!("{:0>32}", several);
        let last = hangs_together(&bench.spans(&whole, 4), PARENT.into());
        assert_eq!(answer.sent("x-b3-traceid"), Some(several));
        assert_eq!(answer.sent("x-b3-spanid"), Some(last));
        assert_eq!(answer.sent("x-b3-sampled").as_deref(), Some("1"));
        assert_eq!(
            (answer.sent("b3"), answer.sent("traceparent")),
            (None, None)
        );
    }
}

fn a_trace_begins_here() {
    let bench = bench();
    for speaks in BOTH {
        let malformed = "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01";
        for request in [
            Ask::get("/"),
            Ask::get("/").header("traceparent", malformed),
        ] {
            let answer = bench.send(speaks, &request);
            let sent = answer.sent("traceparent").unwrap();
            let parts: Vec<_> = sent.split('-').collect();
            let last = hangs_together(&bench.spans(parts[1], 4), String::new());
            assert_eq!(parts, ["00", parts[1], &last, "01"], "{sent}");
        }
    }
}

/// One node, and nobody listens where its spans go.
fn a_collector_that_is_away() {
    let mesh = Mesh::plan(1)
        .pods(0, &["client", "web"])
        .file(
            "service.yaml",
            &service("shop", "web", 1, "web", &[(80, 8080, "http")]),
        )
        .args(&[
            "--otlp-endpoint",
            collector::ENDPOINT,
            "--trace-sampling",
            "100",
        ])
        .start();
    let web = mesh.pod("web");
    let _server = HttpServer::start(web, web.v4(8080), "web");
    let metric = |name: &str| mesh.agent(0).metrics().sum(name, &[]);
    let to = vip(1, 80);
    // More than are kept: two traces of two spans for each request, of 2,048 in the queue and 256 on their way.
    let load = Load::start(mesh.pod("client"), to, &[Speaks::Http2; 4], &Ask::get("/"));
    eventually("spans are dropped", Duration::from_secs(60), || {
        metric("mesh_spans_dropped_total") >= 100.0
    });
    let outcome = load.finish();
    assert!(outcome.bad.is_empty(), "{outcome:?}");
    assert!(metric("mesh_span_exports_failed_total") >= 1.0);
    assert_eq!(metric("mesh_spans_exported_total"), 0.0);
    let warned = mesh.agent(0).log_lines("the collector does not take spans");
    assert_eq!(warned.len(), 1, "said once: {warned:?}");
    // It comes, and gets what is kept and what is new.
    let spans = Spans::default();
    let _collector = Collector::start(mesh.node(0), &spans);
    let trace = trace(7, Speaks::Http1);
    eventually("the kept spans", Duration::from_secs(30), || {
        spans.len() >= 2_048
    });
    let request = Ask::get("/").header("traceparent", &format!("00-{trace}-{PARENT}-01"));
    let answer = ask(mesh.pod("client"), to, Speaks::Http1, &request);
    assert_eq!(answer.status, 200, "{answer:?}");
    eventually("a new one", Duration::from_secs(15), || {
        spans.of(&trace).len() == 4
    });
    // Each span has come or is counted as lost.
    let made = 4.0 * (outcome.good + 1) as f64;
    eventually_some("counted", Duration::from_secs(15), || {
        let exported = metric("mesh_spans_exported_total");
        let dropped = metric("mesh_spans_dropped_total");
        if exported == spans.len() as f64 && exported + dropped == made {
            Ok(())
        } else {
            let came = spans.len();
            Err(format!("{exported} ({came} came) and {dropped} of {made}"))
        }
    });
    let again = mesh.agent(0).log_lines("the collector takes spans again");
    assert_eq!(again.len(), 1, "{again:?}");
    assert_eq!(get(mesh.pod("client"), to, "/").status, 200);
}
