//! What is on the wire, and what is refused.

use anyhow::{Result, ensure};

use super::SOON;
use super::config::{CLIENT, STRANGER, STRICT, WEB};
use super::stage::Stage;
use super::wire::{Wire, readable};
use crate::demo::machine::eventually;
use crate::demo::narrator::Narrator;
use crate::demo::traffic;

/// In the path that the client asks for.
const SECRET: &str = "correct-horse-battery-staple";

fn holds(heard: &[u8], what: &str) -> bool {
    heard.windows(what.len()).any(|w| w == what.as_bytes())
}

pub(super) fn before_the_mesh(tell: &mut Narrator, stage: &mut Stage) -> Result<()> {
    tell.step(
        "Two nodes, no mesh",
        "Two nodes (network namespaces) are joined by a wire. On node a: a client, a batch job, and a stranger whom the \
         mesh will not know. On node b: web, an nginx and an echo server. tcpdump listens on the wire between the nodes.",
    )?;
    stage.make_machines()?;
    let ns = stage.pod_ns(WEB);
    let nginx = traffic::nginx(&ns, &stage.dir().join("web"), "web")?;
    let echo = traffic::echo(&ns, &stage.dir().join("echo.out"), "web")?;
    stage.servers.extend([nginx, echo]);
    let wire = Wire::listen(stage, 1)?;
    let (shown, mut command) = stage.curl(CLIENT, SECRET);
    let answer = tell.show(&shown, &mut command)?;
    ensure!(
        answer.trim() == Stage::answer_to(CLIENT),
        "nginx said {answer:?}"
    );
    let number = wire.number();
    wire.stop("the request is on the wire", |heard| {
        holds(heard, SECRET) && holds(heard, "web answers")
    })?;
    let (shown, _) = Wire::shown(stage, number, true);
    println!("   $ {shown} | grep ...");
    let lines = readable(stage, number, &["GET /", "web answers"])?;
    tell.print(&lines.join("\n"), 4);
    ensure!(lines.iter().any(|line| line.contains(SECRET)), "{lines:?}");
    tell.ok("whoever is on the wire reads the request and the answer");
    Ok(())
}

pub(super) fn nothing_plain(tell: &mut Narrator, stage: &mut Stage) -> Result<()> {
    tell.step(
        "The same request, in a tunnel",
        "Nothing in the pods has changed, and nginx still sees the client's own address. Between the nodes the agents \
         speak HTTP/2 over mutual TLS 1.3 to port 15008 (HBONE, which Istio's ambient mesh understands).",
    )?;
    let wire = Wire::listen(stage, 2)?;
    let (shown, mut command) = stage.curl(CLIENT, SECRET);
    let answer = tell.show(&shown, &mut command)?;
    ensure!(
        answer.trim() == Stage::answer_to(CLIENT),
        "nginx said {answer:?}"
    );
    let number = wire.number();
    // The handshake alone has more.
    let heard = wire.stop("the tunnel is on the wire", |heard| heard.len() > 3000)?;
    let (shown, mut command) = Wire::shown(stage, number, false);
    let listed = tell.show_head(&shown, &mut command, 4)?;
    ensure!(listed.contains(".15008"), "no tunnel on the wire: {listed}");
    for word in [SECRET, "GET /", "web answers", "nginx"] {
        ensure!(!holds(&heard, word), "{word:?} is on the wire");
    }
    tell.ok(format!(
        "{} bytes were on the wire, neither the request nor the answer among them",
        heard.len()
    ));
    eventually("both agents list it as mutual TLS", SOON, || {
        for agent in &stage.agents {
            let closed = agent.list("connections --closed")?;
            let found = closed.iter().any(|c| {
                c["security"] == "mutual_tls"
                    && c["source_principal"] == CLIENT.identity().as_str()
                    && c["destination_principal"] == WEB.identity().as_str()
            });
            if !found {
                return Ok(false);
            }
        }
        Ok(true)
    })?;
    let (shown, mut command) = stage.agent(WEB).cli("connections --closed");
    tell.show_head(&shown, &mut command, 4)?;
    tell.ok("both agents know who spoke to whom, by certificate:");
    tell.print(&format!("{} -> {}", CLIENT.identity(), WEB.identity()), 1);
    Ok(())
}

pub(super) fn strict(tell: &mut Narrator, stage: &mut Stage) -> Result<()> {
    tell.step(
        "Plain text is refused",
        "So far plain text was let in as well (permissive), so that a mesh can be grown without breaking anyone. One \
         MeshPolicy ends that, for the mesh, a namespace, a workload or a port.",
    )?;
    let (shown, mut command) = stage.curl(STRANGER, "");
    tell.show(&shown, &mut command)?;
    tell.ok("the stranger was let in, in plain text");
    stage.config.put("mesh-policy.yaml", STRICT)?;
    tell.print(STRICT, usize::MAX);
    eventually("the stranger is refused", SOON, || {
        Ok(!stage.curl(STRANGER, "").1.output()?.status.success())
    })?;
    let (shown, mut command) = stage.curl(STRANGER, "");
    println!("   $ {shown}");
    let output = command.output()?;
    ensure!(!output.status.success(), "the stranger was served");
    tell.print(&String::from_utf8_lossy(&output.stderr), 2);
    eventually("the refusal is counted", SOON, || {
        let closed = stage.agent(WEB).list("connections --closed")?;
        Ok(closed.iter().any(|c| c["reason"] == "plaintext_refused"))
    })?;
    let (shown, mut command) = stage
        .agent(WEB)
        .cli("connections --closed --reason plaintext_refused");
    tell.show_head(&shown, &mut command, 3)?;
    ensure!(stage.is_served(CLIENT), "the client is not served");
    tell.ok("refused with a reset and the reason; members of the mesh did not notice");
    Ok(())
}
