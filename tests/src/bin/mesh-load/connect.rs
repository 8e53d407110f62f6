//! New connections: dial, send a byte, have it back, close. The byte is part of it, because behind a proxy a finished
//! dial says nothing about the server.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Mutex,
    thread,
    time::Instant,
};

use anyhow::Result;
use serde_json::json;

use crate::{cpu::Cpu, options::Options, ping::percentile};

#[derive(Default)]
struct Tally {
    nanos: Vec<u32>,
    failed: u64,
    example: Option<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let threads: usize = options.get("threads", 1)?;
    let to = options.destinations()?;
    let start = Instant::now() + options.warm_up()?;
    let end = start + options.measured()?;
    let all = Mutex::new(Tally::default());
    let mut used = (0.0, 0.0);
    thread::scope(|scope| -> Result<()> {
        for first in 0..threads {
            let (to, all) = (&to, &all);
            scope.spawn(move || {
                let tally = dial(to, first, start, end);
                if let Ok(mut all) = all.lock() {
                    all.nanos.extend(tally.nanos);
                    all.failed += tally.failed;
                    all.example = all.example.take().or(tally.example);
                }
            });
        }
        thread::sleep(start.saturating_duration_since(Instant::now()));
        let cpu = Cpu::now(options)?;
        thread::sleep(end.saturating_duration_since(Instant::now()));
        used = cpu.since();
        Ok(())
    })?;
    let mut tally = all.into_inner()?;
    if let Some(example) = &tally.example {
        eprintln!("mesh-load: {} connections failed: {example}", tally.failed);
    }
    let count = tally.nanos.len();
    println!(
        "{}",
        json!({
            "rate": count as f64 / (end - start).as_secs_f64(),
            "p50": percentile(&mut tally.nanos, 0.5),
            "p99": percentile(&mut tally.nanos, 0.99),
            "failed": tally.failed,
            "units": count, "cpu_s": used.0, "system_s": used.1,
        })
    );
    Ok(())
}

/// Dials one destination after the other until `end`; counts what began after `start`.
fn dial(to: &[SocketAddr], first: usize, start: Instant, end: Instant) -> Tally {
    let mut tally = Tally::default();
    for &address in to.iter().cycle().skip(first % to.len()) {
        let begun = Instant::now();
        if begun >= end {
            break;
        }
        match once(address) {
            Ok(()) if begun >= start => tally.nanos.push(begun.elapsed().as_nanos() as u32),
            Ok(()) => {}
            Err(error) => {
                tally.failed += 1;
                tally.example = Some(format!("{address}: {error}"));
            }
        }
    }
    tally
}

fn once(address: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])
}
