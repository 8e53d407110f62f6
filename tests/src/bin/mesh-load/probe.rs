//! Asks a greeting server (`greet=` ports of `serve`) who it is until the answer is `want`: how long a change of
//! configuration takes to have effect. Prints `ready` with the first answer.

use std::{
    io::Read,
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use serde_json::json;

use crate::options::Options;

pub(crate) fn run(options: &Options) -> Result<()> {
    let to = options.destination()?;
    let want: u16 = options.required("want")?;
    let deadline = Instant::now() + options.measured()?;
    let mut first = true;
    let mut last = None;
    while Instant::now() < deadline {
        let answer = ask(to).ok();
        if first {
            println!("{}", json!({ "ready": answer }));
            first = false;
        }
        if answer == Some(want) {
            let at = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
            println!(
                "{}",
                json!({ "monotonic_ns": at.tv_sec * 1_000_000_000 + at.tv_nsec })
            );
            return Ok(());
        }
        last = answer;
        thread::sleep(Duration::from_micros(500));
    }
    bail!("{to} never answered {want}; last it was {last:?}")
}

fn ask(to: SocketAddr) -> std::io::Result<u16> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut bytes = [0; 2];
    stream.read_exact(&mut bytes)?;
    Ok(u16::from_be_bytes(bytes))
}
