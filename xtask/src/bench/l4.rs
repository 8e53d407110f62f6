//! `cargo xtask bench l4`: TCP through nothing, the mesh, HAProxy and Envoy, in turns.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Instant;

use anyhow::{Result, bail, ensure};

use super::bed::{Bed, LOAD_CPU, PROXY_CPU};
use super::config::Config;
use super::figures::Figures;
use super::load::{self, Sample};
use super::subject::{Subject, Subjects, wants_agent};
use super::{Args, admin, enrol, reload};
use crate::{deps, interrupt, sh};

const PING: (u16, u16) = (7000, 7000);
const STREAM: (u16, u16) = (7001, 7001);
const SPREAD: (u16, u16) = (7010, 7017);
/// Connections that are opened at once in connect-warm.
const DIALLERS: usize = 8;

pub(super) fn run(args: &Args) -> Result<()> {
    sh::require_root("the bench (network namespaces, eBPF)")?;
    interrupt::catch()?;
    deps::ensure(&[deps::Group::Bench])?;
    let (mesh_load, agent) = build(wants_agent(&args.subject))?;
    let mut bed = Bed::new(mesh_load)?;
    let config = Config::new(&bed)?;
    let servers = load::serve(&bed)?;
    let subjects = Subjects::start(&bed, &config, &args.subject, agent.as_deref())?;
    let started = Instant::now();
    let mut run = Run {
        args,
        bed: &mut bed,
        config: &config,
        subjects: &subjects,
        figures: Figures::default(),
    };
    println!("{}", run.preamble());
    let outcome = run.all();
    let figures = run.figures;
    println!("\n{}", figures.table());
    if let Some(file) = &args.json {
        figures.write("l4", file)?;
        println!("figures: {}", file.display());
    }
    println!("took {} s", started.elapsed().as_secs());
    drop(subjects);
    drop(servers);
    bed.keep_logs(outcome.is_err());
    outcome
}

/// The load generator and, if it is wanted, the agent, optimised.
fn build(with_agent: bool) -> Result<(PathBuf, Option<PathBuf>)> {
    let mut cargo = sh::cargo();
    cargo.args(["build", "--release", "--quiet", "--bin", "mesh-load"]);
    if with_agent {
        cargo.args(["--bin", "mesh-agent"]);
    }
    sh::run(&mut cargo)?;
    let dir = sh::target_dir().join("release");
    let agent = with_agent.then(|| dir.join("mesh-agent"));
    Ok((dir.join("mesh-load"), agent))
}

struct Run<'a> {
    args: &'a Args,
    bed: &'a mut Bed,
    config: &'a Config,
    subjects: &'a Subjects,
    figures: Figures,
}

