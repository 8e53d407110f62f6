//! What is compared, and the processes of whoever stands between client and server.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::admin;
use super::bed::{Bed, LOAD_CPU, PROXY_CPU};
use super::process::{Running, pinned};
use crate::{deps, interrupt, sh};

const READY: Duration = Duration::from_secs(30);

/// One of those that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) name: &'static str,
    /// Pod of its client; also the name that its proxies go by.
    pub(super) client: &'static str,
    /// Pod of the server that it ends at.
    pub(super) server: &'static str,
    /// What the client dials.
    pub(super) address: &'static str,
    /// Added to the server's ports.
    pub(super) port_offset: u16,
}

pub(super) const fn subject(
    name: &'static str,
    (client, server): (&'static str, &'static str),
    address: &'static str,
    port_offset: u16,
) -> Subject {
    Subject {
        name,
        client,
        server,
        address,
        port_offset,
    }
}

struct Proxy {
    of: &'static str,
    log: PathBuf,
    running: Running,
}

/// The proxies of all subjects.
#[derive(Default)]
pub(super) struct Proxies {
    running: Vec<Proxy>,
    /// Agents that may have captured something, and their nodes: to be released at the end.
    agents: Vec<(PathBuf, String)>,
    /// What was left out, and why.
    missing: Vec<String>,
    pub(super) versions: Vec<String>,
}

/// Where an agent runs and what it is told.
pub(super) struct AgentRun<'a> {
    /// As the bed calls it.
    pub(super) node: &'a str,
    pub(super) program: &'a Path,
    pub(super) config: &'a Path,
    pub(super) args: Vec<String>,
    /// Pods of its own that it is to have before anything is measured.
    pub(super) pods: usize,
}

impl Proxies {
    /// Notes a subject that cannot take part.
    pub(super) fn note(&mut self, subject: &str, started: Result<()>) -> bool {
        match started {
            Ok(()) => true,
            Err(error) => {
                self.missing.push(format!("{subject}: {error:#}"));
                false
            }
        }
    }

    /// Fails for subjects that could not take part: for the end, when the others are measured.
    pub(super) fn complete(&self) -> Result<()> {
        ensure!(
            self.missing.is_empty(),
            "left out: {}",
            self.missing.join("; ")
        );
        Ok(())
    }

    pub(super) fn start_agent(
        &mut self,
        bed: &Bed,
        of: &'static str,
        run: &AgentRun<'_>,
    ) -> Result<()> {
        let node = bed.ns(run.node);
        let mut command = pinned(PROXY_CPU, &node, run.program);
        command
            .args(["run", "--node", &node, "--config"])
            .arg(run.config)
            .args(&run.args);
        let log = bed.log(run.node);
        let mut running = Running::start(&mut command, &log)?;
        // From here on there is something to release.
        let agent = (run.program.to_path_buf(), node.clone());
        if !self.agents.contains(&agent) {
            self.agents.push(agent);
        }
        let ready = wait("the agent has its pods", &mut running, || {
            let states = admin::workload_states(&node)?;
            Ok(states.iter().filter(|s| *s == "enrolled").count() == run.pods)
        });
        self.add_version(&version(run.program, "version"));
        self.running.push(Proxy { of, log, running });
        ready
    }

    /// Ends the process of an agent; what it captured stays captured.
    pub(super) fn end_agent(&mut self, bed: &Bed, node: &str) {
        let log = bed.log(node);
        self.running.retain(|p| p.log != log);
    }

    /// One worker of Envoy in a pod, with a file of `bench-configs`, until it listens on `port`.
    pub(super) fn start_envoy(
        &mut self,
        bed: &Bed,
        of: &'static str,
        pod: &str,
        config: &str,
        port: u16,
    ) -> Result<()> {
        let envoy = deps::envoy::path();
        ensure!(envoy.exists(), "not installed; cargo xtask deps bench");
        let mut command = pinned(PROXY_CPU, &bed.ns(pod), &envoy);
        // Its configuration names certificates relative to the bed's folder.
        command
            .current_dir(&bed.dir)
            .args([
                "--concurrency",
                "1",
                "--disable-hot-restart",
                "-l",
                "warning",
                "-c",
            ])
            .arg(configs().join(config));
        self.start(bed, of, pod, &mut command, port)?;
        self.add_version(&version(&envoy, "--version"));
        Ok(())
    }

