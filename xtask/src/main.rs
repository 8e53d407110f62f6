//! Developer commands: `cargo xtask --help`. One file a subcommand.

mod bench;
mod demo;
mod deps;
mod ebpf;
mod interrupt;
mod kernel;
mod lint;
mod sh;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Developer commands of Covet Mesh.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what the other commands need, and say why.
    Deps(deps::Args),
    /// Build the kernel programs into mesh-ebpf/prebuilt.
    Ebpf(ebpf::Args),
    /// Show the mesh at work on real namespaces and real programs, step by step.
    Demo(demo::Args),
    /// Run the tests: unit, property, kernel, end to end.
    Test(test::Args),
    /// Measure, beside the peers.
    Bench(bench::Args),
    /// Formatting, clippy, licences and advisories, links in the docs.
    Lint(lint::Args),
}

fn main() -> ExitCode {
    if std::env::var_os(ebpf::wrapper::ENV).is_some() {
        return ebpf::wrapper::run().unwrap_or_else(|error| report(&error));
    }
    let outcome = match Cli::parse().command {
        Command::Deps(args) => deps::run(&args),
        Command::Ebpf(args) => ebpf::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Lint(args) => lint::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

fn report(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}
