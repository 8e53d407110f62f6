//! Idle connections: resident memory of the proxy with 0, 1,000 ... open connections.

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::{cpu, options::Options};

pub(crate) fn run(options: &Options) -> Result<()> {
    let pids = options.list("pids")?;
    let to = options.destinations()?;
    // An HTTP request instead of a byte.
    let path: String = options.get("path", String::new())?;
    let mut open = Vec::new();
    for count in options.list("counts")? {
        for address in to.iter().cycle().skip(open.len() % to.len()) {
            if open.len() >= count as usize {
                break;
            }
            let mut stream = TcpStream::connect(address)?;
            // The whole way is there before it counts.
            if path.is_empty() {
                stream.write_all(b"x")?;
                stream.read_exact(&mut [0])?;
            } else {
                ask(&mut stream, &path)?;
            }
            open.push(stream);
        }
        println!(
            "{}",
            json!({ "connections": open.len(), "resident": settled(&pids) })
        );
    }
    Ok(())
}

/// One request with keep-alive, and its whole answer.
fn ask(stream: &mut TcpStream, path: &str) -> Result<()> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: bench\r\nx-tier: gold\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    loop {
        let n = stream.read(&mut part)?;
        ensure!(n > 0, "closed in the middle of an answer");
        answer.extend_from_slice(part.get(..n).unwrap_or_default());
        let text = String::from_utf8_lossy(&answer);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        ensure!(head.starts_with("HTTP/1.1 200 "), "answered {head}");
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            let is = name.eq_ignore_ascii_case("content-length");
            is.then(|| value.trim().parse::<usize>().ok())?
        });
        if body.len() >= length.context("no Content-Length")? {
            return Ok(());
        }
    }
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
