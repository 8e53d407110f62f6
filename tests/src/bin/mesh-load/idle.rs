//! Idle connections: resident memory of the proxy with 0, 1,000 ... open connections.

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde_json::json;

use crate::{cpu, options::Options};

pub(crate) fn run(options: &Options) -> Result<()> {
    let pids = options.list("pids")?;
    let to = options.destinations()?;
    let mut open = Vec::new();
    for count in options.list("counts")? {
        for address in to.iter().cycle().skip(open.len() % to.len()) {
            if open.len() >= count as usize {
                break;
            }
            let mut stream = TcpStream::connect(address)?;
            // The whole way is there before it counts.
            stream.write_all(b"x")?;
            stream.read_exact(&mut [0])?;
            open.push(stream);
        }
        println!(
            "{}",
            json!({ "connections": open.len(), "resident": settled(&pids) })
        );
    }
    Ok(())
}

/// Resident bytes once they stay the same for half a second (or after five).
fn settled(pids: &[u32]) -> u64 {
    let deadline = Instant::now() + Duration::from_secs(5);
    let (mut last, mut since) = (cpu::resident(pids), Instant::now());
    while Instant::now() < deadline && since.elapsed() < Duration::from_millis(500) {
        thread::sleep(Duration::from_millis(50));
        let now = cpu::resident(pids);
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    last
}
