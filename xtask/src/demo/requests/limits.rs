//! Too many requests; and all of them, live.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::SOON;
use super::config::{self, API, LIMIT, WEB};
use super::stage::Stage;
use crate::demo::machine::eventually;
use crate::demo::narrator::Narrator;
use crate::demo::process::Process;
use crate::{interrupt, sh};

pub(super) fn rate_limit(tell: &mut Narrator, stage: &mut Stage) -> Result<()> {
    tell.step(
        "A rate limit",
        "The api takes five requests in five seconds from each client. The agent of the api's own node counts, so that it holds \
         however many nodes clients are on. What is too much gets 429 and is told when to come again.",
    )?;
    let text = config::limited();
    tell.print(&text, usize::MAX);
    stage.config.put("policy-api.yaml", &text)?;
    let url = format!("http://{API}/");
    // Each look at it is charged as well.
    eventually("answers speak of the limit", SOON, || {
        let answer = sh::output(&mut stage.curl(&["-i"], &url).1)?;
        Ok(answer.to_ascii_lowercase().contains("ratelimit-policy: "))
    })?;
    let tally = stage.many(3 * LIMIT, &[], API)?;
    tally.print();
    let (served, refused) = (tally.status(200), tally.status(429));
    ensure!(
        served <= LIMIT + 1 && served + refused == 3 * LIMIT,
        "{LIMIT} in five seconds gave {tally}"
    );
    let (shown, mut command) = stage.curl(&["-i"], &url);
    let said = tell.show(&shown, &mut command)?;
    let after = said.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let value = value.trim().parse::<u64>().ok()?;
        name.eq_ignore_ascii_case("retry-after").then_some(value)
    });
    let after = after.with_context(|| format!("429 without Retry-After: {said}"))?;
    ensure!(
        (1..=5).contains(&after),
        "Retry-After of {after} s with a limit per five"
    );
    interrupt::check()?;
    std::thread::sleep(Duration::from_secs(after));
    let tally = stage.many(1, &[], API)?;
    ensure!(
        tally.status(200) == 1,
        "refused after {after} s of waiting: {tally}"
    );
    tell.ok(format!(
        "{served} of {} served, {refused} refused; after the {after} s of Retry-After the client is served again",
        3 * LIMIT
    ));
    let (count, lines) = stage.metric(
        "mesh_rate_limit_decisions_total",
        &["per-client", "outcome=\"refused\""],
    )?;
    tell.print(&lines.join("\n"), 2);
    ensure!(
        count >= refused as f64,
        "{refused} were refused, and the metric says {count}"
    );
    Ok(())
}

pub(super) fn tap(tell: &mut Narrator, stage: &mut Stage) -> Result<()> {
    tell.step(
        "All of it, live",
        "`tap` shows requests as they end. Values in a query are never shown, nor are headers and bodies; who taps slows nobody \
         down.",
    )?;
    let (shown, mut command) = stage.agent.cli("tap --limit 8 --duration 20s");
    let output = stage.dir().join("tap.out");
    let mut tap = Process::start(&mut command, &output)?;
    let mut turn = 0;
    eventually("tap has shown eight requests", SOON, || {
        turn += 1;
        let address = if turn % 2 == 0 { API } else { WEB };
        let url = format!("http://{address}/cart?token=hunter{turn}");
        sh::output(&mut stage.curl(&[], &url).1)?;
        Ok(!tap.is_running())
    })?;
    println!("   $ {shown}");
    let said = std::fs::read_to_string(&output)?;
    tell.print(&said, 12);
    ensure!(
        said.contains("/cart") && said.contains("GET"),
        "tap shows no requests: {said}"
    );
    ensure!(!said.contains("hunter"), "tap shows values of queries");
    tell.ok("method, path, status, latency, both ends; and no secrets");
    Ok(())
}
