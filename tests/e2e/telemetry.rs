//! What is reported: the same numbers everywhere, and they are the true ones.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::Command,
    sync::Arc,
    time::Duration,
};

use mesh_tests::{
    Bed, Pod,
    bed::{NAMESPACE, Plan, needs_mesh},
    command::{self, Process},
    eventually, eventually_some, prereq, run,
    runner::Shared,
    tests,
    traffic::{self, Server},
};
use serde_json::Value;

use crate::common::{
    INBOUND, OUTBOUND, PASSTHROUGH, PROXIED, UNMESHED, map_empties, must_be_reset, must_echo, ping,
    record_of, records,
};

static BED: Shared<Bed> = Shared::new();

tests! {
    bytes_are_equal_everywhere,
    one_log_line_for_each_connection,
    live_connections_are_listed,
    closed_connections_are_listed_with_reasons,
    passthrough_is_recorded,
    unmeshed_is_recorded,
    fields_of_the_map_have_names,
    standard_metric_labels,
    prometheus_scrapes_us,
    map_occupancy_and_build_info,
}

pub(crate) fn teardown() {
    BED.clear();
}

fn bed() -> Arc<Bed> {
    BED.get(|| {
        needs_mesh();
        plan().start()
    })
}

fn plan() -> Plan {
    Bed::plan()
        .pods(&["client", "web1"])
        .outsider("ext")
        .service("web", &[(80, 8080)])
        .mesh_policy("  exclude:\n    ports: [7777]")
}

const THERE: u64 = 1_234_567;
const BACK: u64 = 7_654_321;

/// Reads exactly `THERE` bytes and answers with `BACK`, then waits for the FIN.
fn answering(pod: &Pod, addr: SocketAddr) -> Server {
    Server::start(pod, addr, |mut stream, _| {
        let mut buffer = vec![0_u8; THERE as usize];
        stream.read_exact(&mut buffer).unwrap();
        stream.write_all(&vec![1_u8; BACK as usize]).unwrap();
        assert_eq!(stream.read(&mut buffer).unwrap(), 0);
    })
}

/// `THERE` there and `BACK` back, the connection still open.
fn transfer(client: &Pod, to: SocketAddr) -> TcpStream {
    let mut stream = traffic::connect(client, to).unwrap();
    stream.write_all(&vec![2_u8; THERE as usize]).unwrap();
    let mut buffer = vec![0_u8; BACK as usize];
    stream.read_exact(&mut buffer).unwrap();
    stream
}

/// FIN both ways.
fn finish(stream: &TcpStream) {
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(
        traffic::read_to_end(stream),
        (Vec::new(), traffic::End::Fin)
    );
}

/// Closed connections that the CLI lists for one workload and the client's address.
fn closed(bed: &Bed, workload: &str, source: SocketAddr) -> Vec<Value> {
    let all = bed.agent().json(&["connections", "--closed"]);
    all.as_array()
        .unwrap_or_else(|| panic!("not a list: {all}"))
        .iter()
        .filter(|c| {
            c["workload"] == format!("{NAMESPACE}/{workload}") && c["source"] == source.to_string()
        })
        .cloned()
        .collect()
}

/// The only closed connection of that workload and client.
fn one_closed(bed: &Bed, workload: &str, source: SocketAddr) -> Value {
    eventually_some("it is in the closed list", Duration::from_secs(5), || {
        let found = closed(bed, workload, source);
        match found.as_slice() {
            [one] => Ok(one.clone()),
            all => Err(format!("{} of them: {all:?}", all.len())),
        }
    })
}

/// Access log lines about connections from this client.
fn log_lines(bed: &Bed, source: SocketAddr) -> Vec<String> {
    bed.agent()
        .log_lines("connection closed")
        .into_iter()
        .filter(|l| l.contains(&source.to_string()))
        .collect()
}

/// A log line that says `field` is `value`, as text or as JSON.
fn says(line: &str, field: &str, value: impl std::fmt::Display) -> bool {
    let value = value.to_string();
    let plain = strip_colour(line);
    [
        format!("{field}={value} "),
        format!("{field}=\"{value}\""),
        format!("\"{field}\":{value}"),
        format!("\"{field}\":\"{value}\""),
    ]
    .iter()
    .any(|form| format!("{plain} ").contains(form))
}

fn strip_colour(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some(at) = rest.find('\x1b') {
        out.push_str(&rest[..at]);
        rest = rest[at..].find('m').map_or("", |end| &rest[at + end + 1..]);
    }
    out + rest
}

