//! New connections: dial, send a byte, have it back, close. The byte is part of it, because behind a proxy a finished
//! dial says nothing about the server.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
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

/// When it ends: after a time, or after a number of connections.
enum Until {
    Time(Instant),
    Count(u64),
}

/// `seconds=` after `warm=`; or `count=` connections without warming up, for those that are dear only the first time.
pub(crate) fn run(options: &Options) -> Result<()> {
    let threads: usize = options.get("threads", 1)?;
    let count: u64 = options.get("count", 0)?;
    let to = options.destinations()?;
    let start = Instant::now();
    let (start, until) = if count > 0 {
        (start, Until::Count(count))
    } else {
        let start = start + options.warm_up()?;
        (start, Until::Time(start + options.measured()?))
    };
    // Handed out one after the other, so that each destination is dialled once before any is dialled again.
    let next = AtomicU64::new(0);
    let all = Mutex::new(Tally::default());
    let (used, took) = thread::scope(|scope| -> Result<_> {
        let diallers: Vec<_> = (0..threads)
            .map(|_| {
                let (to, next, until, all) = (&to, &next, &until, &all);
                scope.spawn(move || {
                    let tally = dial(to, next, start, until);
                    if let Ok(mut all) = all.lock() {
                        all.nanos.extend(tally.nanos);
                        all.failed += tally.failed;
                        all.example = all.example.take().or(tally.example);
                    }
                })
            })
            .collect();
        thread::sleep(start.saturating_duration_since(Instant::now()));
        let cpu = Cpu::now(options)?;
        match &until {
            Until::Time(end) => thread::sleep(end.saturating_duration_since(Instant::now())),
            Until::Count(_) => {
                for dialler in diallers {
                    let _ = dialler.join();
                }
            }
        }
        Ok((cpu.since(), start.elapsed()))
    })?;
    let mut tally = all.into_inner()?;
    if let Some(example) = &tally.example {
        eprintln!("mesh-load: {} connections failed: {example}", tally.failed);
    }
    let count = tally.nanos.len();
    println!(
        "{}",
        json!({
            "rate": count as f64 / took.as_secs_f64(),
            "p50": percentile(&mut tally.nanos, 0.5),
            "p99": percentile(&mut tally.nanos, 0.99),
            "failed": tally.failed,
            "units": count, "cpu_s": used.0, "system_s": used.1,
        })
    );
    Ok(())
}

/// Dials one destination after the other; counts what began after `start`.
fn dial(to: &[SocketAddr], next: &AtomicU64, start: Instant, until: &Until) -> Tally {
    let mut tally = Tally::default();
    loop {
        let begun = Instant::now();
        let turn = next.fetch_add(1, Ordering::Relaxed);
        let over = match until {
            Until::Time(end) => begun >= *end,
            Until::Count(count) => turn >= *count,
        };
        let at = (turn % to.len().max(1) as u64) as usize;
        let Some(&address) = to.get(at).filter(|_| !over) else {
            return tally;
        };
        match once(address) {
            Ok(()) if begun >= start => tally.nanos.push(begun.elapsed().as_nanos() as u32),
            Ok(()) => {}
            Err(error) => {
                tally.failed += 1;
                tally.example = Some(format!("{address}: {error}"));
            }
        }
    }
}

fn once(address: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])
}
