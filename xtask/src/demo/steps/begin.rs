//! Pods without a mesh, an agent, pods in the mesh.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::{NAMES, wait_connection};
use crate::demo::narrator::Narrator;
use crate::demo::stage::{CLIENT, PODS, Stage, WEB};
use crate::demo::traffic::{self, Conversation, curl};
use crate::demo::{config, machine};

pub(super) fn before_the_mesh(tell: &mut Narrator, stage: &mut Stage) -> Result<Conversation> {
    tell.step(
        "Three pods, no mesh",
        "A node (a network namespace with a bridge) and three pods (network namespaces on it) are made: a client, and \
         two nginx. Nothing of the mesh runs; what works now must work the same later.",
    )?;
    let node = stage.node_ns();
    machine::make_node(&node, 0)?;
    for pod in PODS {
        machine::make_pod(&node, &stage.pod_ns(pod), pod.name, 0, pod.host)?;
    }
    for pod in WEB {
        traffic::start_nginx(stage, pod)?;
        traffic::start_echo(stage, pod)?;
    }
    let url = format!("http://{}:8080/", WEB[0].v4());
    let (shown, mut command) = curl(stage, &url);
    let answer = tell.show(&shown, &mut command)?;
    ensure!(
        answer.trim() == format!("web-1 answers {}", CLIENT.v4()),
        "nginx said {answer:?}"
    );
    let mut old = Conversation::open(stage, &format!("{}:7000", WEB[0].v4()))?;
    old.say("opened before the mesh")?;
    tell.ok("a client also opened a connection to an echo server (socat); it will stay open all the time");
    Ok(old)
}

pub(super) fn agent_starts(tell: &mut Narrator, stage: &mut Stage) -> Result<()> {
    tell.step(
        "The agent starts",
        "`check` asks the kernel by loading the programs. Then the agent starts on the node with a directory of YAML, \
         the same that a cluster would take: a namespace, three workloads, a service with two virtual addresses. The \
         namespace is not labelled yet, so nothing is captured.",
    )?;
    let (shown, mut command) = stage.agent.cli("check");
    tell.show(&shown, &mut command)?;
    stage.config.namespace(false)?;
    let node = stage.agent.node().to_owned();
    for pod in PODS {
        let netns = machine::path(&stage.pod_ns(pod));
        stage
            .config
            .workload(&node, pod.name, pod.app, pod.host, &netns)?;
    }
    stage.config.service(80)?;
    tell.print(&config::service(80), usize::MAX);
    tell.say(format!("$ {} &", stage.agent.shown_run()));
    stage.agent.start()?;
    stage.agent.wait_state(&NAMES, "not enrolled")?;
    let (shown, mut command) = stage.agent.cli("workloads");
    tell.show(&shown, &mut command)?;
    tell.ok("the agent knows the pods and says why none is enrolled");
    Ok(())
}

pub(super) fn enrol(tell: &mut Narrator, stage: &mut Stage, old: &mut Conversation) -> Result<()> {
    tell.step(
        "Running pods are enrolled",
        "The label on the namespace is all it takes. No pod is restarted, no process in it notices, and the connection \
         that is older than the mesh goes on.",
    )?;
    stage.config.namespace(true)?;
    let begun = Instant::now();
    tell.print(&config::namespace(true), usize::MAX);
    stage.agent.wait_state(&NAMES, "enrolled")?;
    tell.ok(format!(
        "all three were enrolled {} ms after the edit",
        begun.elapsed().as_millis()
    ));
    let (shown, mut command) = stage.agent.cli("workloads");
    tell.show(&shown, &mut command)?;
    old.say("still here")?;
    tell.ok("the old connection still carries data");
    wait_connection(stage, "the old connection is listed as unmeshed", |c| {
        c["path"] == "unmeshed"
    })?;
    let (shown, mut command) = stage.agent.cli("connections");
    tell.show(&shown, &mut command)?;
    tell.ok("and is listed, as what it is: unmeshed");
    Ok(())
}
