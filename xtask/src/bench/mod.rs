//! `cargo xtask bench [NAME] [--json FILE]`: measures, beside the peers.
//!
//! How: /docs/benchmarks.md. Everything is compared in pairs inside one run; a lone absolute says little on a machine
//! that is shared.

mod admin;
mod bed;
mod config;
mod enrol;
mod figures;
mod l4;
mod load;
mod process;
mod reload;
mod subject;

use std::path::PathBuf;

use anyhow::{Result, bail};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which benchmark; all of them when not given.
    pub(crate) name: Option<String>,
    /// Also write one JSON object a figure to this file.
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
    /// Only works whose name begins so: ping, stream, connect, idle, enrol, reload.
    #[arg(long, value_name = "NAME")]
    work: Vec<String>,
    /// Times that each work is measured with each subject.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Only these subjects: direct, mesh, mesh-both, haproxy, envoy.
    #[arg(long, value_name = "NAME")]
    subject: Vec<String>,
}

impl Args {
    fn wants(&self, work: &str) -> bool {
        self.work.is_empty() || self.work.iter().any(|w| work.starts_with(w.as_str()))
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    match args.name.as_deref() {
        None | Some("l4") => l4::run(args),
        Some(other) => bail!("no benchmark named {other:?}; there is l4"),
    }
}