impl Run<'_> {
    fn preamble(&self) -> String {
        let model = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = model.lines().find_map(|l| l.strip_prefix("model name"));
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let mut text = format!(
            "{}; Linux {}; {} CPUs\nclients and servers on CPU {LOAD_CPU}, proxies on CPU {PROXY_CPU}, one worker each\n",
            model
                .unwrap_or_default()
                .trim_start_matches([' ', '\t', ':']),
            kernel.trim(),
            thread::available_parallelism().map_or(1, usize::from),
        );
        for version in &self.subjects.versions {
            text += &format!("{version}\n");
        }
        for missing in &self.subjects.missing {
            text += &format!("left out: {missing}\n");
        }
        text
    }

    fn all(&mut self) -> Result<()> {
        // First, while every proxy is fresh: memory that it keeps from earlier connections would hide what one costs.
        self.idle()?;
        if self.subjects.has("mesh") && self.args.wants("enrol-100") {
            println!("enrol-100 ...");
            enrol::run(self.bed, self.config, self.args.rounds, &mut self.figures)?;
        }
        self.ping()?;
        for connections in [1, 8, 64] {
            self.stream(connections)?;
        }
        self.connect("connect-warm", &[])?;
        if self.subjects.has("mesh") {
            self.changes()?;
        }
        Ok(())
    }

    /// Every subject once a round, each round beginning with another.
    fn rounds(
        &mut self,
        work: &str,
        only: &[&str],
        mut measure: impl FnMut(&mut Self, Subject) -> Result<()>,
    ) -> Result<()> {
        if !self.args.wants(work) {
            return Ok(());
        }
        println!("{work} ...");
        let subjects: Vec<_> = self.subjects.list.clone();
        let chosen = |s: &&Subject| only.is_empty() || only.contains(&s.name);
        let subjects: Vec<_> = subjects.iter().filter(chosen).copied().collect();
        for round in 0..self.args.rounds {
            for at in 0..subjects.len() {
                interrupt::check()?;
                if let Some(&subject) = subjects.get((at + round) % subjects.len()) {
                    measure(self, subject)?;
                }
            }
        }
        Ok(())
    }

    fn load(
        &self,
        subject: Subject,
        work: &str,
        ports: (u16, u16),
        args: &[String],
    ) -> Result<Sample> {
        let mut all = vec![format!("seconds={}", self.args.seconds)];
        all.extend_from_slice(args);
        let lines = load::run(self.bed, self.subjects, subject, work, ports, &all)?;
        match lines.into_iter().last() {
            Some(sample) => Ok(sample),
            None => bail!("mesh-load {work} printed nothing"),
        }
    }

    fn ping(&mut self) -> Result<()> {
        if !self.args.wants("ping-64") {
            return Ok(());
        }
        let spinners = load::spin(self.bed)?;
        self.rounds("ping-64", &[], |run, subject| {
            let sample = run.load(subject, "ping", PING, &["size=64".to_owned()])?;
            for (metric, unit) in [
                ("rate", "1/s"),
                ("p50", "us"),
                ("p99", "us"),
                ("p999", "us"),
            ] {
                run.add("ping-64", subject, metric, unit, sample.get(metric));
            }
            run.add_cpu("ping-64", subject, "requests_per_cpu_s", "1/s", &sample);
            Ok(())
        })?;
        drop(spinners);
        Ok(())
    }

    fn stream(&mut self, connections: usize) -> Result<()> {
        let work = format!("stream-{connections}");
        self.rounds(&work.clone(), &[], |run, subject| {
            let sample = run.load(
                subject,
                "stream",
                STREAM,
                &[format!("connections={connections}")],
            )?;
            run.add(&work, subject, "gbps", "Gbit/s", sample.get("gbps"));
            run.add_cpu(&work, subject, "gib_per_cpu_s", "GiB/s", &sample);
            Ok(())
        })
    }

    fn connect(&mut self, work: &str, only: &[&str]) -> Result<()> {
        self.rounds(work, only, |run, subject| {
            let sample = run.load(subject, "connect", SPREAD, &[format!("threads={DIALLERS}")])?;
            for (metric, unit) in [("rate", "1/s"), ("p50", "us"), ("p99", "us")] {
                run.add(work, subject, metric, unit, sample.get(metric));
            }
            run.add_cpu(work, subject, "requests_per_cpu_s", "1/s", &sample);
            if sample.get("failed") > 0.0 {
                run.add(work, subject, "failed", "1", sample.get("failed"));
            }
            Ok(())
        })
    }

    /// Once: the first thousand connections bring what stays, the slope after them is the cost of one.
    fn idle(&mut self) -> Result<()> {
        if !self.args.wants("idle") {
            return Ok(());
        }
        println!("idle ...");
        for subject in self.subjects.list.clone() {
            if subject.name == "direct" {
                continue;
            }
            interrupt::check()?;
            let counts = ["counts=1000,4000".to_owned()];
            let lines = load::run(self.bed, self.subjects, subject, "idle", SPREAD, &counts)?;
            if let [few, many] = lines.as_slice() {
                let connections = many.get("connections") - few.get("connections");
                let bytes = many.get("resident") - few.get("resident");
                self.add("idle", subject, "bytes_per_conn", "B", bytes / connections);
            }
        }
        Ok(())
    }

    /// Reload, and the cost of a connection with few and many services.
    fn changes(&mut self) -> Result<()> {
        let (small, large) = (self.args.wants("connect"), self.args.wants("reload-10k"));
        if !small && !large {
            return Ok(());
        }
        // Ten services with the three that the bench has.
        self.config.crowd(7)?;
        self.settle(10)?;
        self.connect("connect-10", &["direct", "mesh"])?;
        if large {
            reload::run(
                self.bed,
                self.config,
                "reload-10",
                self.args.rounds,
                &mut self.figures,
            )?;
        }
        self.config.crowd(10_000)?;
        self.settle(10_003)?;
        self.connect("connect-10k", &["direct", "mesh"])?;
        if large {
            println!("reload-10k ...");
            reload::run(
                self.bed,
                self.config,
                "reload-10k",
                self.args.rounds,
                &mut self.figures,
            )?;
        }
        self.config.disperse()
    }

    /// Waits until the last edit is in effect: one more edit, which comes after it, is.
    fn settle(&mut self, services: usize) -> Result<()> {
        let mut unused = Figures::default();
        reload::run(self.bed, self.config, "settle", 2, &mut unused)?;
        let known = admin::services(self.bed.node())?;
        ensure!(
            known == services,
            "the agent knows {known} services of {services}"
        );
        Ok(())
    }

    fn add(
        &mut self,
        work: &str,
        subject: Subject,
        metric: &'static str,
        unit: &'static str,
        value: f64,
    ) {
        self.figures.add(work, subject.name, metric, unit, value);
    }

    /// Work for each CPU second of the proxy; and, apart, the kernel's time on the whole machine for the same work.
    fn add_cpu(
        &mut self,
        work: &str,
        subject: Subject,
        metric: &'static str,
        unit: &'static str,
        sample: &Sample,
    ) {
        if let Some(value) = sample.per_cpu_second() {
            self.add(work, subject, metric, unit, value);
        }
        let units = sample.get("units");
        if units > 0.0 {
            let (metric, unit, scale) = match metric {
                "gib_per_cpu_s" => ("system_s_per_gib", "s", 1.0),
                _ => ("system_s_per_100k", "s", 100_000.0),
            };
            self.add(
                work,
                subject,
                metric,
                unit,
                sample.get("system_s") / units * scale,
            );
        }
    }
}
