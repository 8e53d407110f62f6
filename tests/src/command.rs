//! Child processes that end with their owner, and their output.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{netns::NetNs, run, wait::eventually_some};

/// A program running inside a namespace, output to a file; killed by its id on drop.
#[derive(Debug)]
pub struct Process {
    child: Child,
    title: String,
    log: PathBuf,
}

impl Process {
    /// Starts `command` inside `ns`.
    pub fn start(ns: &NetNs, title: &str, command: &mut Command) -> Process {
        let log = run::folder().join(format!("{}-{title}.log", run::unique()));
        Process::start_with_log(ns, title, command, log)
    }

    /// As [`Process::start`], output appended to `log`.
    pub fn start_with_log(ns: &NetNs, title: &str, command: &mut Command, log: PathBuf) -> Process {
        let out = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .expect("open a log");
        command
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("dup"))
            .stderr(out);
        let child = ns
            .spawn(command)
            .unwrap_or_else(|e| panic!("start {title}: {e}"));
        Process {
            child,
            title: title.to_owned(),
            log,
        }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn log_path(&self) -> &Path {
        &self.log
    }

    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            let _ = kill_process(pid, signal);
        }
    }

    /// True until it ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end; panics with its output when it does not come.
    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let title = self.title.clone();
        let log = self.log.clone();
        eventually_some(&format!("end of {title}"), deadline, || {
            match self.child.try_wait() {
                Ok(Some(status)) => Ok(status),
                Ok(None) => Err(format!(
                    "running; output: {}",
                    fs::read_to_string(&log).unwrap_or_default()
                )),
                Err(e) => Err(e.to_string()),
            }
        })
    }

    /// kill -9 and reap.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs a command inside `ns` to its end, at most `deadline` long.
pub fn output(ns: &NetNs, command: &mut Command, deadline: Duration) -> Output {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let title = format!("{command:?}");
    let child = ns
        .spawn(command)
        .unwrap_or_else(|e| panic!("start {title}: {e}"));
    let pid = child.id();
    // Output is read on a thread of its own, so that a full pipe cannot hang the deadline.
    let reader = std::thread::spawn(move || child.wait_with_output());
    let end = Instant::now() + deadline;
    while !reader.is_finished() {
        if Instant::now() > end {
            if let Some(pid) = Pid::from_raw(pid as i32) {
                let _ = kill_process(pid, Signal::KILL);
            }
            let _ = reader.join();
            panic!("{title}: still running after {deadline:?}");
        }
        std::thread::sleep(Duration::from_millis(3));
    }
    reader.join().expect("join").expect("wait")
}

/// Standard output of a command that must succeed.
pub fn stdout(ns: &NetNs, program: &str, args: &[&str], deadline: Duration) -> String {
    let out = output(ns, Command::new(program).args(args), deadline);
    assert!(
        out.status.success(),
        "{program} {}: {}\n{}{}",
        args.join(" "),
        out.status,
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8_lossy(&out.stdout).into_owned()
}
