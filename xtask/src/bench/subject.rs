//! What is compared: who stands between the client and the server.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::admin;
use super::bed::{Bed, PROXY_CPU, SERVER};
use super::config::{Config, VIP, VIP_BOTH};
use super::process::{Running, pinned};
use crate::{deps, interrupt, sh};

const READY: Duration = Duration::from_secs(30);

/// One of those that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) name: &'static str,
    /// Pod of its client.
    pub(super) client: &'static str,
    /// What the client dials.
    pub(super) address: &'static str,
    /// Added to the server's ports.
    pub(super) port_offset: u16,
}

const ALL: [Subject; 5] = [
    subject("direct", "direct", SERVER, 0),
    subject("mesh", "mesh", VIP, 0),
    // Client and server captured: two passes through the agent.
    subject("mesh-both", "mesh", VIP_BOTH, 0),
    subject("haproxy", "haproxy", "10.99.0.13", 10_000),
    subject("envoy", "envoy", "10.99.0.14", 20_000),
];

const fn subject(
    name: &'static str,
    client: &'static str,
    address: &'static str,
    port_offset: u16,
) -> Subject {
    Subject {
        name,
        client,
        address,
        port_offset,
    }
}

fn is_wanted(wanted: &[String], subject: &Subject) -> bool {
    wanted.is_empty() || wanted.iter().any(|w| w == subject.name)
}

/// Whether an agent is among those that are wanted.
pub(super) fn wants_agent(wanted: &[String]) -> bool {
    ALL.iter()
        .any(|s| s.client == "mesh" && is_wanted(wanted, s))
}

/// The subjects that run, and their processes.
pub(super) struct Subjects {
    pub(super) list: Vec<Subject>,
    proxies: Vec<(&'static str, Running)>,
    agent: Option<PathBuf>,
    node: String,
    /// What was left out, and why.
    pub(super) missing: Vec<String>,
    pub(super) versions: Vec<String>,
}

impl Subjects {
    pub(super) fn start(
        bed: &Bed,
        config: &Config,
        wanted: &[String],
        agent: Option<&Path>,
    ) -> Result<Self> {
        let mut subjects = Self {
            list: Vec::new(),
            proxies: Vec::new(),
            agent: None,
            node: bed.node().to_owned(),
            missing: Vec::new(),
            versions: Vec::new(),
        };
        for subject in ALL {
            if !is_wanted(wanted, &subject) {
                continue;
            }
            let started = match subject.client {
                "direct" => Ok(()),
                "mesh" => match agent {
                    Some(agent) => subjects.start_agent(bed, config, agent),
                    None => continue,
                },
                "haproxy" => subjects.start_haproxy(bed),
                _ => subjects.start_envoy(bed),
            };
            match started {
                Ok(()) => subjects.list.push(subject),
                Err(error) => subjects
                    .missing
                    .push(format!("{}: {error:#}", subject.name)),
            }
        }
        ensure!(
            !subjects.list.is_empty(),
            "nothing to measure: {:?}",
            subjects.missing
        );
        Ok(subjects)
    }

    fn start_agent(&mut self, bed: &Bed, config: &Config, agent: &Path) -> Result<()> {
        if self.agent.is_some() {
            return Ok(());
        }
        let mut command = pinned(PROXY_CPU, &bed.ns("node"), agent);
        command
            .args(["run", "--node", bed.node(), "--config"])
            .arg(&config.dir);
        let mut running = Running::start(&mut command, &bed.log("mesh"))?;
        // From here on there is something to release.
        self.agent = Some(agent.to_path_buf());
        let ready = wait("the agent has its pods", &mut running, || {
            let states = admin::workload_states(bed.node())?;
            Ok(states.iter().filter(|s| *s == "enrolled").count() == 2)
        });
        self.versions.push(version(agent, "version"));
        self.proxies.push(("mesh", running));
        ready
    }

    fn start_haproxy(&mut self, bed: &Bed) -> Result<()> {
        let haproxy = Path::new("/usr/sbin/haproxy");
        ensure!(haproxy.exists(), "not installed; cargo xtask deps bench");
        let mut command = pinned(PROXY_CPU, &bed.ns("haproxy"), haproxy);
        command
            .args(["-db", "-f"])
            .arg(configs().join("haproxy.cfg"));
        let mut running = Running::start(&mut command, &bed.log("haproxy"))?;
        wait_listening("haproxy", &mut running, &bed.ns("haproxy"), 17_017)?;
        self.versions.push(version(haproxy, "-v"));
        self.proxies.push(("haproxy", running));
        Ok(())
    }

    fn start_envoy(&mut self, bed: &Bed) -> Result<()> {
        let envoy = deps::envoy::path();
        ensure!(envoy.exists(), "not installed; cargo xtask deps bench");
        let mut command = pinned(PROXY_CPU, &bed.ns("envoy"), &envoy);
        command
            .args([
                "--concurrency",
                "1",
                "--disable-hot-restart",
                "-l",
                "warning",
                "-c",
            ])
            .arg(configs().join("envoy.yaml"));
        let mut running = Running::start(&mut command, &bed.log("envoy"))?;
        wait_listening("envoy", &mut running, &bed.ns("envoy"), 27_017)?;
        self.versions.push(version(&envoy, "--version"));
        self.proxies.push(("envoy", running));
        Ok(())
    }

    /// Processes of the subject's proxy, as the load generator takes them.
    pub(super) fn pids(&self, subject: Subject) -> String {
        let of = |(name, running): &(&str, Running)| {
            (*name == subject.client).then(|| running.pid().to_string())
        };
        self.proxies
            .iter()
            .filter_map(of)
            .collect::<Vec<_>>()
            .join(",")
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.list.iter().any(|s| s.name == name)
    }

    /// The end of the log of a subject's proxy.
    pub(super) fn said(&self, subject: Subject) -> String {
        let of = self
            .proxies
            .iter()
            .find(|(name, _)| *name == subject.client);
        of.map(|(_, running)| running.said()).unwrap_or_default()
    }
}

impl Drop for Subjects {
    fn drop(&mut self) {
        self.proxies.clear();
        if let Some(agent) = &self.agent {
            let mut release = Command::new(agent);
            if let Err(error) = sh::output(release.args(["release", "--node", &self.node])) {
                eprintln!("{error:#}");
            }
        }
    }
}

fn configs() -> PathBuf {
    sh::root().join("xtask/bench-configs")
}

/// First line that says a version.
fn version(program: &Path, argument: &str) -> String {
    let said = sh::output(Command::new(program).arg(argument)).unwrap_or_default();
    let line = said
        .lines()
        .find(|l| l.contains(|c: char| c.is_ascii_digit()));
    line.unwrap_or_default().trim().to_owned()
}

fn wait_listening(what: &str, running: &mut Running, ns: &str, port: u16) -> Result<()> {
    wait(&format!("{what} listens"), running, || {
        let mut ss = pinned(PROXY_CPU, ns, "ss");
        let said = sh::output(ss.args(["-Hltn", &format!("sport = :{port}")]))?;
        Ok(!said.trim().is_empty())
    })
}

fn wait(what: &str, running: &mut Running, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + READY;
    loop {
        interrupt::check()?;
        if !running.is_running() {
            bail!("it ended before: {what}\n{}", running.said());
        }
        let answer = holds();
        if matches!(answer, Ok(true)) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return answer
                .and_then(|_| bail!("not within {READY:?}: {what}"))
                .with_context(|| running.said());
        }
        thread::sleep(Duration::from_millis(50));
    }
}
