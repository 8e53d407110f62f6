//! One-way streams: what `connections` connections together carry to the server.

use std::{
    io::Write,
    net::TcpStream,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Instant,
};

use anyhow::Result;
use serde_json::json;

use crate::{cpu::Cpu, options::Options};

pub(crate) fn run(options: &Options) -> Result<()> {
    let connections: usize = options.get("connections", 1)?;
    let size: usize = options.get("size", 64 << 10)?;
    let to = options.destination()?;
    let streams = (0..connections)
        .map(|_| TcpStream::connect(to))
        .collect::<Result<Vec<_>, _>>()?;
    let (sent, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut figures = None;
    thread::scope(|scope| -> Result<()> {
        for mut stream in streams {
            let (sent, stop) = (&sent, &stop);
            scope.spawn(move || {
                let block = vec![0x5a; size];
                while !stop.load(Ordering::Relaxed) {
                    match stream.write(&block) {
                        Ok(n) => sent.fetch_add(n as u64, Ordering::Relaxed),
                        Err(error) => {
                            eprintln!("mesh-load: stream: {error}");
                            return;
                        }
                    };
                }
            });
        }
        thread::sleep(options.warm_up()?);
        let cpu = Cpu::now(options)?;
        let (start, before) = (Instant::now(), sent.load(Ordering::Relaxed));
        thread::sleep(options.measured()?);
        let bytes = sent.load(Ordering::Relaxed) - before;
        let seconds = start.elapsed().as_secs_f64();
        figures = Some((bytes, seconds, cpu.since()));
        stop.store(true, Ordering::Relaxed);
        Ok(())
    })?;
    if let Some((bytes, seconds, (proxy, system))) = figures {
        println!(
            "{}",
            json!({
                "gbps": bytes as f64 * 8.0 / seconds / 1e9,
                "units": bytes as f64 / f64::from(1 << 30), "cpu_s": proxy, "system_s": system,
            })
        );
    }
    Ok(())
}
