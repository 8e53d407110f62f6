//! Where certificates come from, and how they change.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::SOON;
use super::config::{self, BATCH, CLIENT, STRANGER, WEB};
use super::stage::{AUTHORITY, Stage};
use crate::demo::machine::eventually;
use crate::demo::narrator::Narrator;
use crate::demo::process::Process;
use crate::demo::traffic::Conversation;
use crate::sh;

pub(super) fn authority(tell: &mut Narrator, stage: &mut Stage) -> Result<()> {
    tell.step(
        "A certificate authority",
        "One node could do with the agent's own. Two need one that both trust: istiod, or this. It signs for a node that \
         shows its token, and only identities of workloads that the configuration places on that node.",
    )?;
    stage.configure()?;
    let line = format!(
        "serve --listen {AUTHORITY} --config {}",
        stage.config.dir().display()
    );
    let (shown, mut command) = stage.ca(&line);
    tell.say(format!("$ {shown} &"));
    stage.authority = Some(Process::start(&mut command, &stage.dir().join("ca.log"))?);
    let root = stage.authority_dir().join("roots.pem");
    let address = AUTHORITY.split_once(':').context("an address")?;
    eventually("the authority listens", SOON, || {
        let open = crate::demo::machine::inside(&stage.node_ns(1), "socat")
            .args(["/dev/null", &format!("TCP:{}:{}", address.0, address.1)])
            .output()?;
        Ok(open.status.success() && root.exists())
    })?;
    for node in [0, 1] {
        let name = config::node_name(&stage.id, node);
        let (shown, mut command) = stage.ca(&format!("token --node {name}"));
        let path = stage.token(node);
        println!("   $ {shown} > {}", path.display());
        let token = sh::output(&mut command)?;
        fs::write(&path, &token)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        tell.print(&format!("{:.60}...", token.trim()), 1);
    }
    tell.ok(
        "a root, and a credential for each node; the keys of workloads never leave their agents",
    );
    Ok(())
}

pub(super) fn agents(tell: &mut Narrator, stage: &mut Stage) -> Result<()> {
    tell.step(
        "Three identities",
        "An agent starts on each node, takes its pods in, makes a key for each identity in memory and has it signed. The \
         name in the certificate is the workload's service account.",
    )?;
    for agent in &mut stage.agents {
        tell.say(format!("$ {} &", agent.shown_run()));
        agent.start()?;
    }
    stage.agents[0].wait_state(&["shop/client", "shop/batch"], "enrolled")?;
    stage.agents[1].wait_state(&["shop/web"], "enrolled")?;
    for pod in [CLIENT, BATCH, WEB] {
        eventually(&format!("{} has a certificate", pod.name), SOON, || {
            Ok(stage.certificate(pod)?["state"] == "valid")
        })?;
    }
    for agent in &stage.agents {
        let (shown, mut command) = agent.cli("certs");
        tell.show(&shown, &mut command)?;
    }
    tell.ok("three certificates, by one authority");
    Ok(())
}

pub(super) fn renewal(tell: &mut Narrator, stage: &mut Stage) -> Result<()> {
    tell.step(
        "A certificate is renewed",
        "Certificates live a day unless told otherwise; here a minute. Well before the end the agent has another one \
         signed, at a random moment so that nodes do not all ask at once. Connections do not notice.",
    )?;
    let mut live = Conversation::from(&stage.pod_ns(CLIENT), &format!("{}:7000", WEB.v4()))?;
    let serial = |stage: &Stage| -> Result<String> {
        let cert = stage.certificate(CLIENT)?;
        Ok(cert["serial"].as_str().unwrap_or_default().to_owned())
    };
    let before = serial(stage)?;
    let begun = Instant::now();
    eventually(
        "the client has another certificate",
        Duration::from_secs(70),
        || {
            live.say("still here")?;
            ensure!(stage.is_served(CLIENT), "a new connection was not served");
            Ok(serial(stage)? != before)
        },
    )?;
    live.say("and after")?;
    let (shown, mut command) = stage.agent(CLIENT).cli("certs");
    tell.show(&shown, &mut command)?;
    tell.ok(format!(
        "renewed after {} s; a connection lived through it, and every new one on the way was served",
        begun.elapsed().as_secs()
    ));
    Ok(())
}

pub(super) fn killed(tell: &mut Narrator, stage: &mut Stage) -> Result<()> {
    tell.step(
        "kill -9 opens nothing",
        "Without an agent on node b its pods are closed, to members and strangers alike: the kernel programs outlive the \
         agent. The next one asks for new certificates, since keys are in memory only.",
    )?;
    tell.say(format!("$ kill -9 {}", stage.agents[1].pid()));
    stage.agents[1].kill()?;
    for pod in [STRANGER, CLIENT] {
        let (shown, mut command) = stage.curl(pod, "");
        println!("   $ {shown}");
        let output = command.output()?;
        ensure!(!output.status.success(), "{} was served", pod.name);
        tell.print(&String::from_utf8_lossy(&output.stderr), 1);
    }
    stage.agents[1].start()?;
    eventually("the client is served again", SOON, || {
        Ok(stage.is_served(CLIENT))
    })?;
    ensure!(!stage.is_served(STRANGER), "the stranger was served");
    tell.ok("the client is served again, the stranger never was");
    Ok(())
}
