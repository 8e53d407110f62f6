//! As many requests as there can be: by wrk (HTTP/1.1) and h2load (HTTP/2), else by the load generator's own loop.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::works::Shape;
use crate::bench::bed::LOAD_CPU;
use crate::bench::process::pinned;
use crate::bench::proxies::{Proxies, Subject};
use crate::bench::works::Run;
use crate::sh;

const WRK: &str = "/usr/bin/wrk";
const H2LOAD: &str = "/usr/bin/h2load";

/// Of one run.
pub(super) struct Peak {
    pub(super) rate: f64,
    pub(super) failed: f64,
    /// Requests for each CPU second of the proxies; `None` where there is no proxy.
    pub(super) per_cpu_second: Option<f64>,
}

pub(super) fn note_versions(proxies: &mut Proxies) {
    for (program, what) in [(WRK, "HTTP/1.1"), (H2LOAD, "HTTP/2")] {
        let by = if Path::new(program).exists() {
            program
        } else {
            "mesh-load"
        };
        proxies.add_version(&format!("most requests, {what}: {by}"));
    }
}

pub(super) fn measure(run: &Run<'_>, subject: Subject, shape: Shape) -> Result<Peak> {
    let seconds = run.args.seconds();
    let program = if shape.http2 { H2LOAD } else { WRK };
    if !Path::new(program).exists() {
        let sample = run.load(
            subject,
            "http",
            subject.address,
            shape.ports(),
            &shape.args(),
        )?;
        return Ok(Peak {
            rate: sample.get("rate"),
            failed: sample.get("failed"),
            per_cpu_second: sample.per_cpu_second(),
        });
    }
    // Both know whole seconds only.
    let whole = seconds.ceil().max(1.0);
    let mut command = pinned(LOAD_CPU, &run.bed.ns(subject.client), program);
    let connections = shape.connections.to_string();
    command.args(["-t", "1", "-c", &connections, "-H", "x-tier: gold"]);
    if shape.http2 {
        let streams = shape.streams.to_string();
        command.args(["-D", &whole.to_string(), "-m", &streams]);
        // Windows of 1 MiB a stream and 16 MiB a connection, as those of the load generator.
        command.args(["-w", "20", "-W", "24"]);
    } else {
        command.args(["-d", &format!("{whole}s")]);
    }
    let port = shape.ports().0 + subject.port_offset;
    let path = super::subjects::path(shape.size);
    command.arg(format!("http://{}:{port}{path}", subject.address));
    let pids = run.proxies.pids(subject);
    let before = on_cpu(&pids);
    let said = sh::output(&mut command).with_context(|| run.proxies.said(subject))?;
    let used = on_cpu(&pids) - before;
    let said = if shape.http2 {
        h2load(&said)
    } else {
        wrk(&said)
    };
    let (done, failed, rate) = said.with_context(|| format!("not understood: {program}"))?;
    Ok(Peak {
        rate,
        failed,
        per_cpu_second: (used > 0.0).then(|| done / used),
    })
}

/// Requests, failed ones, requests a second.
fn wrk(said: &str) -> Option<(f64, f64, f64)> {
    let word = |line: &str, n: usize| line.split_whitespace().nth(n)?.parse::<f64>().ok();
    let find = |start: &str| said.lines().map(str::trim).find(|l| l.starts_with(start));
    let total = said.lines().find(|l| l.contains(" requests in "))?;
    let rate = word(find("Requests/sec:")?, 1)?;
    let statuses = find("Non-2xx")
        .and_then(|line| word(line, 4))
        .unwrap_or(0.0);
    // connect 0, read 0, write 0, timeout 0
    let sockets = find("Socket errors:").map_or(0.0, |line| {
        let numbers = line.split([' ', ',']).filter_map(|w| w.parse::<f64>().ok());
        numbers.sum()
    });
    Some((word(total, 0)?, statuses + sockets, rate))
}

fn h2load(said: &str) -> Option<(f64, f64, f64)> {
    let find = |start: &str| said.lines().find(|l| l.starts_with(start));
    // finished in 2.00s, 12345.67 req/s, 1.5MB/s
    let rate = find("finished in")?.split(", ").nth(1)?;
    let rate = rate.split_whitespace().next()?.parse().ok()?;
    // status codes: 24691 2xx, 0 3xx, 0 4xx, 0 5xx
    let codes = find("status codes:")?.split([' ', ','].as_slice());
    let codes: Vec<f64> = codes.filter_map(|w| w.parse().ok()).collect();
    let done = *codes.first()?;
    // requests: 24700 total, 24732 started, 24691 done, 24691 succeeded, 0 failed, 0 errored, 0 timeout
    let requests = find("requests:")?.split(", ");
    let failed = requests
        .map(str::trim)
        .find(|part| part.ends_with(" failed"))?;
    let failed: f64 = failed.split_whitespace().next()?.parse().ok()?;
    Some((done, failed + codes.iter().skip(1).sum::<f64>(), rate))
}

/// Seconds on a CPU of all threads of the processes; /proc/PID/stat counts in ticks of 10 ms.
fn on_cpu(pids: &str) -> f64 {
    let pids = pids.split(',').filter(|pid| !pid.is_empty());
    let tasks = pids.flat_map(|pid| {
        let tasks = fs::read_dir(Path::new("/proc").join(pid).join("task"));
        tasks.into_iter().flatten().flatten()
    });
    let nanos = tasks.filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<f64>().ok()
    });
    nanos.sum::<f64>() / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_of_wrk() {
        let said = "Running 2s test @ http://10.0.0.1/\n  1 threads and 32 connections\n  \
                    48264 requests in 2.10s, 59.80MB read\n  Socket errors: connect 0, read 3, write 0, timeout 1\n  \
                    Non-2xx or 3xx responses: 7\nRequests/sec:  22983.55\nTransfer/sec:     28.48MB\n";
        assert_eq!(wrk(said), Some((48264.0, 11.0, 22983.55)));
        assert_eq!(wrk("unable to connect"), None);
    }

    #[test]
    fn output_of_h2load() {
        let said = "finished in 2.00s, 12345.50 req/s, 13.56MB/s\n\
                    requests: 24700 total, 24732 started, 24691 done, 24691 succeeded, 2 failed, 0 errored, 0 timeout\n\
                    status codes: 24691 2xx, 0 3xx, 1 4xx, 4 5xx\n";
        assert_eq!(h2load(said), Some((24691.0, 7.0, 12345.5)));
    }
}
