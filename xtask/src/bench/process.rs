//! Processes of the bench: in a namespace, on a CPU, ended with their guard.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use crate::sh;

/// `program` in the network namespace `ns`, on one CPU. The process id stays the one of the child: both wrappers exec.
pub(super) fn pinned(cpu: u32, ns: &str, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("taskset");
    command
        .args(["--cpu-list", &cpu.to_string(), "nsenter"])
        .arg(format!("--net=/run/netns/{ns}"))
        .arg("--")
        .arg(program);
    command
}

/// Killed on drop.
pub(super) struct Running {
    child: Child,
    pub(super) log: PathBuf,
}

impl Running {
    /// Starts it with its output in a file.
    pub(super) fn start(command: &mut Command, log: &Path) -> Result<Self> {
        // To append: it may be emptied while it is written.
        let _ = std::fs::remove_file(log);
        let file = File::options().create(true).append(true).open(log);
        let file = file.with_context(|| log.display().to_string())?;
        let shown = sh::display(command);
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("could not start `{shown}`"))?;
        Ok(Self {
            child,
            log: log.to_path_buf(),
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// The end of what it said, for an error.
    pub(super) fn said(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().rev().take(8).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
