//! The agent of the demo and its command line.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::machine::{eventually, inside};
use super::process::Process;
use crate::sh;

/// Generous: the machine may be busy building something else.
const READY: Duration = Duration::from_secs(30);

pub(super) struct Agent {
    node: String,
    namespace: String,
    config: PathBuf,
    log: PathBuf,
    /// More options of `run`.
    args: Vec<String>,
    process: Option<Process>,
}

pub(super) fn binary() -> PathBuf {
    sh::target_dir().join("debug").join("mesh-agent")
}

impl Agent {
    pub(super) fn new(node: String, namespace: String, config: &Path, log: PathBuf) -> Self {
        Self {
            node,
            namespace,
            config: config.to_path_buf(),
            log,
            args: Vec::new(),
            process: None,
        }
    }

    /// The same with more options of `run`.
    pub(super) fn with_args(mut self, args: &[&str]) -> Self {
        self.args = args.iter().map(ToString::to_string).collect();
        self
    }

    pub(super) fn node(&self) -> &str {
        &self.node
    }

    pub(super) fn log(&self) -> &Path {
        &self.log
    }

    /// Where its maps are pinned: `vN`, by the version of their layouts.
    pub(super) fn pins(&self) -> PathBuf {
        let node = Path::new("/sys/fs/bpf/mesh").join(&self.node);
        let versions = std::fs::read_dir(&node).into_iter().flatten().flatten();
        let newest = versions.map(|entry| entry.path()).max();
        newest.unwrap_or_else(|| node.join("v0"))
    }

    /// What the reader would type to start it.
    pub(super) fn shown_run(&self) -> String {
        let mut shown = format!(
            "mesh-agent run --config {} --node {}",
            self.config.display(),
            self.node
        );
        for arg in &self.args {
            shown = format!("{shown} {arg}");
        }
        shown
    }

    /// Starts it and waits until it says that it is ready.
    pub(super) fn start(&mut self) -> Result<()> {
        let mut command = inside(&self.namespace, binary());
        command
            .arg("run")
            .arg("--config")
            .arg(&self.config)
            .args(["--node", &self.node])
            .args(&self.args);
        self.process = Some(Process::start(&mut command, &self.log)?);
        let namespace = self.namespace.clone();
        eventually("the agent is ready (/readyz)", READY, || {
            if !self.is_running() {
                return Ok(true);
            }
            let mut ask = inside(&namespace, "curl");
            ask.args([
                "-s",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                "--max-time",
                "2",
            ]);
            ask.arg("http://127.0.0.1:15020/readyz");
            Ok(sh::output(&mut ask)? == "200")
        })?;
        ensure!(self.is_running(), "the agent ended before it was ready");
        Ok(())
    }

    fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::is_running)
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.as_ref().map_or(0, Process::id)
    }

    /// SIGKILL: it has no chance to say goodbye.
    pub(super) fn kill(&mut self) -> Result<()> {
        let mut process = self.process.take().context("the agent does not run")?;
        process.kill()
    }

    /// SIGTERM: it lets connections end first.
    pub(super) fn stop(&mut self) -> Result<()> {
        let mut process = self.process.take().context("the agent does not run")?;
        process.stop(Duration::from_secs(45))
    }

    /// Ends it if it runs.
    pub(super) fn end(&mut self) {
        self.process = None;
    }

    /// Gives up the handle: `--keep` leaves the process to the reader.
    pub(super) fn forget(&mut self) {
        if let Some(process) = self.process.take() {
            process.leave();
        }
    }

    /// A command of the CLI, ready to run; the second is how the reader would type it.
    pub(super) fn cli(&self, line: &str) -> (String, Command) {
        let mut command = inside(&self.namespace, binary());
        command
            .args(line.split(' '))
            .args(["--node", &self.node])
            .env("NO_COLOR", "1")
            .env("COLUMNS", "110");
        (format!("mesh-agent {line} --node {}", self.node), command)
    }

    /// A command of the CLI that needs no running agent.
    pub(super) fn cli_local(&self, line: &str) -> (String, Command) {
        let mut command = Command::new(binary());
        command.args(line.split(' ')).env("NO_COLOR", "1");
        (format!("mesh-agent {line}"), command)
    }

    pub(super) fn json(&self, line: &str) -> Result<Value> {
        let text = sh::output(&mut self.cli(&format!("{line} -o json")).1)?;
        serde_json::from_str(&text).with_context(|| format!("mesh-agent {line} -o json: {text}"))
    }

    /// A list of the CLI, whether it stands alone or in an object.
    pub(super) fn list(&self, line: &str) -> Result<Vec<Value>> {
        let value = self.json(line)?;
        let inner = value
            .as_object()
            .and_then(|object| object.values().find_map(Value::as_array));
        match value.as_array().or(inner) {
            Some(list) => Ok(list.clone()),
            None => bail!("mesh-agent {line} -o json gives no list: {value}"),
        }
    }

    /// Waits until these workloads (`namespace/name`) are in a state.
    pub(super) fn wait_state(&self, names: &[&str], state: &str) -> Result<()> {
        eventually(&format!("{} {state}", names.join(", ")), READY, || {
            let workloads = self.list("workloads")?;
            let is = |name: &&str| {
                workloads
                    .iter()
                    .any(|w| w["name"] == **name && w["state"] == state)
            };
            Ok(names.iter().all(is))
        })
    }
}
