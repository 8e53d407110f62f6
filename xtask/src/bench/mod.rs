//! `cargo xtask bench [NAME] [--json FILE]`: measures, beside the peers.
//!
//! How: /docs/benchmarks.md. Everything is compared in pairs inside one run; a lone absolute says little on a machine
//! that is shared.

mod admin;
mod bed;
mod figures;
mod http;
mod l4;
mod load;
mod mtls;
mod process;
mod proxies;
mod resources;
mod works;

use std::fs::File;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::{deps, interrupt, sh};
use figures::Figures;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which benchmark: l4, mtls, http or http-mtls; all of them when not given.
    pub(crate) name: Option<String>,
    /// Also write one JSON object a figure to this file.
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
    /// Only works whose name begins so: ping, stream, connect, idle, enrol, reload, http1, http2-64k.
    #[arg(long, value_name = "NAME")]
    work: Vec<String>,
    /// Times that each work is measured with each subject [default: 3].
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds of each measurement [default: 2].
    #[arg(long)]
    seconds: Option<f64>,
    /// Only these subjects. l4: direct, mesh, mesh-both, haproxy, envoy; mtls: direct, mesh, envoy-mtls, envoy-connect;
    /// http: direct, mesh, envoy, haproxy, nginx; http-mtls: direct, mesh, envoy-mtls.
    #[arg(long, value_name = "NAME")]
    subject: Vec<String>,
    /// l4 and mtls: only to see that they work, with programs that are not optimised and one short round; their figures
    /// mean nothing. http and http-mtls: a selection (32 connections, 1 KiB; direct, mesh, Envoy) whose figures do.
    #[arg(long)]
    quick: bool,
}

impl Args {
    fn wants(&self, work: &str) -> bool {
        self.work.is_empty() || self.work.iter().any(|w| work.starts_with(w.as_str()))
    }

    fn wants_subject(&self, name: &str) -> bool {
        self.subject.is_empty() || self.subject.iter().any(|s| s == name)
    }

    /// Only to see that it works.
    fn is_trial(&self) -> bool {
        self.quick && !matches!(self.name.as_deref(), Some("http" | "http-mtls"))
    }

    fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.is_trial() { 1 } else { 3 })
    }

    fn seconds(&self) -> f64 {
        self.seconds
            .unwrap_or(if self.is_trial() { 0.3 } else { 2.0 })
    }

    /// Numbers of open connections between which memory is compared.
    fn idle_counts(&self) -> &'static str {
        if self.is_trial() {
            "50,200"
        } else {
            "1000,4000"
        }
    }

    /// The load generator and, if it is wanted, the agent.
    fn build(&self, with_agent: bool) -> Result<Programs> {
        self.build_as(with_agent, !self.quick)
    }

    fn build_as(&self, with_agent: bool, optimised: bool) -> Result<Programs> {
        let mut cargo = sh::cargo();
        cargo.args(["build", "--quiet", "--bin", "mesh-load"]);
        if optimised {
            cargo.arg("--release");
        }
        if with_agent {
            cargo.args(["--bin", "mesh-agent"]);
        }
        sh::run(&mut cargo)?;
        let dir = sh::target_dir().join(if optimised { "release" } else { "debug" });
        Ok(Programs {
            load: dir.join("mesh-load"),
            agent: with_agent.then(|| dir.join("mesh-agent")),
        })
    }
}

/// What was built for a run.
struct Programs {
    load: PathBuf,
    agent: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    type Bench = fn(&Args, &mut Figures) -> Result<()>;
    let all: [(&str, Bench); 4] = [
        ("l4", l4::run),
        ("mtls", mtls::run),
        ("http", http::run),
        ("http-mtls", http::mtls::run),
    ];
    let chosen = |name: &str| args.name.as_deref().is_none_or(|wanted| wanted == name);
    if let Some(other) = &args.name
        && !all.iter().any(|(name, _)| name == other)
    {
        bail!("no benchmark named {other:?}; there are l4, mtls, http and http-mtls");
    }
    sh::require_root("the bench (network namespaces, eBPF)")?;
    interrupt::catch()?;
    deps::ensure(&[deps::Group::Bench])?;
    let mut json = match &args.json {
        Some(file) => Some(File::create(file).with_context(|| file.display().to_string())?),
        None => None,
    };
    let mut measure = |name: &str, bench: Bench| {
        let started = Instant::now();
        let mut figures = Figures::default();
        let outcome = bench(args, &mut figures);
        // Also of a run that failed half way: what was measured holds.
        println!("\n{}", figures.table());
        if let Some(file) = &mut json {
            figures.write(name, file)?;
        }
        println!(
            "{name} took {} s with the build",
            started.elapsed().as_secs()
        );
        outcome
    };
    for (name, bench) in all.into_iter().filter(|(name, _)| chosen(name)) {
        measure(name, bench)?;
    }
    if let Some(file) = &args.json {
        println!("figures: {}", file.display());
    }
    Ok(())
}
