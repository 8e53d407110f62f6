//! Runs of the load generator.

use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::bed::{Bed, LOAD_CPU};
use super::process::Running;
use super::proxies::{Proxies, Subject};
use crate::sh;

/// The figures of one run.
pub(super) struct Sample(Value);

impl Sample {
    pub(super) fn get(&self, name: &str) -> f64 {
        self.0[name].as_f64().unwrap_or(0.0)
    }

    /// Units of work for each CPU second of the proxy; `None` where there is no proxy.
    pub(super) fn per_cpu_second(&self) -> Option<f64> {
        let cpu = self.get("cpu_s");
        (cpu > 0.0).then(|| self.get("units") / cpu)
    }
}

/// Runs one work of one subject; every line that it printed.
pub(super) fn run(
    bed: &Bed,
    proxies: &Proxies,
    subject: Subject,
    work: &str,
    to: &str,
    ports: (u16, u16),
    args: &[String],
) -> Result<Vec<Sample>> {
    let mut command = bed.load(subject.client);
    let offset = subject.port_offset;
    command
        .args([
            work.to_owned(),
            format!("to={to}"),
            format!("ports={}-{}", ports.0 + offset, ports.1 + offset),
            format!("pids={}", proxies.pids(subject)),
            received(bed, subject.server),
        ])
        .args(args);
    let said = sh::output(&mut command)
        .with_context(|| format!("{}: {}", subject.name, proxies.said(subject)))?;
    said.lines()
        .map(|line| {
            Ok(Sample(
                serde_json::from_str(line).with_context(|| line.to_owned())?,
            ))
        })
        .collect()
}

/// The server of a pod, on the ports of all works and whatever `more` says.
pub(super) fn serve(bed: &Bed, pod: &str, ip: &str, more: &[String]) -> Result<Running> {
    let mut command = bed.load(pod);
    command
        .args([
            "serve",
            &format!("ip={ip}"),
            "echo=7000,7010-7017",
            "sink=7001",
            &received(bed, pod),
        ])
        .args(more);
    Running::start(&mut command, &bed.log(pod))
}

/// Where the server of a pod counts what it received.
fn received(bed: &Bed, pod: &str) -> String {
    format!(
        "received={}",
        bed.dir.join(format!("{pod}.received")).display()
    )
}

/// Keeps every CPU from sleeping: waking an idle one of a virtual machine costs 50 us and drowns what is under it.
pub(super) fn spin(bed: &Bed) -> Result<Vec<Running>> {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let start = |cpu: usize| {
        let mut command = Command::new("nice");
        command.args(["-n", "19", "taskset", "--cpu-list", &cpu.to_string()]);
        Running::start(command.arg(&bed.mesh_load).arg("spin"), &bed.log("spin"))
    };
    debug_assert!(cpus as u32 > LOAD_CPU);
    (0..cpus).map(start).collect()
}
