//! The load generator of `cargo xtask bench`: small, blocking, no runtime of its own between the clock and the
//! socket (but for `http`).
//!
//! `mesh-load WORK key=value...`; every work prints one JSON object a line. CPU affinity is the caller's business.

mod connect;
mod cpu;
mod http;
mod idle;
mod options;
mod ping;
mod probe;
mod received;
mod serve;
mod stream;

use std::process::ExitCode;

use anyhow::{Result, bail};
use options::Options;

const WORKS: &str = "serve, ping, stream, connect, http, idle, probe, spin";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh-load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let work = args.next().unwrap_or_default();
    let options = Options::parse(args)?;
    match work.as_str() {
        "serve" => serve::run(&options),
        "ping" => ping::run(&options),
        "stream" => stream::run(&options),
        "connect" => connect::run(&options),
        "http" => http::run(&options),
        "idle" => idle::run(&options),
        "probe" => probe::run(&options),
        "spin" => loop {
            std::hint::spin_loop();
        },
        other => bail!("no work named {other:?}; there are {WORKS}"),
    }
}
