//! What is measured: the most requests, latency at a fixed rate, memory.

use anyhow::Result;

use super::peak;
use super::subjects::{self, SIZES};
use crate::bench::load;
use crate::bench::works::Run;
use crate::interrupt;

/// Requests at once on a connection of HTTP/2.
const STREAMS: usize = 4;
/// Part of what the slower one can do, at which latency is compared.
const LOADED: f64 = 0.7;

/// The requests of one work.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) http2: bool,
    pub(super) size: &'static str,
    pub(super) connections: usize,
    pub(super) streams: usize,
}

impl Shape {
    fn new(http2: bool, size: &'static str, connections: usize) -> Self {
        Self {
            http2,
            size,
            connections,
            streams: if http2 { STREAMS } else { 1 },
        }
    }

    /// `http1-1k-c32`
    fn name(self) -> String {
        let version = if self.http2 { 2 } else { 1 };
        format!("http{version}-{}-c{}", self.size, self.connections)
    }

    pub(super) fn ports(self) -> (u16, u16) {
        if self.http2 {
            (8081, 8081)
        } else {
            (8080, 8080)
        }
    }

    /// As the load generator takes them.
    pub(super) fn args(self) -> Vec<String> {
        vec![
            format!("version={}", if self.http2 { 2 } else { 1 }),
            format!("connections={}", self.connections),
            format!("streams={}", self.streams),
            format!("path={}", subjects::path(self.size)),
        ]
    }
}

pub(super) fn all(run: &mut Run<'_>) -> Result<()> {
    // First, while every proxy is fresh.
    idle(run)?;
    let (sizes, connections): (&[_], &[_]) = if run.args.quick {
        (&SIZES[..1], &[32])
    } else {
        (&SIZES, &[1, 32, 256])
    };
    for http2 in [false, true] {
        for (size, _) in sizes {
            for &connections in connections {
                one(run, Shape::new(http2, size, connections))?;
            }
        }
    }
    Ok(())
}

fn one(run: &mut Run<'_>, shape: Shape) -> Result<()> {
    let work = shape.name();
    let mut peaks: Vec<(&str, Vec<f64>)> = Vec::new();
    run.rounds(&work, &[], |run, subject| {
        let peak = peak::measure(run, subject, shape)?;
        run.add(&work, subject, "rate", "1/s", peak.rate);
        if let Some(value) = peak.per_cpu_second {
            run.add(&work, subject, "requests_per_cpu_s", "1/s", value);
        }
        if peak.failed > 0.0 {
            run.add(&work, subject, "failed", "1", peak.failed);
        }
        match peaks.iter_mut().find(|(name, _)| *name == subject.name) {
            Some((_, rates)) => rates.push(peak.rate),
            None => peaks.push((subject.name, vec![peak.rate])),
        }
        run.proxies.forget_logs(subject);
        Ok(())
    })?;
    let Some(rate) = loaded(&peaks) else {
        return Ok(());
    };
    let spinners = load::spin(run.bed)?;
    run.rounds(&work, &[], |run, subject| {
        let mut args = shape.args();
        args.push(format!("rate={rate}"));
        let ports = shape.ports();
        let sample = run.load(subject, "http", subject.address, ports, &args)?;
        for metric in ["p50", "p99", "p999"] {
            run.add(&work, subject, metric, "us", sample.get(metric));
        }
        let reached = 100.0 * sample.get("rate") / rate;
        run.add(&work, subject, "of_fixed_rate", "%", reached);
        let failed = sample.get("failed") + sample.get("late");
        if failed > 0.0 {
            run.add(&work, subject, "failed", "1", failed);
        }
        run.proxies.forget_logs(subject);
        Ok(())
    })?;
    drop(spinners);
    println!("{work}: latency at {rate:.0} requests a second");
    Ok(())
}

/// 70 % of the slower one of mesh and Envoy; without both, of the slowest there is.
fn loaded(peaks: &[(&str, Vec<f64>)]) -> Option<f64> {
    let median = |rates: &[f64]| {
        let mut sorted = rates.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied()
    };
    let pair: Vec<_> = peaks
        .iter()
        .filter(|(name, _)| ["mesh", "envoy", "envoy-mtls"].contains(name))
        .collect();
    let of = if pair.len() == 2 {
        pair
    } else {
        peaks.iter().collect()
    };
    let slowest = of.iter().filter_map(|(_, rates)| median(rates));
    let slowest = slowest.min_by(f64::total_cmp)?;
    (slowest > 0.0).then_some((slowest * LOADED).round())
}

/// Memory at rest, and the slope from some to many idle connections that have had one request each.
fn idle(run: &mut Run<'_>) -> Result<()> {
    if !run.args.wants("idle") {
        return Ok(());
    }
    println!("idle ...");
    for &subject in run.subjects {
        if subject.name == "direct" {
            continue;
        }
        interrupt::check()?;
        let args = [
            format!("counts=0,{}", run.args.idle_counts()),
            format!("path={}", subjects::path("1k")),
        ];
        let ports = (8080, 8080);
        let to = subject.address;
        let lines = load::run(run.bed, run.proxies, subject, "idle", to, ports, &args)?;
        if let [rest, few, many] = lines.as_slice() {
            let connections = many.get("connections") - few.get("connections");
            let bytes = many.get("resident") - few.get("resident");
            run.add(
                "idle",
                subject,
                "resident_at_rest",
                "MiB",
                rest.get("resident") / f64::from(1 << 20),
            );
            run.add("idle", subject, "bytes_per_conn", "B", bytes / connections);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_slower_of_two() {
        let peaks = [
            ("direct", vec![900.0]),
            ("mesh", vec![300.0, 200.0, 250.0]),
            ("envoy", vec![100.0]),
            ("haproxy", vec![10.0]),
        ];
        assert_eq!(loaded(&peaks), Some(70.0));
        assert_eq!(loaded(&peaks[..2]), Some(175.0));
        assert_eq!(loaded(&[]), None);
    }
}
