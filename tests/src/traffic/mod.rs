//! Clients and servers that run inside pods, in Rust, so that a test says exactly what the socket does.

pub mod client;
pub mod pattern;
pub mod server;

use std::{
    io::{self, Read},
    net::TcpStream,
    time::Duration,
};

pub use client::{connect, connect_from, round_trip};
pub use server::{Accepted, Server};

/// After this long without a byte a test peer gives up: a hang becomes a failure with a place.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// FIN.
    Fin,
    /// RST.
    Reset,
    /// Neither within the read timeout.
    Hang,
    /// Another error.
    Other(io::ErrorKind),
}

impl End {
    /// The end that an error means.
    pub fn of(error: &io::Error) -> End {
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => End::Reset,
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => End::Hang,
            kind => End::Other(kind),
        }
    }
}

/// Reads to the end; gives what came and how it ended.
pub fn read_to_end(mut stream: &TcpStream) -> (Vec<u8>, End) {
    let mut got = Vec::new();
    let mut buffer = [0_u8; 16384];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return (got, End::Fin),
            Ok(n) => got.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return (got, End::of(&e)),
        }
    }
}

/// Closes with RST instead of FIN.
pub fn reset(stream: TcpStream) {
    let sock = socket2::SockRef::from(&stream);
    sock.set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
    drop(stream);
}
