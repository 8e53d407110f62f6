//! What the mesh does and shows while all is well.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{SOON, wait_connection};
use crate::demo::config::{VIP, VIP6};
use crate::demo::machine::{self, eventually};
use crate::demo::narrator::Narrator;
use crate::demo::stage::{CLIENT, Stage, WEB};
use crate::demo::traffic::{Conversation, curl, fetch};
use crate::sh;

pub(super) fn balance(tell: &mut Narrator, stage: &mut Stage) -> Result<()> {
    tell.step(
        "A service, balanced over two backends",
        "No interface has the service's address: the kernel program hands the connection to the agent, which picks a \
         backend, in turn. nginx still sees the client's real address, although the agent stands between.",
    )?;
    let (shown, mut command) = curl(stage, &format!("http://{VIP}/"));
    tell.show(&shown, &mut command)?;
    for (url, client, requests) in [
        (format!("http://{VIP}/"), CLIENT.v4(), 20),
        (
            format!("http://[{VIP6}]/"),
            format!("fd88::{}", CLIENT.host),
            10,
        ),
    ] {
        let mut answers: BTreeMap<String, u32> = BTreeMap::new();
        for _ in 0..requests {
            *answers.entry(fetch(stage, &url)?).or_default() += 1;
        }
        println!("   $ curl {url}      # {requests} times");
        for (answer, times) in &answers {
            tell.print(&format!("{times:>4} x {answer}"), 1);
        }
        let expected: BTreeMap<String, u32> = WEB
            .iter()
            .map(|pod| (format!("{} answers {client}", pod.name), requests / 2))
            .collect();
        ensure!(answers == expected, "round robin should give {expected:?}");
    }
    tell.ok("half each, over IPv4 and over IPv6, and the client's address is the client's");
    let (shown, mut command) = stage.agent.cli("services");
    tell.show(&shown, &mut command)?;
    Ok(())
}

/// hello, one, two, three, each with its newline.
const ECHOED: u64 = 6 + 4 + 4 + 6;

pub(super) fn connections(tell: &mut Narrator, stage: &mut Stage) -> Result<Conversation> {
    tell.step(
        "Every connection, live",
        "A client talks to the echo port of the service. The kernel counts its bytes and times its packets; the agent \
         adds names, the endpoint and, in the end, the reason.",
    )?;
    let mut live = Conversation::open(stage, &format!("{VIP}:7000"))?;
    for word in ["one", "two", "three"] {
        live.say(word)?;
    }
    wait_connection(
        stage,
        "the connection to the service, with its bytes",
        |c| c["service"] == "shop/web" && c["direction"] == "outbound" && c["bytes_sent"] == ECHOED,
    )?;
    let (shown, mut command) = stage.agent.cli("connections");
    tell.show(&shown, &mut command)?;
    tell.ok(format!("{ECHOED} bytes were said, {ECHOED} were counted"));
    let (shown, mut command) = stage.agent.cli("connections --closed");
    tell.show_head(&shown, &mut command, 8)?;
    let closed = stage.agent.list("connections --closed")?;
    let completed = closed.iter().filter(|c| c["reason"] == "completed").count();
    ensure!(
        completed >= 30,
        "30 requests were made, {completed} closed connections are kept"
    );
    tell.ok("closed ones are kept for a while, with the reason of their end");
    Ok(live)
}

pub(super) fn outside_view(
    tell: &mut Narrator,
    stage: &mut Stage,
    live: &mut Conversation,
) -> Result<()> {
    tell.step(
        "The same from outside: bpftool",
        "The records live in a pinned BPF map with type information, so any BPF tool reads them by field name.",
    )?;
    let map = stage.agent.pins().join("conns");
    let mut bpftool = Command::new("bpftool");
    bpftool.args(["map", "dump", "pinned"]).arg(&map);
    let has_all = format!("\"bytes_sent\": {ECHOED},");
    // The agent refreshes the records of live connections every second.
    eventually(
        "the record of the live connection has its bytes",
        SOON,
        || Ok(sh::output(&mut bpftool)?.contains(&has_all)),
    )?;
    let dump = sh::output(&mut bpftool)?;
    let record = dump.split("},{").find(|record| record.contains(&has_all));
    println!("   $ bpftool map dump pinned {}", map.display());
    println!("     ...");
    tell.print(
        record.context("the record is gone")?.trim_matches('\n'),
        usize::MAX,
    );
    println!("     ...");
    for field in ["original_dst", "srtt_us", "close_reason"] {
        ensure!(dump.contains(field), "the dump names no field {field}");
    }
    live.say("four")?;
    tell.ok("the live connection, as the kernel keeps it");
    Ok(())
}

pub(super) fn metrics(tell: &mut Narrator, stage: &mut Stage) -> Result<()> {
    tell.step(
        "Metrics",
        "Prometheus scrapes port 15020. The names are Istio's, so dashboards made for Istio work.",
    )?;
    let mut scrape = machine::inside(&stage.node_ns(), "curl");
    scrape.args(["-sS", "--max-time", "10", "http://127.0.0.1:15020/metrics"]);
    let text = sh::output(&mut scrape)?;
    // HTTP is counted by requests, everything else by connections.
    let requests = sum_to_web(tell, &text, "istio_requests_total")?;
    let opened = sum_to_web(tell, &text, "istio_tcp_connections_opened_total")?;
    ensure!(
        requests >= 31.0 && opened >= 1.0,
        "31 requests and a conversation went to the service, the metrics say {requests} and {opened}"
    );
    tell.ok(format!(
        "{requests} requests and {opened} other connections went to the service from here"
    ));
    Ok(())
}

/// Shows one line of a family, and adds up what went from here to the service.
fn sum_to_web(tell: &mut Narrator, text: &str, family: &str) -> Result<f64> {
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with(family))
        .collect();
    println!("   $ curl -s http://127.0.0.1:15020/metrics | grep {family} | head -1");
    let first = lines.first().with_context(|| format!("no {family}"))?;
    tell.print(first, 1);
    let to_web = lines.iter().filter(|line| {
        line.contains("destination_service_name=\"web\"") && line.contains("reporter=\"source\"")
    });
    Ok(to_web
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum())
}
