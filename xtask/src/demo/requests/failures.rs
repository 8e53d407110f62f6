//! Pods that fail or are slow, and what clients see of it.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::SOON;
use super::config::{self, API, API_1, WEB, WEB_1};
use super::stage::Stage;
use crate::demo::machine::eventually;
use crate::demo::narrator::Narrator;

const RETRIES: &str = "mesh_request_retries_total";

pub(super) fn retries(tell: &mut Narrator, stage: &mut Stage) -> Result<()> {
    tell.step(
        "Retries over a failing pod",
        "web-1 answers 503 to everything. A rule without `retry` passes that on, because it is the server's answer. With it the \
         request goes to the other pod, and the client never knows. A budget keeps retries from making a bad day worse: ten a \
         second and a fifth of the requests.",
    )?;
    stage.put_route("web", "once", &config::once())?;
    stage.behave(WEB_1, 503, 0.0)?;
    let tally = stage.many(20, &[], WEB)?;
    tally.print();
    ensure!(
        tally.of("503 from web-1") == 10,
        "half should fail without retries: {tally}"
    );
    tell.say("With a retry, the rule is:");
    let text = config::retried();
    tell.print(&text, usize::MAX);
    stage.put_route("web", "retried", &text)?;
    let made = || stage.metric(RETRIES, &["outcome=\"made\""]);
    let before = made()?.0;
    let tally = stage.many(30, &[], WEB)?;
    tally.print();
    ensure!(tally.status(200) == 30, "the client saw failures: {tally}");
    let (after, lines) = made()?;
    println!("   $ curl http://127.0.0.1:15020/metrics | grep {RETRIES}      # on the node");
    tell.print(&lines.join("\n"), 4);
    let retried = after - before;
    ensure!(
        retried >= 10.0,
        "web-1 is one of two and answered none of the 30, and the metric says {retried} retries"
    );
    tell.ok(format!(
        "30 of 30 were answered; {retried} of them needed a second attempt, says the metric"
    ));
    Ok(())
}

pub(super) fn breaker(tell: &mut Narrator, stage: &mut Stage) -> Result<()> {
    tell.step(
        "A circuit breaker opens",
        "To ask a pod that only ever fails is a waste. After five failures in a row the breaker takes web-1 out of use \
         for a while; then nothing has to be retried any more.",
    )?;
    let text = config::breaker();
    tell.print(&text, usize::MAX);
    stage.config.put("policy-web-v1.yaml", &text)?;
    eventually("web-1 has a breaker", SOON, || {
        Ok(stage.endpoint("web-v1", WEB_1)?["breaker"] == "closed")
    })?;
    let tally = stage.many(20, &[], WEB)?;
    ensure!(tally.status(200) == 20, "the client saw failures: {tally}");
    let state = stage.endpoint("web-v1", WEB_1)?;
    ensure!(
        state["breaker"] == "open",
        "after 20 requests the breaker of web-1 should be open: {state}"
    );
    let (shown, mut command) = stage.agent.cli("endpoints shop/web-v1");
    tell.show(&shown, &mut command)?;
    let seen = stage.seen(WEB_1);
    let tally = stage.many(10, &[], WEB)?;
    tally.print();
    ensure!(tally.status(200) == 10, "the client saw failures: {tally}");
    // A probe may have been due in between.
    let asked = stage.seen(WEB_1) - seen;
    ensure!(asked <= 1, "web-1 was asked {asked} times while open");
    tell.ok("open: web-1 is left alone, web-2 does the work, and the client sees none of it");
    Ok(())
}

pub(super) fn recovery(tell: &mut Narrator, stage: &mut Stage) -> Result<()> {
    tell.step(
        "... and closes",
        "web-1 is mended. When its time is over the breaker is half open: one request at a time may probe. Two that \
         succeed close it.",
    )?;
    stage.behave(WEB_1, 200, 0.0)?;
    let begun = Instant::now();
    eventually("the breaker of web-1 is closed", SOON, || {
        let tally = stage.many(2, &[], WEB)?;
        ensure!(tally.status(200) == 2, "the client saw failures: {tally}");
        Ok(stage.endpoint("web-v1", WEB_1)?["breaker"] == "closed")
    })?;
    let took = begun.elapsed().as_millis();
    let (shown, mut command) = stage.agent.cli("endpoints shop/web-v1");
    tell.show(&shown, &mut command)?;
    let name = "mesh_breaker_transitions_total";
    println!("   $ curl http://127.0.0.1:15020/metrics | grep {name}      # on the node");
    for to in ["Open", "HalfOpen", "Closed"] {
        let (count, lines) = stage.metric(name, &[&format!("to=\"{to}\""), "web-v1"])?;
        tell.print(&lines.join("\n"), 2);
        ensure!(count >= 1.0, "no transition to {to} was counted");
    }
    let tally = stage.many(10, &[], WEB)?;
    tally.print();
    ensure!(
        tally.of("200 from web-1") == 5,
        "web-1 should have its half again: {tally}"
    );
    tell.ok(format!(
        "closed {took} ms after it was mended, and half of the requests are web-1's again"
    ));
    Ok(())
}

pub(super) fn timeout(tell: &mut Narrator, stage: &mut Stage) -> Result<()> {
    tell.step(
        "A timeout",
        "The api takes three seconds for everything. The rule gives it half a second; then the client has an answer that \
         says who gave up, and why.",
    )?;
    stage.behave(API_1, 200, 3.0)?;
    let text = config::timed();
    tell.print(&text, usize::MAX);
    stage.put_route("api", "timed", &text)?;
    let (shown, mut command) = stage.curl(&["-i"], &format!("http://{API}/slow"));
    let begun = Instant::now();
    let said = tell.show(&shown, &mut command)?;
    let took = begun.elapsed();
    ensure!(
        said.starts_with("HTTP/1.1 504 "),
        "a timeout should be 504: {said}"
    );
    ensure!(
        said.to_ascii_lowercase().contains("proxy-status: "),
        "nobody says why: {said}"
    );
    ensure!(
        (0.45..2.5).contains(&took.as_secs_f64()),
        "half a second took {took:?}"
    );
    tell.ok(format!("504 after {} ms", took.as_millis()));
    stage.behave(API_1, 200, 0.0)
}
