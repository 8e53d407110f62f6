//! Who may connect to whom.

use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::SOON;
use super::config::{BATCH, CLIENT, WEB, only_the_client};
use super::stage::Stage;
use crate::demo::machine::eventually;
use crate::demo::narrator::Narrator;
use crate::demo::traffic::Conversation;

const FILE: &str = "web-callers.yaml";

pub(super) fn dry_run(tell: &mut Narrator, stage: &mut Stage) -> Result<()> {
    tell.step(
        "A policy, tried first",
        "Only the client may connect to web, says the policy; as a dry run it decides nothing. It is logged and counted \
         what it would have done, on real traffic.",
    )?;
    let text = only_the_client(true);
    stage.config.put(FILE, &text)?;
    tell.print(&text, usize::MAX);
    eventually("the policy is known", SOON, || {
        Ok(!stage.agent(WEB).list("policies")?.is_empty())
    })?;
    let (shown, mut command) = stage.agent(WEB).cli("policies");
    tell.show(&shown, &mut command)?;
    let (shown, mut command) = stage.curl(BATCH, "");
    tell.show(&shown, &mut command)?;
    let would = "outcome=\"dry_run_deny\"";
    let counted = || {
        let mut command = crate::demo::machine::inside(&stage.node_ns(1), "curl");
        command.args(["-sS", "http://127.0.0.1:15020/metrics"]);
        let metrics = crate::sh::output(&mut command)?;
        let line = metrics.lines().find(|line| {
            line.starts_with("mesh_authorization_decisions_total") && line.contains(would)
        });
        Ok::<_, anyhow::Error>(line.map(str::to_owned))
    };
    eventually("the decision is counted", SOON, || Ok(counted()?.is_some()))?;
    println!("   $ curl http://127.0.0.1:15020/metrics | grep dry_run      # on node b");
    tell.print(&counted()?.unwrap_or_default(), 1);
    tell.ok("batch was served, and it is known that it would not have been");
    let (shown, mut command) = stage.explain(BATCH, 8080);
    tell.show(&shown, &mut command)?;
    tell.ok("explain asks the data path's own code, policy by policy");
    Ok(())
}

pub(super) fn edit(tell: &mut Narrator, stage: &mut Stage) -> Result<()> {
    tell.step(
        "In earnest: connections that live are cut",
        "batch and the client each hold a connection to web's echo server. The line `dryRun` goes. A policy that reached \
         only new connections would leave batch where it is for days.",
    )?;
    let echo = format!("{}:7000", WEB.v4());
    let mut allowed = Conversation::from(&stage.pod_ns(CLIENT), &echo)?;
    let mut forbidden = Conversation::from(&stage.pod_ns(BATCH), &echo)?;
    forbidden.say("as yet")?;
    let begun = Instant::now();
    stage.config.put(FILE, &only_the_client(false))?;
    forbidden.wait_end().context("the connection of batch")?;
    let took = begun.elapsed();
    allowed.say("not me").context("the connection of client")?;
    tell.ok(format!(
        "batch was cut off {} ms after the edit; the client's connection lives",
        took.as_millis()
    ));
    ensure!(took.as_secs() < 2, "it took {took:?}");
    let (shown, mut command) = stage.curl(BATCH, "");
    println!("   $ {shown}");
    let output = command.output()?;
    ensure!(!output.status.success(), "batch was served");
    tell.print(&String::from_utf8_lossy(&output.stderr), 1);
    let (shown, mut command) = stage.explain(BATCH, 7000);
    tell.show(&shown, &mut command)?;
    let (shown, mut command) = stage
        .agent(WEB)
        .cli("connections --closed --reason policy_denied");
    tell.show_head(&shown, &mut command, 4)?;
    let closed = stage.agent(WEB).list("connections --closed")?;
    ensure!(
        closed.iter().any(|c| c["reason"] == "policy_denied"),
        "no connection was closed by policy"
    );
    ensure!(stage.is_served(CLIENT), "the client is not served");
    Ok(())
}
