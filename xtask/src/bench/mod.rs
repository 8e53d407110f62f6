//! `cargo xtask bench [NAME] [--json FILE]`: measures, beside the peers.

use std::path::PathBuf;

use anyhow::{Result, bail};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which benchmark; all of them when not given.
    pub(crate) name: Option<String>,
    /// Also write one JSON object a figure to this file.
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    bail!(
        "no benchmark named {:?} (figures would go to {:?})",
        args.name.as_deref().unwrap_or("all"),
        args.json
    )
}
