//! `cargo xtask demo [--keep]`: the mesh at work on namespaces that it makes itself, with real nginx, curl and socat,
//! told step by step. Every step checks what it shows; a step that does not hold ends the demo with an error.
//! `cargo xtask demo mtls` tells of identities, tunnels and policies, `cargo xtask demo traffic` of HTTP requests.

mod agent;
mod config;
mod machine;
mod mtls;
mod narrator;
mod process;
mod requests;
mod stage;
mod steps;
mod traffic;

use anyhow::Result;

use crate::{deps, interrupt, kernel, sh};
use narrator::Narrator;
use stage::Stage;

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    which: Option<Which>,
    /// Leave everything running at the end, to play with.
    #[arg(long)]
    keep: bool,
    /// Only remove what an earlier `--keep` left.
    #[arg(long, conflicts_with = "keep")]
    clean: bool,
}

#[derive(clap::Subcommand)]
enum Which {
    /// Two nodes and three identities: certificates, tunnels, who may connect to whom.
    Mtls,
    /// HTTP: versions side by side, retries, a circuit breaker, timeouts, rate limits.
    Traffic,
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

    match args.which {
        None => first(args.keep),
        Some(Which::Mtls) => mtls::run(),
        Some(Which::Traffic) => requests::run(),
    }
}

fn first(keep: bool) -> Result<()> {
    let mut narrator = Narrator::default();
    let mut stage = Stage::new()?;
    let outcome = steps::all(&mut narrator, &mut stage, keep);
    match outcome {
        Ok(()) if keep => {
            stage.keep()?;
            println!("\ndemo: {} steps passed", narrator.passed());
            Ok(())
        }
        Ok(()) => end(narrator, &stage.clean_up()),
        Err(error) => {
            stage.tell_log();
            stage.clean_up();
            Err(failed(&narrator, error))
        }
    }
}

/// The last words of a demo that held.
fn end(mut narrator: Narrator, left: &[String]) -> Result<()> {
    narrator.passed_last(left)?;
    println!("\ndemo: {} steps passed", narrator.passed());
    Ok(())
}

/// The last words of one that did not.
fn failed(narrator: &Narrator, error: anyhow::Error) -> anyhow::Error {
    eprintln!(
        "\ndemo: step {} did not hold: {error:#}",
        narrator.current()
    );
    error.context(format!(
        "demo: {} steps passed, then one failed",
        narrator.passed()
    ))
}
