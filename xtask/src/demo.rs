//! `cargo xtask demo [--keep]`: the mesh at work on namespaces that it makes itself, with real nginx, curl and socat,
//! told step by step. Every step checks what it shows; a step that does not hold ends the demo with an error.

mod agent;
mod config;
mod machine;
mod narrator;
mod process;
mod stage;
mod steps;
mod traffic;

use anyhow::Result;

use crate::{deps, interrupt, kernel, sh};
use narrator::Narrator;
use stage::Stage;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave everything running at the end, to play with.
    #[arg(long)]
    keep: bool,
    /// Only remove what an earlier `--keep` left.
    #[arg(long, conflicts_with = "keep")]
    clean: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    sh::require_root("making pods (network namespaces) and loading kernel programs")?;
    interrupt::catch()?;
    stage::sweep(args.clean);
    if args.clean {
        return Ok(());
    }
    deps::ensure(&[deps::Group::Demo])?;
    kernel::mount_bpffs()?;
    println!("Building mesh-agent (stable Rust only: the kernel object is in the tree).");
    sh::run(sh::cargo().args(["build", "--package", "mesh-agent"]))?;

    let mut narrator = Narrator::default();
    let mut stage = Stage::new()?;
    let outcome = steps::all(&mut narrator, &mut stage, args.keep);
    match outcome {
        Ok(()) if args.keep => {
            stage.keep()?;
            println!("\ndemo: {} steps passed", narrator.passed());
            Ok(())
        }
        Ok(()) => {
            narrator.passed_last(&stage.clean_up())?;
            println!("\ndemo: {} steps passed", narrator.passed());
            Ok(())
        }
        Err(error) => {
            eprintln!(
                "\ndemo: step {} did not hold: {error:#}",
                narrator.current()
            );
            stage.tell_log();
            stage.clean_up();
            Err(error.context(format!(
                "demo: {} steps passed, then one failed",
                narrator.passed()
            )))
        }
    }
}
