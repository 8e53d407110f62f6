//! HTTP/1.1 and HTTP/2 requests, at a fixed rate (an open loop) or as many as there can be.
//!
//! At a fixed rate every request has a moment at which it is due, whatever became of those before it, and its latency
//! counts from there: a server that stalls delays all that were due meanwhile, and all of them are in the figures (no
//! coordinated omission). Requests that never ended count with the time that they had waited.

mod client;
mod clock;

use std::{rc::Rc, time::Duration};

use anyhow::{Result, ensure};
use serde_json::json;

use crate::{cpu::Cpu, options::Options, ping::percentile};
use clock::Clock;

/// How long after the end is waited for what is on its way.
const GRACE: Duration = Duration::from_secs(2);

/// `version=1` or `2`, `connections=` and on each `streams=` requests at once, `rate=` a second (0: as many as there can
/// be), `path=`, `tier=` (the value of a header that proxies route by).
pub(crate) fn run(options: &Options) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    tokio::task::LocalSet::new().block_on(&runtime, drive(options))
}

async fn drive(options: &Options) -> Result<()> {
    let target = Rc::new(client::Target::new(options)?);
    let (connections, streams) = (options.get("connections", 1)?, options.get("streams", 1)?);
    ensure!(
        target.http2 || streams == 1,
        "streams= is of HTTP/2: HTTP/1.1 has one request at a time"
    );
    let mut clients = Vec::new();
    for _ in 0..connections {
        clients.push(client::Client::connect(&target).await?);
    }
    let clock = Rc::new(Clock::new(
        options.get("rate", 0.0)?,
        options.warm_up()?,
        options.measured()?,
    ));
    let ticking = tokio::task::spawn_local(clock::tick(Rc::clone(&clock)));
    let mut workers = Vec::new();
    for client in clients {
        let client = Rc::new(client);
        for _ in 0..streams {
            let (client, clock) = (Rc::clone(&client), Rc::clone(&clock));
            workers.push(tokio::task::spawn_local(async move {
                client.work(&clock).await;
            }));
        }
    }
    clock.begun().await;
    let cpu = Cpu::now(options)?;
    clock.ended().await;
    let (proxy, system) = cpu.since();
    let all = async {
        for worker in workers {
            let _ = worker.await;
        }
    };
    let _ = tokio::time::timeout(GRACE, all).await;
    ticking.abort();
    let mut result = clock.result();
    if let Some(example) = &result.example {
        eprintln!("mesh-load: {} requests failed: {example}", result.failed);
    }
    println!(
        "{}",
        json!({
            "rate": result.units as f64 / options.measured()?.as_secs_f64(),
            "p50": percentile(&mut result.nanos, 0.5),
            "p99": percentile(&mut result.nanos, 0.99),
            "p999": percentile(&mut result.nanos, 0.999),
            "failed": result.failed, "late": result.late,
            "units": result.units, "cpu_s": proxy, "system_s": system,
        })
    );
    Ok(())
}
