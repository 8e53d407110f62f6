//! The works that every bench has, and the turns in which subjects do them.

use anyhow::{Result, bail};

use super::Args;
use super::bed::Bed;
use super::figures::Figures;
use super::load::{self, Sample};
use super::proxies::{Proxies, Subject};
use crate::interrupt;

/// Ports of the servers: what comes on them goes back, is forgotten, goes back.
pub(super) const PING: (u16, u16) = (7000, 7000);
pub(super) const STREAM: (u16, u16) = (7001, 7001);
pub(super) const SPREAD: (u16, u16) = (7010, 7017);
pub(super) const PORTS: [u16; 10] = [7000, 7001, 7010, 7011, 7012, 7013, 7014, 7015, 7016, 7017];
/// Connections that are opened at once.
const DIALLERS: usize = 8;

pub(super) struct Run<'a> {
    pub(super) args: &'a Args,
    pub(super) bed: &'a mut Bed,
    pub(super) proxies: &'a mut Proxies,
    pub(super) subjects: &'a [Subject],
    pub(super) figures: &'a mut Figures,
}

impl Run<'_> {
    pub(super) fn has(&self, name: &str) -> bool {
        self.subjects.iter().any(|s| s.name == name)
    }

    /// Every subject once a round, each round beginning with another.
    pub(super) fn rounds(
        &mut self,
        work: &str,
        only: &[&str],
        mut measure: impl FnMut(&mut Self, Subject) -> Result<()>,
    ) -> Result<()> {
        if !self.args.wants(work) {
            return Ok(());
        }
        println!("{work} ...");
        let chosen = |s: &&Subject| only.is_empty() || only.contains(&s.name);
        let subjects: Vec<_> = self.subjects.iter().filter(chosen).copied().collect();
        for round in 0..self.args.rounds() {
            for at in 0..subjects.len() {
                interrupt::check()?;
                if let Some(&subject) = subjects.get((at + round) % subjects.len()) {
                    measure(self, subject)?;
                }
            }
        }
        Ok(())
    }

    /// One run of the load generator that prints one line.
    pub(super) fn load(
        &self,
        subject: Subject,
        work: &str,
        to: &str,
        ports: (u16, u16),
        args: &[String],
    ) -> Result<Sample> {
        let mut all = vec![format!("seconds={}", self.args.seconds())];
        all.extend_from_slice(args);
        let lines = load::run(self.bed, self.proxies, subject, work, to, ports, &all)?;
        match lines.into_iter().last() {
            Some(sample) => Ok(sample),
            None => bail!("mesh-load {work} printed nothing"),
        }
    }

    pub(super) fn ping(&mut self) -> Result<()> {
        if !self.args.wants("ping-64") {
            return Ok(());
        }
        let spinners = load::spin(self.bed)?;
        self.rounds("ping-64", &[], |run, subject| {
            let size = ["size=64".to_owned()];
            let sample = run.load(subject, "ping", subject.address, PING, &size)?;
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

    pub(super) fn stream(&mut self, connections: usize) -> Result<()> {
        let work = format!("stream-{connections}");
        self.rounds(&work.clone(), &[], |run, subject| {
            let args = [format!("connections={connections}")];
            let sample = run.load(subject, "stream", subject.address, STREAM, &args)?;
            run.add(&work, subject, "gbps", "Gbit/s", sample.get("gbps"));
            run.add_cpu(&work, subject, "gib_per_cpu_s", "GiB/s", &sample);
            Ok(())
        })
    }

    /// New connections, as many as there can be.
    pub(super) fn connect(&mut self, work: &str, only: &[&str]) -> Result<()> {
        self.rounds(work, only, |run, subject| {
            run.dial(work, subject, subject.address, SPREAD, &[])
        })
    }

    /// One measurement of new connections.
    pub(super) fn dial(
        &mut self,
        work: &str,
        subject: Subject,
        to: &str,
        ports: (u16, u16),
        args: &[String],
    ) -> Result<()> {
        let mut all = vec![format!("threads={DIALLERS}")];
        all.extend_from_slice(args);
        let sample = self.load(subject, "connect", to, ports, &all)?;
        for (metric, unit) in [("rate", "1/s"), ("p50", "us"), ("p99", "us")] {
            self.add(work, subject, metric, unit, sample.get(metric));
        }
        self.add_cpu(work, subject, "requests_per_cpu_s", "1/s", &sample);
        if sample.get("failed") > 0.0 {
            self.add(work, subject, "failed", "1", sample.get("failed"));
        }
        Ok(())
    }

    /// Once: the first connections bring what stays, the slope after them is the cost of one.
    pub(super) fn idle(&mut self) -> Result<()> {
        if !self.args.wants("idle") {
            return Ok(());
        }
        println!("idle ...");
        for &subject in self.subjects {
            if subject.name == "direct" {
                continue;
            }
            interrupt::check()?;
            let counts = [format!("counts={}", self.args.idle_counts())];
            let to = subject.address;
            let lines = load::run(self.bed, self.proxies, subject, "idle", to, SPREAD, &counts)?;
            if let [few, many] = lines.as_slice() {
                let connections = many.get("connections") - few.get("connections");
                let bytes = many.get("resident") - few.get("resident");
                self.add("idle", subject, "bytes_per_conn", "B", bytes / connections);
            }
        }
        Ok(())
    }

    pub(super) fn add(
        &mut self,
        work: &str,
        subject: Subject,
        metric: &'static str,
        unit: &'static str,
        value: f64,
    ) {
        self.figures.add(work, subject.name, metric, unit, value);
    }

    /// Work for each CPU second of the proxies; and, apart, the kernel's time on the whole machine for the same work.
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
