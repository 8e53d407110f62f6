//! Who is compared, and how they and the server are started.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use super::config::{self, VIP};
use super::pods::{NODE, SERVER};
use crate::bench::bed::{Bed, LOAD_CPU, PROXY_CPU};
use crate::bench::process::pinned;
use crate::bench::proxies::{AgentRun, Proxies, Subject, configs, subject, version};

const ALL: [Subject; 5] = [
    subject("direct", ("direct", "server"), SERVER, 0),
    subject("mesh", ("mesh", "server"), VIP, 0),
    subject("envoy", ("envoy", "server"), "10.99.0.14", 20_000),
    subject("haproxy", ("haproxy", "server"), "10.99.0.13", 10_000),
    subject("nginx", ("nginx", "server"), "10.99.0.15", 30_000),
];

/// What the processes of servers go by: no subject's name.
const SERVES: &str = "server";

const NGINX: &str = "/usr/sbin/nginx";

/// Files that the server has, by the names of works.
pub(super) const SIZES: [(&str, usize); 2] = [("1k", 1 << 10), ("64k", 64 << 10)];

pub(super) fn path(size: &str) -> String {
    format!("/cart/{size}")
}

/// nginx in a pod, with the files of all works.
pub(super) fn start_server(bed: &Bed, pod: &'static str, proxies: &mut Proxies) -> Result<()> {
    let mut command = nginx(bed, pod, "server", LOAD_CPU)?;
    let files = folder(bed, pod).join("www/cart");
    fs::create_dir_all(&files)?;
    for (name, size) in SIZES {
        fs::write(files.join(name), vec![b'x'; size])?;
    }
    proxies.start(bed, SERVES, pod, &mut command, 8081)?;
    proxies.add_version(&nginx_version());
    Ok(())
}

/// Starts the proxies of those that are wanted; gives those that take part.
pub(super) fn start(
    wants: &impl Fn(&str) -> bool,
    bed: &Bed,
    agent: Option<&PathBuf>,
    proxies: &mut Proxies,
) -> Result<Vec<Subject>> {
    let config = config::write(bed)?;
    let mut list = Vec::new();
    for subject in ALL.into_iter().filter(|s| wants(s.name)) {
        let started = match (subject.name, agent) {
            ("mesh", Some(program)) => proxies.start_agent(
                bed,
                "mesh",
                &AgentRun {
                    node: NODE,
                    program,
                    config: &config,
                    args: Vec::new(),
                    pods: 1,
                },
            ),
            ("envoy", _) => proxies.start_envoy(bed, "envoy", "envoy", "http/envoy.yaml", 28_081),
            ("haproxy", _) => start_haproxy(bed, proxies),
            ("nginx", _) => nginx(bed, "nginx", "nginx", PROXY_CPU)
                .and_then(|mut nginx| proxies.start(bed, "nginx", "nginx", &mut nginx, 38_081)),
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
    let file = configs().join("http/haproxy.cfg");
    command.args(["-db", "-f"]).arg(file);
    proxies.start(bed, "haproxy", "haproxy", &mut command, 18_081)?;
    proxies.add_version(&version(haproxy, "-v"));
    Ok(())
}

fn folder(bed: &Bed, pod: &str) -> PathBuf {
    bed.dir.join("nginx").join(pod)
}

/// nginx in a pod, with the configuration of that name.
fn nginx(bed: &Bed, pod: &str, config: &str, cpu: u32) -> Result<Command> {
    ensure!(
        Path::new(NGINX).exists(),
        "not installed; cargo xtask deps bench"
    );
    let folder = folder(bed, pod);
    fs::create_dir_all(&folder)?;
    let mut command = pinned(cpu, &bed.ns(pod), NGINX);
    let file = configs().join(format!("http/{config}.conf"));
    command.arg("-p").arg(folder).arg("-c").arg(file);
    command.args(["-e", "stderr"]);
    Ok(command)
}

/// It says it to standard error.
fn nginx_version() -> String {
    let said = Command::new(NGINX).arg("-v").output();
    let said = said.map(|o| String::from_utf8_lossy(&o.stderr).trim().to_owned());
    said.unwrap_or_default()
}
