//! Ping-pong on one connection: rate and percentiles of the round trip.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Instant,
};

use anyhow::Result;
use serde_json::json;

use crate::{cpu::Cpu, options::Options};

pub(crate) fn run(options: &Options) -> Result<()> {
    let size: usize = options.get("size", 64)?;
    let mut stream = TcpStream::connect(options.destination()?)?;
    stream.set_nodelay(true)?;
    let mut message = vec![0x2a; size];
    let warm = Instant::now() + options.warm_up()?;
    while Instant::now() < warm {
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
    }
    let mut trips: Vec<u32> = Vec::with_capacity(1 << 20);
    let cpu = Cpu::now(options)?;
    let start = Instant::now();
    let end = start + options.measured()?;
    let mut last = start;
    while last < end {
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        let now = Instant::now();
        trips.push((now - last).as_nanos() as u32);
        last = now;
    }
    let seconds = (last - start).as_secs_f64();
    let (proxy, system) = cpu.since();
    let count = trips.len();
    println!(
        "{}",
        json!({
            "rate": count as f64 / seconds,
            "p50": percentile(&mut trips, 0.5),
            "p99": percentile(&mut trips, 0.99),
            "p999": percentile(&mut trips, 0.999),
            "units": count, "cpu_s": proxy, "system_s": system,
        })
    );
    Ok(())
}

/// In microseconds.
pub(crate) fn percentile(nanos: &mut [u32], part: f64) -> f64 {
    if nanos.is_empty() {
        return 0.0;
    }
    let at = ((nanos.len() - 1) as f64 * part) as usize;
    f64::from(*nanos.select_nth_unstable(at).1) / 1_000.0
}
