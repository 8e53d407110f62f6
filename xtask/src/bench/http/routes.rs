//! routes-10k: what ten thousand rules take of memory.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::config;
use super::pods::{ENVOY_ADDRESS, NODE, ROUTES, ROUTES_ADDRESS};
use crate::bench::admin;
use crate::bench::bed::PROXY_CPU;
use crate::bench::process::{Running, pinned};
use crate::bench::proxies::{configs, wait, wait_listening};
use crate::bench::resources::Folder;
use crate::bench::works::Run;
use crate::deps;

const WORK: &str = "routes-10k";
const RULES: usize = 10_000;
/// As many as Gateway API lets a route have.
const RULES_OF_A_ROUTE: usize = 16;

pub(super) fn run(run: &mut Run<'_>) -> Result<()> {
    if !run.args.wants(WORK) {
        return Ok(());
    }
    println!("{WORK} ...");
    for &subject in run.subjects {
        let grown = match subject.name {
            "mesh" => mesh(run, &run.proxies.pids(subject))?,
            "envoy" => envoy(run, RULES)? - envoy(run, 0)?,
            _ => continue,
        };
        let mebibytes = grown / f64::from(1 << 20);
        run.add(WORK, subject, "resident_grown", "MiB", mebibytes);
    }
    Ok(())
}

/// A running agent is given the routes.
fn mesh(run: &Run<'_>, pid: &str) -> Result<f64> {
    let mut routes = String::new();
    for first in (0..RULES).step_by(RULES_OF_A_ROUTE) {
        let rules: String = (first..RULES.min(first + RULES_OF_A_ROUTE))
            .map(|rule| {
                format!(
                    "  - matches: [{{path: {{type: Exact, value: /other/{rule}}}}}]\n    backendRefs: [{{name: load, port: 8080}}]\n"
                )
            })
            .collect();
        let _ = write!(
            routes,
            "---\n{}  rules:\n{rules}",
            config::route_head(&format!("many-{first}"), 8080)
        );
    }
    let folder = Folder::new(run.bed.dir.join("etc/config"))?;
    let node = run.bed.ns(NODE);
    let before = (admin::bound_matches(&node)?, resident(pid)?);
    folder.put("many.yaml", &routes)?;
    let reached = wait_for(&node, before.0 + RULES);
    let grown = resident(pid)? - before.1;
    folder.remove("many.yaml")?;
    reached?;
    wait_for(&node, before.0)?;
    Ok(grown)
}

fn wait_for(node: &str, matches: usize) -> Result<()> {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let bound = admin::bound_matches(node)?;
        if bound == matches {
            return Ok(());
        }
        ensure!(
            std::time::Instant::now() < deadline,
            "the agent has {bound} matches, not {matches}"
        );
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

/// One that starts with so many more routes.
fn envoy(run: &Run<'_>, rules: usize) -> Result<f64> {
    let envoy = deps::envoy::path();
    ensure!(envoy.exists(), "not installed; cargo xtask deps bench");
    let base = fs::read_to_string(configs().join("http/envoy.yaml"))?;
    let (head, tail) = base
        .split_once("              - match: {prefix: /admin/}")
        .context("no route for /admin/ in http/envoy.yaml")?;
    let mut text = head.to_owned();
    for rule in 0..rules {
        let _ = writeln!(
            text,
            "              - match: {{path: /other/{rule}}}\n                route: {{cluster: http1, timeout: 0s}}"
        );
    }
    text = text + "              - match: {prefix: /admin/}" + tail;
    let file = run.bed.dir.join(format!("envoy-{rules}.yaml"));
    fs::write(&file, text.replace(ENVOY_ADDRESS, ROUTES_ADDRESS))?;
    let mut command = pinned(PROXY_CPU, &run.bed.ns(ROUTES), envoy);
    command.args([
        "--concurrency",
        "1",
        "--disable-hot-restart",
        "-l",
        "warning",
    ]);
    command.arg("-c").arg(&file);
    let mut running = Running::start(&mut command, &run.bed.log(ROUTES))?;
    wait_listening(ROUTES, &mut running, &run.bed.ns(ROUTES), 28_081)?;
    let pid = running.pid().to_string();
    // It listens before it has given back what reading took.
    let mut last = 0.0;
    wait("its memory rests", &mut running, || {
        let now = resident(&pid)?;
        std::thread::sleep(std::time::Duration::from_millis(500));
        let rests = now == last;
        last = now;
        Ok(rests)
    })?;
    resident(&pid)
}

/// Bytes.
fn resident(pid: &str) -> Result<f64> {
    let status = fs::read_to_string(Path::new("/proc").join(pid).join("status"))?;
    let kib = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib: f64 = kib
        .and_then(|l| l.split_whitespace().next()?.parse().ok())
        .context("no VmRSS")?;
    Ok(kib * 1024.0)
}