fn bytes_are_equal_everywhere() {
    needs_mesh();
    // Its own: it counts bytes of metrics that every connection of the workload adds to.
    let bed = plan().start();
    let agent = bed.agent();
    let (client, web, ext) = (bed.pod("client"), bed.pod("web1"), bed.pod("ext"));
    for v6 in [false, true] {
        // Client, server, and whose view is looked at.
        for (from, to, outbound, inbound) in [
            (client, ext, true, false),
            (ext, web, false, true),
            (client, web, true, true),
        ] {
            let server = answering(to, to.addr(v6, 0));
            let before = agent.metrics();
            let stream = transfer(from, server.addr);
            let me = stream.local_addr().unwrap();
            // Alive: the map has it all, at the latest with the refresh of each second.
            let seen = |want: u64, direction: u64, local: SocketAddr| {
                eventually_some("the map has all bytes", Duration::from_secs(5), || {
                    let all = records(&bed);
                    let record = all
                        .iter()
                        .find(|r| r.direction == direction && r.local == local);
                    match record {
                        Some(r)
                            if r.bytes_sent == want
                                && r.bytes_sent + r.bytes_received == THERE + BACK =>
                        {
                            Ok(())
                        }
                        other => Err(format!("{other:?}")),
                    }
                });
            };
            if outbound {
                seen(THERE, OUTBOUND, me);
            }
            if inbound {
                seen(BACK, INBOUND, server.addr);
            }
            finish(&stream);
            // Closed: list, log and metrics.
            for (yes, pod, source, sent, received) in [
                (outbound, from, Some(me), THERE, BACK),
                (inbound, to, (!outbound).then_some(me), BACK, THERE),
            ] {
                if !yes {
                    continue;
                }
                let reporter = if sent == THERE {
                    "source"
                } else {
                    "destination"
                };
                if let Some(source) = source {
                    let row = one_closed(&bed, &pod.name, source);
                    assert_eq!(
                        (&row["bytes_sent"], &row["bytes_received"], &row["reason"]),
                        (&sent.into(), &received.into(), &"completed".into()),
                        "{row}"
                    );
                    eventually_some("the log has it", Duration::from_secs(5), || {
                        let lines = log_lines(&bed, source);
                        let found = lines.iter().any(|l| {
                            says(l, "bytes_sent", sent)
                                && says(l, "bytes_received", received)
                                && says(l, "reason", "completed")
                        });
                        if found {
                            Ok(())
                        } else {
                            Err(format!("{lines:?}"))
                        }
                    });
                }
                let workload = if reporter == "source" {
                    "source_workload"
                } else {
                    "destination_workload"
                };
                let labels = [("reporter", reporter), (workload, pod.name.as_str())];
                eventually_some("the metrics have all bytes", Duration::from_secs(5), || {
                    let now = agent.metrics();
                    let grown = |name: &str| now.sum(name, &labels) - before.sum(name, &labels);
                    // Istio's names are seen from the destination: it receives the request and sends the response.
                    let found = (
                        grown("istio_tcp_received_bytes_total"),
                        grown("istio_tcp_sent_bytes_total"),
                    );
                    if found == (THERE as f64, BACK as f64) {
                        Ok(())
                    } else {
                        Err(format!("{found:?} for {labels:?}"))
                    }
                });
            }
        }
    }
}

fn one_log_line_for_each_connection() {
    let bed = bed();
    let (client, ext) = (bed.pod("client"), bed.pod("ext"));
    let server = Server::echo(ext, ext.v4(0));
    let clients: Vec<SocketAddr> = (0..50)
        .map(|n| {
            let stream = traffic::connect(client, server.addr).unwrap();
            let me = stream.local_addr().unwrap();
            // Ends of every sort.
            match n % 3 {
                0 => crate::common::echoes(&stream),
                1 => drop(stream),
                _ => traffic::reset(stream),
            }
            me
        })
        .collect();
    eventually_some("a line for each", Duration::from_secs(10), || match clients
        .iter()
        .find(|c| log_lines(&bed, **c).is_empty())
    {
        None => Ok(()),
        Some(c) => Err(format!("none for {c}")),
    });
    for client in clients {
        let lines = log_lines(&bed, client);
        assert_eq!(lines.len(), 1, "{lines:?}");
    }
}

