//! A program that runs in the background of the demo. It is in a process group of its own, so that Ctrl-C reaches only
//! us, and it dies with its value.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use std::os::unix::process::CommandExt;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::machine::eventually;
use crate::sh;

pub(super) struct Process {
    child: Child,
    /// Left to run when the value goes.
    left: bool,
}

impl Process {
    /// Starts it with its output in a file.
    pub(super) fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let log_file = File::options().create(true).append(true).open(log)?;
        command
            .stdin(Stdio::null())
            .stdout(log_file.try_clone()?)
            .stderr(log_file);
        Self::start_piped(command)
    }

    /// Starts it with whatever the command says of its input and output.
    pub(super) fn start_piped(command: &mut Command) -> Result<Self> {
        let shown = sh::display(command);
        let child = command.process_group(0).spawn();
        let child = child.with_context(|| format!("could not start `{shown}`"))?;
        Ok(Self { child, left: false })
    }

    pub(super) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// SIGTERM, and waits until it has ended.
    pub(super) fn stop(&mut self, within: Duration) -> Result<()> {
        if let Some(pid) = Pid::from_raw(self.id().cast_signed()) {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::TERM);
        }
        eventually("the process ends after SIGTERM", within, || {
            Ok(!self.is_running())
        })
    }

    /// Leaves it running.
    pub(super) fn leave(mut self) {
        self.left = true;
    }

    /// SIGKILL, to it alone: what it started would be an orphan.
    pub(super) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.left {
            return;
        }
        if let Some(group) = Pid::from_raw(self.id().cast_signed()) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}
