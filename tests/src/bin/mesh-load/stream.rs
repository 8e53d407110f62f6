//! One-way streams: what of `connections` connections together arrives at the server, which counts in the file
//! `received=`.

use std::{
    io::Write,
    net::{Shutdown, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

use anyhow::Result;
use serde_json::json;

use crate::{cpu::Cpu, options::Options, received::Received};

/// What arrives of each connection before it is measured.
const FIRST: u64 = 2 << 20;

pub(crate) fn run(options: &Options) -> Result<()> {
    let connections: usize = options.get("connections", 1)?;
    let size: usize = options.get("size", 64 << 10)?;
    let to = options.destination()?;
    let streams = (0..connections)
        .map(|_| TcpStream::connect(to))
        .collect::<Result<Vec<_>, _>>()?;
    let received = Received::open(options)?;
    let stop = AtomicBool::new(false);
    let ends = streams
        .iter()
        .map(TcpStream::try_clone)
        .collect::<Result<Vec<_>, _>>()?;
    let (bytes, seconds, (proxy, system)) = thread::scope(|scope| {
        for mut stream in streams {
            let stop = &stop;
            scope.spawn(move || {
                let block = vec![0x5a; size];
                while !stop.load(Ordering::Relaxed) {
                    if let Err(error) = stream.write_all(&block) {
                        eprintln!("mesh-load: stream: {error}");
                        return;
                    }
                }
            });
        }
        let measured = measure(options, &received, connections);
        stop.store(true, Ordering::Relaxed);
        if measured.is_err() {
            // Whoever writes to somebody that does not read would be waited for without end.
            for end in &ends {
                let _ = end.shutdown(Shutdown::Both);
            }
        }
        measured
    })?;
    drop(ends);
    received.settle()?;
    println!(
        "{}",
        json!({
            "gbps": bytes as f64 * 8.0 / seconds / 1e9,
            "units": bytes as f64 / f64::from(1 << 30), "cpu_s": proxy, "system_s": system,
        })
    );
    Ok(())
}

/// Bytes that arrived, seconds that it took, and the CPU time that it cost.
fn measure(
    options: &Options,
    received: &Received,
    connections: usize,
) -> Result<(u64, f64, (f64, f64))> {
    let before = received.bytes()?;
    thread::sleep(options.warm_up()?);
    // First the buffers fill, and a server on the same CPU as many clients hardly runs.
    received.reach(before + connections as u64 * FIRST)?;
    let cpu = Cpu::now(options)?;
    let (start, before) = (Instant::now(), received.bytes()?);
    thread::sleep(options.measured()?);
    let bytes = received.bytes()? - before;
    Ok((bytes, start.elapsed().as_secs_f64(), cpu.since()))
}
