//! `cargo xtask lint`: everything that a reviewer should not have to look for. Runs all checks, then says which failed.

mod deny;
mod links;
mod marks;

use anyhow::{Result, bail};

use crate::{deps, sh};

#[derive(clap::Args)]
pub(crate) struct Args {}

/// Workspaces of their own, which `--all` of the root does not reach.
const APART: [&str; 2] = ["mesh-ebpf/Cargo.toml", "tests/fuzz/Cargo.toml"];

type Check = (&'static str, fn() -> Result<()>);

const CHECKS: [Check; 5] = [
    ("format", format),
    ("clippy", clippy),
    ("deny", deny::run),
    ("links in the docs", links::run),
    ("left-over marks", marks::run),
];

pub(crate) fn run(_: &Args) -> Result<()> {
    deps::ensure(&[deps::Group::Lint])?;
    let mut failed = Vec::new();
    for (name, check) in CHECKS {
        println!("== {name}");
        if let Err(error) = check() {
            eprintln!("{name}: {error:#}");
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!(
            "lint: {} of {} failed: {}",
            failed.len(),
            CHECKS.len(),
            failed.join(", ")
        );
    }
    println!("lint: {} checks passed", CHECKS.len());
    Ok(())
}

fn format() -> Result<()> {
    sh::run(sh::cargo().args(["fmt", "--all", "--check"]))?;
    for manifest in APART {
        if sh::root().join(manifest).exists() {
            sh::run(sh::cargo().args(["fmt", "--check", "--manifest-path", manifest]))?;
        }
    }
    Ok(())
}

fn clippy() -> Result<()> {
    sh::run(sh::cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))
}