fn live_connections_are_listed() {
    let bed = bed();
    let (client, web) = (bed.pod("client"), bed.pod("web1"));
    let _server = Server::echo(web, web.v4(8080));
    let to = bed.service("web", false, 80);
    let stream = traffic::connect(client, to).unwrap();
    ping(&stream).unwrap();
    let me = stream.local_addr().unwrap();
    let row = eventually_some("it is listed", Duration::from_secs(5), || {
        let all = bed.agent().json(&["connections"]);
        all.as_array()
            .unwrap()
            .iter()
            .find(|c| c["source"] == me.to_string() && c["direction"] == "outbound")
            .cloned()
            .ok_or_else(|| all.to_string())
    });
    for (field, value) in [
        ("workload", format!("{NAMESPACE}/client")),
        ("path", "proxied".into()),
        ("original_dst", to.to_string()),
        ("service", format!("{NAMESPACE}/web")),
        ("upstream", web.v4(8080).to_string()),
        ("upstream_workload", format!("{NAMESPACE}/web1")),
        ("state", "established".into()),
    ] {
        assert_eq!(row[field], value, "{field} of {row}");
    }
    for (filter, hit) in [
        (["--workload", "client"], true),
        (["--workload", "shop/nobody"], false),
        (["--service", "web"], true),
        (["--service", "nothing"], false),
        (["--port", "80"], true),
        (["--port", "4711"], false),
        (["--state", "established"], true),
        (["--state", "close_wait"], false),
    ] {
        let all = bed
            .agent()
            .json(&[&["connections"][..], &filter[..]].concat());
        let found = all
            .as_array()
            .unwrap()
            .iter()
            .any(|c| c["source"] == me.to_string() && c["direction"] == "outbound");
        assert_eq!(found, hit, "{filter:?}: {all}");
    }
    finish(&stream);
}

fn closed_connections_are_listed_with_reasons() {
    let bed = bed();
    let (client, ext) = (bed.pod("client"), bed.pod("ext"));
    // A refused one.
    let from = client.v4(23001);
    if let Ok(stream) = traffic::connect_from(client, from, ext.v4(1)) {
        traffic::read_to_end(&stream);
    }
    assert_eq!(
        one_closed(&bed, "client", from)["reason"],
        "upstream_refused"
    );
    // One reset by the client, one by the server.
    let server = Server::start(ext, ext.v4(0), |mut stream, _| {
        let mut buffer = [0_u8; 5];
        stream.read_exact(&mut buffer).unwrap();
        if &buffer == b"reset" {
            traffic::reset(stream);
        } else {
            stream.write_all(&buffer).unwrap();
            traffic::read_to_end(&stream);
        }
    });
    let from = client.v4(23002);
    let stream = traffic::connect_from(client, from, server.addr).unwrap();
    ping(&stream).unwrap();
    traffic::reset(stream);
    assert_eq!(one_closed(&bed, "client", from)["reason"], "client_reset");
    let from = client.v4(23003);
    let mut stream = traffic::connect_from(client, from, server.addr).unwrap();
    stream.write_all(b"reset").unwrap();
    traffic::read_to_end(&stream);
    let row = one_closed(&bed, "client", from);
    assert_eq!(row["reason"], "upstream_reset");
    assert_eq!(row["response_flags"], "UC");
    // The filter finds them.
    let found = bed
        .agent()
        .json(&["connections", "--closed", "--reason", "upstream_reset"]);
    let found = found.as_array().unwrap();
    assert!(!found.is_empty());
    assert!(found.iter().all(|c| c["reason"] == "upstream_reset"));
    let text = String::from_utf8(bed.agent().cli(&["connections", "--closed"]).stdout).unwrap();
    assert!(text.contains("upstream_reset"), "{text}");
}

fn passthrough_is_recorded() {
    let bed = bed();
    let (client, ext) = (bed.pod("client"), bed.pod("ext"));
    let server = answering(ext, ext.v4(7777));
    let stream = transfer(client, server.addr);
    let me = stream.local_addr().unwrap();
    let record = record_of(&bed, &stream);
    assert_eq!(
        (
            record.path,
            record.direction,
            record.remote,
            record.original_dst
        ),
        (PASSTHROUGH, OUTBOUND, server.addr, server.addr)
    );
    finish(&stream);
    let row = one_closed(&bed, "client", me);
    assert_eq!(row["path"], "passthrough");
    assert_eq!(
        (&row["bytes_sent"], &row["bytes_received"], &row["reason"]),
        (&THERE.into(), &BACK.into(), &"completed".into()),
        "{row}"
    );
}

