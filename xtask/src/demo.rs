//! `cargo xtask demo [--keep]`: the mesh at work, step by step.

use anyhow::{Result, bail};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave everything running at the end, to play with.
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    crate::interrupt::catch()?;
    crate::interrupt::check()?;
    bail!("there is no demo yet (keep: {})", args.keep)
}