    /// Any other proxy, until it listens on `port`.
    pub(super) fn start(
        &mut self,
        bed: &Bed,
        of: &'static str,
        pod: &str,
        command: &mut Command,
        port: u16,
    ) -> Result<()> {
        let log = bed.log(pod);
        let mut running = Running::start(command, &log)?;
        wait_listening(pod, &mut running, &bed.ns(pod), port)?;
        self.running.push(Proxy { of, log, running });
        Ok(())
    }

    pub(super) fn add_version(&mut self, version: &str) {
        if !self.versions.iter().any(|v| v == version) {
            self.versions.push(version.to_owned());
        }
    }

    /// Processes of the subject's proxies, as the load generator takes them.
    pub(super) fn pids(&self, subject: Subject) -> String {
        let own = self.running.iter().filter(|p| p.of == subject.client);
        let pids: Vec<_> = own.map(|p| p.running.pid().to_string()).collect();
        pids.join(",")
    }

    /// The ends of the logs of a subject's proxies.
    pub(super) fn said(&self, subject: Subject) -> String {
        let own = self.running.iter().filter(|p| p.of == subject.client);
        own.map(|p| p.running.said()).collect::<Vec<_>>().join("\n")
    }

    /// Empties the logs of a subject's proxies: a line for each request fills a disk.
    pub(super) fn forget_logs(&self, subject: Subject) {
        for proxy in self.running.iter().filter(|p| p.of == subject.client) {
            // Those that wrote it go on at its end, which is its beginning now.
            let _ = File::options().write(true).truncate(true).open(&proxy.log);
        }
    }

    /// The machine, who runs where, and what is missing.
    pub(super) fn preamble(&self) -> String {
        let model = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = model.lines().find_map(|l| l.strip_prefix("model name"));
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let mut text = format!(
            "{}; Linux {}; {} CPUs\nclients and servers on CPU {LOAD_CPU}, proxies on CPU {PROXY_CPU}, one worker each\n",
            model
                .unwrap_or_default()
                .trim_start_matches([' ', '\t', ':']),
            kernel.trim(),
            thread::available_parallelism().map_or(1, usize::from),
        );
        for version in &self.versions {
            text += &format!("{version}\n");
        }
        for missing in &self.missing {
            text += &format!("left out: {missing}\n");
        }
        text
    }
}

impl Drop for Proxies {
    fn drop(&mut self) {
        self.running.clear();
        for (agent, node) in &self.agents {
            let mut release = Command::new(agent);
            if let Err(error) = sh::output(release.args(["release", "--node", node])) {
                eprintln!("{error:#}");
            }
        }
    }
}

pub(super) fn configs() -> PathBuf {
    sh::root().join("xtask/bench-configs")
}

/// First line that says a version.
pub(super) fn version(program: &Path, argument: &str) -> String {
    let said = sh::output(Command::new(program).arg(argument)).unwrap_or_default();
    let line = said
        .lines()
        .find(|l| l.contains(|c: char| c.is_ascii_digit()));
    line.unwrap_or_default().trim().to_owned()
}

pub(super) fn wait_listening(what: &str, running: &mut Running, ns: &str, port: u16) -> Result<()> {
    wait(&format!("{what} listens"), running, || {
        let mut ss = pinned(PROXY_CPU, ns, "ss");
        let said = sh::output(ss.args(["-Hltn", &format!("sport = :{port}")]))?;
        Ok(!said.trim().is_empty())
    })
}

pub(super) fn wait(
    what: &str,
    running: &mut Running,
    mut holds: impl FnMut() -> Result<bool>,
) -> Result<()> {
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