/// Connections from before the enrolment are listed, counted, and removed when they end.
fn unmeshed_is_recorded() {
    needs_mesh();
    let mut bed = Bed::plan().pods(&["client"]).outsider("ext").prepare();
    let (client, ext) = (Arc::clone(bed.pod("client")), Arc::clone(bed.pod("ext")));
    let server = answering(&ext, ext.v4(0));
    let mut stream = traffic::connect(&client, server.addr).unwrap();
    let me = stream.local_addr().unwrap();
    bed.start_agent();
    let record = record_of(&bed, &stream);
    assert_eq!(
        (record.path, record.remote),
        (UNMESHED, server.addr),
        "{record:?}"
    );
    stream.write_all(&vec![2_u8; THERE as usize]).unwrap();
    let mut buffer = vec![0_u8; BACK as usize];
    stream.read_exact(&mut buffer).unwrap();
    eventually_some("its bytes are refreshed", Duration::from_secs(5), || {
        let record = record_of(&bed, &stream);
        if (record.bytes_sent, record.bytes_received) == (THERE, BACK) {
            Ok(())
        } else {
            Err(format!("{record:?}"))
        }
    });
    finish(&stream);
    let row = one_closed(&bed, "client", me);
    assert_eq!(row["path"], "unmeshed");
    map_empties(&bed, "conns");
}

fn fields_of_the_map_have_names() {
    let bed = bed();
    let (client, ext) = (bed.pod("client"), bed.pod("ext"));
    let server = Server::echo(ext, ext.v4(0));
    let stream = traffic::connect(client, server.addr).unwrap();
    ping(&stream).unwrap();
    let record = record_of(&bed, &stream);
    assert_eq!(record.local, stream.local_addr().unwrap());
    assert_eq!(record.remote, server.addr);
    assert_eq!(record.original_dst, server.addr);
    assert_eq!((record.path, record.state), (PROXIED, 1));
    let entries = mesh_tests::bpf::dump(bed.agent().node(), "conns");
    for field in [
        "netns",
        "local",
        "remote",
        "original_dst",
        "start_ns",
        "last_ns",
        "bytes_sent",
        "bytes_received",
        "srtt_us",
        "retransmits",
        "state",
        "direction",
        "path",
        "close_reason",
    ] {
        assert!(!entries[0]["value"][field].is_null(), "no field {field}");
    }
    finish(&stream);
}

fn standard_metric_labels() {
    let bed = bed();
    let (client, web) = (bed.pod("client"), bed.pod("web1"));
    let _server = Server::echo(web, web.v4(8080));
    must_echo(client, bed.service("web", false, 80));
    must_be_reset(client, bed.pod("ext").v4(1), Duration::from_secs(3));
    let labels = [
        ("source_workload", "client"),
        ("source_workload_namespace", NAMESPACE),
        ("destination_workload", "web1"),
        ("destination_service", "web.shop.svc.cluster.local"),
        ("destination_service_name", "web"),
        ("destination_service_namespace", NAMESPACE),
        ("request_protocol", "tcp"),
        ("response_flags", "-"),
    ];
    eventually_some("the standard metrics", Duration::from_secs(5), || {
        let scrape = bed.agent().metrics();
        for reporter in ["source", "destination"] {
            let mut labels = labels.to_vec();
            labels.push(("reporter", reporter));
            for name in [
                "istio_tcp_connections_opened_total",
                "istio_tcp_connections_closed_total",
            ] {
                if scrape.sum(name, &labels) < 1.0 {
                    return Err(format!("{name} with {labels:?}"));
                }
            }
        }
        if scrape.sum(
            "istio_tcp_connections_closed_total",
            &[("source_workload", "client"), ("response_flags", "UF")],
        ) < 1.0
        {
            return Err("no refused one under its flag".into());
        }
        if scrape.sum(
            "mesh_connections_closed_total",
            &[
                ("source_workload", "client"),
                ("reason", "upstream_refused"),
            ],
        ) < 1.0
        {
            return Err("no refused one under its reason".into());
        }
        Ok(())
    });
}

