//! reload-10k: from an edit to its effect on new connections, with 10,000 services and 50,000 endpoints beside.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;

use super::config::{Config, SWITCH_PORT, SWITCH_TARGETS, VIP_SWITCH};
use crate::bench::bed::Bed;
use crate::bench::figures::Figures;

/// One edit each round, to and fro; the figure is the time until a new connection reaches the other port.
pub(super) fn run(
    bed: &Bed,
    config: &Config,
    work: &str,
    rounds: usize,
    figures: &mut Figures,
) -> Result<()> {
    for round in 0..rounds {
        let [first, second] = SWITCH_TARGETS;
        let target = if round % 2 == 0 { second } else { first };
        let seconds = edit(bed, config, target)?;
        figures.add(work, "mesh", "seconds", "s", seconds);
    }
    // As it was found.
    config.switch(SWITCH_TARGETS[0])
}

fn edit(bed: &Bed, config: &Config, target: u16) -> Result<f64> {
    let mut probe = bed
        .load("mesh")
        .args([
            "probe".to_owned(),
            format!("to={VIP_SWITCH}"),
            format!("ports={SWITCH_PORT}"),
            format!("want={target}"),
            "seconds=30".to_owned(),
        ])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(probe.stdout.take().context("no output")?).lines();
    let mut line = || -> Result<Value> {
        let text = lines.next().context("the probe ended early")??;
        Ok(serde_json::from_str(&text)?)
    };
    // It has had its first answer: the way is warm.
    line()?;
    let edited = nanoseconds();
    config.switch(target)?;
    let seen = line()?["monotonic_ns"].as_i64().context("no time")?;
    let status = probe.wait()?;
    ensure!(status.success(), "the probe failed: {status}");
    Ok((seen - edited) as f64 / 1e9)
}

fn nanoseconds() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}
