//! `mesh-agent check`

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use serde::Serialize;

use super::{Global, failure::Failure, output::Screen};

#[derive(Debug, Args)]
pub(super) struct Check {
    /// The host's BPF filesystem
    #[arg(long, value_name = "PATH", default_value = "/sys/fs/bpf")]
    bpffs: PathBuf,
    /// Root of cgroup2 [default: from /proc/mounts]
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Item {
    pub(super) name: String,
    /// `ok`, `warn` or `fail`.
    pub(super) result: String,
    pub(super) detail: String,
    pub(super) fix: String,
}

impl Check {
    pub(super) fn execute(&self, global: &Global, screen: &Screen) -> Result<ExitCode, Failure> {
        let _ = (global, screen, &self.bpffs, &self.cgroup);
        Err(Failure::new("capture is not composed yet"))
    }
}

pub(super) fn release_node(_bpffs: &std::path::Path, _node: &str) -> Result<Vec<String>, Failure> {
    Err(Failure::new("capture is not composed yet"))
}
