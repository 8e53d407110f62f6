//! What the mesh does when something is not well, and how it goes.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{NAMES, SOON};
use crate::demo::config::VIP;
use crate::demo::machine::eventually;
use crate::demo::narrator::Narrator;
use crate::demo::stage::{CLIENT, Stage, WEB};
use crate::demo::traffic::{self, Conversation, curl, fetch, fetch_fails};
use crate::sh;

pub(super) fn dead_backend(tell: &mut Narrator, stage: &mut Stage) -> Result<()> {
    tell.step(
        "A dead backend is passed over",
        "nginx of web-2 is stopped. The agent notices that nobody listens there any more, and from then on the pod's \
         port refuses as it would without a mesh. A connection that one backend refuses goes to the next before \
         the client could notice.",
    )?;
    stage.stop_server("nginx web-2");
    let begun = Instant::now();
    eventually("web-2 no longer listens on port 8080", SOON, || {
        let workloads = stage.agent.list("workloads")?;
        let web_2 = workloads.iter().find(|w| w["name"] == "shop/web-2");
        let ports = web_2.and_then(|w| w["listen_ports"].as_array());
        Ok(ports.is_some_and(|ports| !ports.contains(&Value::from(8080))))
    })?;
    tell.ok(format!(
        "noticed {} ms after nginx was gone",
        begun.elapsed().as_millis()
    ));
    for _ in 0..10 {
        let answer = fetch(stage, &format!("http://{VIP}/"))?;
        ensure!(
            answer.starts_with("web-1 "),
            "{answer:?} came from a dead backend"
        );
    }
    tell.ok("10 of 10 requests were answered, by web-1");
    let (said, took) = fetch_fails(stage, &format!("http://{}:8080/", WEB[1].v4()))?;
    println!("   $ curl http://{}:8080/", WEB[1].v4());
    tell.print(&said, 3);
    ensure!(took < Duration::from_secs(5), "the refusal took {took:?}");
    tell.ok(format!(
        "the closed port itself was refused in {} ms",
        took.as_millis()
    ));
    traffic::start_nginx(stage, WEB[1])?;
    eventually("web-2 takes traffic again", SOON, || {
        Ok(fetch(stage, &format!("http://{VIP}/"))?.starts_with("web-2 "))
    })?;
    tell.ok("nginx is back, and web-2 takes its share again");
    Ok(())
}

pub(super) fn bad_edit(tell: &mut Narrator, stage: &mut Stage) -> Result<()> {
    tell.step(
        "A bad edit is refused",
        "Port 70000 is written into the service. The directory is one transaction: nothing of it is taken, the agent \
         says where the mistake is, and what was in effect stays.",
    )?;
    stage.config.service(70000)?;
    let (shown, mut command) = stage
        .agent
        .cli_local(&format!("config validate {}", stage.config.dir().display()));
    println!("   $ {shown}");
    let output = command.output()?;
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    tell.print(&said, 6);
    ensure!(
        !output.status.success(),
        "`config validate` accepted port 70000"
    );
    ensure!(
        said.contains("70000") && said.contains("service.yaml:"),
        "the message does not say where"
    );
    eventually("status says that the edit was refused", SOON, || {
        let status = stage.agent.json("status")?;
        Ok(status.to_string().contains("70000"))
    })?;
    let (shown, mut command) = stage.agent.cli("status");
    tell.show_head(&shown, &mut command, 30)?;
    fetch(stage, &format!("http://{VIP}/"))?;
    tell.ok("the agent says so in `status`, and the service still answers with the last good configuration");
    stage.config.service(80)?;
    eventually("the mended configuration is applied", SOON, || {
        let status = stage.agent.json("status")?;
        Ok(!status.to_string().contains("70000"))
    })?;
    tell.ok("mended, and applied");
    Ok(())
}

pub(super) fn killed(
    tell: &mut Narrator,
    stage: &mut Stage,
    old: &mut Conversation,
    live: &mut Conversation,
) -> Result<()> {
    tell.step(
        "kill -9: nobody is silently uncaptured",
        "The programs and maps are pinned, they outlive the agent. With the fail policy `closed` (the default) captured \
         pods are refused at once while no agent listens: no hang, and no traffic past the mesh. Connections through \
         the agent die with it, others do not notice. A new agent adopts what it finds.",
    )?;
    let map = map_id(stage)?;
    tell.say(format!("$ kill -9 {}", stage.agent.pid()));
    stage.agent.kill()?;
    let (said, took) = fetch_fails(stage, &format!("http://{VIP}/"))?;
    let (shown, _) = curl(stage, &format!("http://{VIP}/"));
    println!("   $ {shown}");
    tell.print(&said, 3);
    ensure!(
        took < Duration::from_secs(2),
        "it took {took:?} to be refused"
    );
    tell.ok(format!(
        "refused after {} ms, curl's own start included",
        took.as_millis()
    ));
    live.wait_end().context("the proxied connection")?;
    old.say("no agent needed")
        .context("the connection older than the mesh")?;
    tell.ok("the proxied connection was ended; the one older than the mesh lives");
    let begun = Instant::now();
    stage.agent.start()?;
    stage.agent.wait_state(&NAMES, "enrolled")?;
    let answer = fetch(stage, &format!("http://{VIP}/"))?;
    tell.ok(format!(
        "{} ms after its restart: {answer}",
        begun.elapsed().as_millis()
    ));
    ensure!(
        map_id(stage)? == map,
        "the maps were made anew instead of adopted"
    );
    tell.ok(format!(
        "it adopted the pinned maps (`conns` is map {map} as before)"
    ));
    Ok(())
}

pub(super) fn release(tell: &mut Narrator, stage: &mut Stage) -> Result<()> {
    tell.step(
        "Release",
        "SIGTERM lets connections end first. Then `release` takes out everything that the agent ever put into the \
         kernel and says what that was. The pods talk plainly again, and the service's address is nowhere.",
    )?;
    let map = map_id(stage)?;
    stage.agent.stop()?;
    tell.ok("the agent ended on SIGTERM");
    let (shown, mut command) = stage.agent.cli("release");
    tell.show(&shown, &mut command)?;
    let pins = stage.agent.pins();
    ensure!(!pins.exists(), "{} is still there", pins.display());
    // The kernel frees a map a moment after its last user.
    eventually(&format!("map {map} is gone from the kernel"), SOON, || {
        Ok(!sh::succeeds(Command::new("bpftool").args([
            "map",
            "show",
            "id",
            &map.to_string(),
        ])))
    })?;
    tell.ok(format!(
        "no pins are left, and map {map} is gone from the kernel"
    ));
    let answer = fetch(stage, &format!("http://{}:8080/", WEB[0].v4()))?;
    ensure!(
        answer == format!("web-1 answers {}", CLIENT.v4()),
        "nginx said {answer:?}"
    );
    tell.ok(format!("plainly: {answer}"));
    if let Ok(answer) = fetch(stage, &format!("http://{VIP}/")) {
        bail!("the service's address still answers: {answer}");
    }
    tell.ok("the service's address no longer leads anywhere");
    Ok(())
}

/// The kernel's number for the map of connection records.
fn map_id(stage: &Stage) -> Result<u64> {
    let map = stage.agent.pins().join("conns");
    let text = sh::output(
        Command::new("bpftool")
            .args(["-j", "map", "show", "pinned"])
            .arg(&map),
    )?;
    let value: Value = serde_json::from_str(&text)?;
    value["id"]
        .as_u64()
        .with_context(|| format!("bpftool gives no id: {text}"))
}
