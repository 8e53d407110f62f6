//! tcpdump on the wire between the nodes: what an eavesdropper there has.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::SOON;
use super::stage::Stage;
use crate::demo::machine::{eventually, inside};
use crate::demo::process::Process;

pub(super) struct Wire {
    process: Process,
    file: PathBuf,
    number: usize,
}

impl Wire {
    /// Begins to listen on node a's end.
    pub(super) fn listen(stage: &Stage, number: usize) -> Result<Self> {
        let file = stage.dir().join(format!("wire-{number}.pcap"));
        let log = file.with_extension("log");
        let mut command = inside(&stage.node_ns(0), "tcpdump");
        command
            .args([
                "-i",
                "wire",
                "-n",
                "-U",
                "--immediate-mode",
                "-Z",
                "root",
                "-w",
            ])
            .arg(&file)
            .arg("tcp");
        let process = Process::start(&mut command, &log)?;
        eventually("tcpdump listens", SOON, || {
            Ok(fs::read_to_string(&log)?.contains("listening on"))
        })?;
        Ok(Self {
            process,
            file,
            number,
        })
    }

    /// Stops once `done` holds of what was heard; gives all of it.
    pub(super) fn stop(mut self, what: &str, done: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>> {
        eventually(what, SOON, || Ok(done(&fs::read(&self.file)?)))?;
        self.process.stop(Duration::from_secs(10))?;
        Ok(fs::read(&self.file)?)
    }

    /// What tcpdump makes of it, ready to run; the first is how the reader would type it.
    pub(super) fn shown(stage: &Stage, number: usize, ascii: bool) -> (String, Command) {
        let file = stage.dir().join(format!("wire-{number}.pcap"));
        let mut command = Command::new("tcpdump");
        let options = if ascii { "-nqA" } else { "-nq" };
        command.args([options, "-r"]).arg(&file);
        (format!("tcpdump {options} -r {}", file.display()), command)
    }

    pub(super) fn number(&self) -> usize {
        self.number
    }
}

/// Lines of a recording that are words: those in which an eavesdropper reads.
pub(super) fn readable(stage: &Stage, number: usize, words: &[&str]) -> Result<Vec<String>> {
    let (_, mut command) = Wire::shown(stage, number, true);
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text
        .lines()
        .filter(|line| words.iter().any(|word| line.contains(word)))
        .map(str::to_owned)
        .collect())
}
