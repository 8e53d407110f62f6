//! `mesh-agent check`: can this machine run the agent, and if not, what is missing and what to do.

use std::{fmt::Write as _, path::PathBuf, process::ExitCode};

use clap::Args;

use super::{
    Global,
    failure::Failure,
    output::{Format, Screen},
    reach,
    table::Tint,
    units,
};
use crate::capture::{self, CaptureOptions, CheckItem, CheckResult};

#[derive(Debug, Args)]
pub(super) struct Check {
    /// The host's BPF filesystem
    #[arg(long, value_name = "PATH", default_value = "/sys/fs/bpf")]
    bpffs: PathBuf,
    /// Root of cgroup2 [default: from /proc/mounts]
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,
}

impl Check {
    pub(super) fn execute(self, global: &Global, screen: &Screen) -> Result<ExitCode, Failure> {
        let node = global.node.clone().map_or_else(reach::host_name, Ok)?;
        let options = CaptureOptions {
            bpffs: self.bpffs,
            cgroup2: self.cgroup,
            ..CaptureOptions::new(node)
        };
        let items = capture::check(&options);
        match global.output {
            Format::Json | Format::Yaml => screen.serialized(global.output, &items)?,
            Format::Table | Format::Wide => screen.print(&render(&items, screen.colour))?,
        }
        let failed = items.iter().any(|i| i.result == CheckResult::Fail);
        Ok(ExitCode::from(u8::from(failed)))
    }
}

/// A line for each thing, what to do below it, and a verdict.
pub(super) fn render(items: &[CheckItem], colour: bool) -> String {
    let width = items.iter().map(|i| i.name.len()).max().unwrap_or(0);
    let mut out = String::new();
    // Writing to a String does not fail.
    for item in items {
        let mark = match item.result {
            CheckResult::Ok => Tint::Good.paint("ok  ", colour),
            CheckResult::Warn => Tint::Warn.paint("warn", colour),
            CheckResult::Fail => Tint::Bad.paint("FAIL", colour),
        };
        let _ = writeln!(out, "{mark}  {:<width$}  {}", item.name, item.detail);
        if !item.fix.is_empty() {
            let _ = writeln!(out, "      {:<width$}  -> {}", "", item.fix);
        }
    }
    let count = |result| items.iter().filter(|i| i.result == result).count();
    let (failed, warned) = (count(CheckResult::Fail), count(CheckResult::Warn));
    let _ = match (failed, warned) {
        (0, 0) => writeln!(out, "This machine can run the agent."),
        (0, n) => writeln!(
            out,
            "This machine can run the agent; {}.",
            units::count(n, "warning")
        ),
        (n, _) => writeln!(
            out,
            "This machine cannot run the agent: {} failed.",
            units::count(n, "check")
        ),
    };
    out
}