/// Debian's Prometheus, its API asked.
fn prometheus_scrapes_us() {
    prereq::programs(&["prometheus", "curl"]);
    let bed = bed();
    let (client, ext) = (bed.pod("client"), bed.pod("ext"));
    let server = Server::echo(ext, ext.v4(0));
    must_echo(client, server.addr);
    let home = run::folder().join(run::unique());
    std::fs::create_dir_all(&home).unwrap();
    let config = home.join("prometheus.yml");
    std::fs::write(
        &config,
        "global:\n  scrape_interval: 1s\nscrape_configs:\n- job_name: mesh\n  static_configs:\n  - targets: ['127.0.0.1:15020']\n",
    )
    .unwrap();
    let node = &bed.node;
    let prometheus = Process::start(
        node,
        "prometheus",
        Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                home.join("data").display()
            ))
            .arg("--web.listen-address=127.0.0.1:9090"),
    );
    let ask = |path: &str| -> Result<Value, String> {
        let out = command::output(
            node,
            Command::new("curl").args([
                "-sSg",
                "--max-time",
                "5",
                &format!("http://127.0.0.1:9090{path}"),
            ]),
            Duration::from_secs(10),
        );
        serde_json::from_slice(&out.stdout).map_err(|e| {
            format!(
                "{e}: {}{}",
                String::from_utf8_lossy(&out.stderr),
                prometheus.log()
            )
        })
    };
    eventually_some("up=1", Duration::from_secs(30), || {
        let answer = ask("/api/v1/query?query=up{job=\"mesh\"}")?;
        if answer["data"]["result"][0]["value"][1] == "1" {
            Ok(())
        } else {
            Err(format!("{answer}, {}", ask("/api/v1/targets")?))
        }
    });
    let metadata = eventually_some("metadata", Duration::from_secs(10), || {
        let answer = ask("/api/v1/targets/metadata?limit=1000")?;
        match answer["data"].as_array() {
            Some(all) if all.len() > 5 => Ok(all.clone()),
            _ => Err(answer.to_string()),
        }
    });
    for family in &metadata {
        let name = family["metric"].as_str().unwrap_or_default();
        if name.starts_with("istio_") || name.starts_with("mesh_") {
            assert_ne!(family["type"], "unknown", "{family}");
            assert_ne!(family["help"], "", "{family}");
        }
    }
    let has = |name: &str, kind: &str| {
        metadata.iter().any(|f| {
            f["metric"]
                .as_str()
                .is_some_and(|m| m.trim_end_matches("_total") == name)
                && f["type"] == kind
        })
    };
    assert!(
        has("istio_tcp_connections_opened", "counter"),
        "{metadata:?}"
    );
    assert!(has("mesh_build_info", "gauge"), "{metadata:?}");
    eventually_some("a query of ours", Duration::from_secs(10), || {
        let answer = ask(
            "/api/v1/query?query=sum(istio_tcp_connections_opened_total{source_workload=\"client\"})",
        )?;
        match answer["data"]["result"][0]["value"][1].as_str() {
            Some(n) if n != "0" => Ok(()),
            _ => Err(answer.to_string()),
        }
    });
    if prereq::find("promtool").is_some() {
        let page = bed.agent().get("/metrics").unwrap().1;
        let file = home.join("page");
        std::fs::write(&file, page).unwrap();
        let script = format!("promtool check metrics < {}", file.display());
        let out = command::output(
            node,
            Command::new("sh").args(["-c", &script]),
            Duration::from_secs(10),
        );
        assert!(
            out.status.success(),
            "promtool: {}{}",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
    }
}

fn map_occupancy_and_build_info() {
    let bed = bed();
    let scrape = bed.agent().metrics();
    assert_eq!(scrape.matching("mesh_build_info", &[]).count(), 1);
    for map in ["workloads", "conns", "orig_dst", "listen_ports"] {
        let labels = [("map", map)];
        assert_eq!(
            scrape.matching("mesh_bpf_map_entries", &labels).count(),
            1,
            "{map}"
        );
        assert!(
            scrape.sum("mesh_bpf_map_max_entries", &labels) > 0.0,
            "{map}"
        );
    }
    assert_eq!(
        scrape.sum("mesh_bpf_map_entries", &[("map", "workloads")]),
        2.0
    );
    assert!(scrape.sum("mesh_workloads", &[("state", "enrolled")]) == 2.0);
    assert_eq!(scrape.sum("mesh_config_last_reload_success", &[]), 1.0);
    let (status, _) = bed.agent().get("/healthz").unwrap();
    assert_eq!(status, 200);
    let (status, _) = bed.agent().get("/nothing").unwrap();
    assert_eq!(status, 404);
    eventually("no connection is active", Duration::from_secs(5), || {
        bed.agent()
            .metrics()
            .sum("mesh_bpf_map_entries", &[("map", "orig_dst")])
            == 0.0
    });
}
