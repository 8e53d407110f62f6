//! Who is compared in l4, and how their proxies are started.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use super::config::{Config, VIP, VIP_BOTH};
use super::pods::{NODE, SERVER};
use crate::bench::Args;
use crate::bench::bed::{Bed, PROXY_CPU};
use crate::bench::process::pinned;
use crate::bench::proxies::{AgentRun, Proxies, Subject, configs, subject, version};

const ALL: [Subject; 5] = [
    subject("direct", ("direct", "server"), SERVER, 0),
    subject("mesh", ("mesh", "server"), VIP, 0),
    // Client and server captured: two passes through the agent.
    subject("mesh-both", ("mesh", "meshserver"), VIP_BOTH, 0),
    subject("haproxy", ("haproxy", "server"), "10.99.0.13", 10_000),
    subject("envoy", ("envoy", "server"), "10.99.0.14", 20_000),
];

/// Whether an agent is among those that are wanted.
pub(super) fn want_agent(args: &Args) -> bool {
    let ours = |s: &&Subject| s.client == "mesh";
    ALL.iter().filter(ours).any(|s| args.wants_subject(s.name))
}

/// Starts the proxies of those that are wanted; gives those that take part.
pub(super) fn start(
    args: &Args,
    bed: &Bed,
    config: &Config,
    agent: Option<&PathBuf>,
    proxies: &mut Proxies,
) -> Result<Vec<Subject>> {
    let mut list: Vec<Subject> = Vec::new();
    for subject in ALL {
        if !args.wants_subject(subject.name) {
            continue;
        }
        let started = match (subject.client, agent) {
            ("mesh", Some(_)) if list.iter().any(|s| s.client == "mesh") => Ok(()),
            ("mesh", Some(agent)) => proxies.start_agent(
                bed,
                "mesh",
                &AgentRun {
                    node: NODE,
                    program: agent,
                    config: &config.folder.dir,
                    args: Vec::new(),
                    pods: 2,
                },
            ),
            ("haproxy", _) => start_haproxy(bed, proxies),
            ("envoy", _) => proxies.start_envoy(bed, "envoy", "envoy", "envoy.yaml", 27_017),
            _ => Ok(()),
        };
        if proxies.note(subject.name, started) {
            list.push(subject);
        }
    }
    Ok(list)
}

fn start_haproxy(bed: &Bed, proxies: &mut Proxies) -> Result<()> {
    let haproxy = Path::new("/usr/sbin/haproxy");
    ensure!(haproxy.exists(), "not installed; cargo xtask deps bench");
    let mut command = pinned(PROXY_CPU, &bed.ns("haproxy"), haproxy);
    command
        .args(["-db", "-f"])
        .arg(configs().join("haproxy.cfg"));
    proxies.start(bed, "haproxy", "haproxy", &mut command, 17_017)?;
    proxies.add_version(&version(haproxy, "-v"));
    Ok(())
}
