//! What several modules assert.

use std::{
    io::{ErrorKind, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use mesh_tests::{
    Bed, NetNs, bpf, eventually_some, sys,
    traffic::{self, End},
};
use serde_json::Value;

/// A dialled address that must not work: refused at connect(), or RST without a byte, within `within`. Never FIN, never
/// data, never a hang.
pub(crate) fn must_be_reset(ns: &NetNs, to: SocketAddr, within: Duration) {
    let began = Instant::now();
    match traffic::connect(ns, to) {
        Err(e) => assert!(
            matches!(
                e.kind(),
                ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset
            ),
            "{to}: {e}"
        ),
        Ok(stream) => {
            let (got, end) = traffic::read_to_end(&stream);
            assert_eq!(got, b"", "{to}: data from nowhere");
            assert_eq!(end, End::Reset, "{to}");
        }
    }
    let took = began.elapsed();
    assert!(took <= within, "{to}: took {took:?}, at most {within:?}");
}

/// A connection that must fail at connect() itself, as only a closed port's RST does it.
pub(crate) fn must_be_refused(ns: &NetNs, to: SocketAddr) {
    match traffic::connect(ns, to) {
        Err(e) => assert_eq!(e.kind(), ErrorKind::ConnectionRefused, "{to}: {e}"),
        Ok(_) => panic!("{to} looks open"),
    }
}

/// Connects, sends a message, gets it back.
pub(crate) fn must_echo(ns: &NetNs, to: SocketAddr) {
    let stream = traffic::connect(ns, to).unwrap_or_else(|e| panic!("connect to {to}: {e}"));
    echoes(&stream);
}

/// The other end echoes.
pub(crate) fn echoes(stream: &TcpStream) {
    let message = b"The quick brown fox jumps over the lazy dog";
    let answer = traffic::round_trip(stream, message).expect("round trip");
    assert_eq!(answer, message);
}

/// One line there and back, the connection stays open.
pub(crate) fn ping(mut stream: &TcpStream) -> std::io::Result<()> {
    use std::io::Read;
    stream.write_all(b"ping\n")?;
    let mut answer = [0_u8; 5];
    stream.read_exact(&mut answer)?;
    assert_eq!(&answer, b"ping\n");
    Ok(())
}

/// A record of the map `conns`, as bpftool shows it.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) cookie: u64,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) original_dst: SocketAddr,
    pub(crate) bytes_sent: u64,
    pub(crate) bytes_received: u64,
    pub(crate) direction: u64,
    pub(crate) path: u64,
    pub(crate) state: u64,
}

pub(crate) const OUTBOUND: u64 = 1;
pub(crate) const INBOUND: u64 = 2;
pub(crate) const PROXIED: u64 = 1;
pub(crate) const PASSTHROUGH: u64 = 2;
pub(crate) const UNMESHED: u64 = 3;

fn number(value: &Value) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| panic!("not a number: {value}"))
}

fn address(value: &Value) -> SocketAddr {
    let bytes: Vec<u8> = value["ip"]
        .as_array()
        .unwrap_or_else(|| panic!("not an address: {value}"))
        .iter()
        .map(|b| number(b) as u8)
        .collect();
    let ip: [u8; 16] = bytes.try_into().expect("16 bytes");
    let ip = IpAddr::V6(ip.into()).to_canonical();
    SocketAddr::new(ip, number(&value["port"]) as u16)
}

/// All records of the bed's node.
pub(crate) fn records(bed: &Bed) -> Vec<Record> {
    bpf::dump(bed.agent().node(), "conns")
        .iter()
        .map(|entry| {
            let value = &entry["value"];
            Record {
                cookie: number(&entry["key"]),
                local: address(&value["local"]),
                remote: address(&value["remote"]),
                original_dst: address(&value["original_dst"]),
                bytes_sent: number(&value["bytes_sent"]),
                bytes_received: number(&value["bytes_received"]),
                direction: number(&value["direction"]),
                path: number(&value["path"]),
                state: number(&value["state"]),
            }
        })
        .collect()
}

/// The record of one open client or server socket.
pub(crate) fn record_of(bed: &Bed, stream: &TcpStream) -> Record {
    let cookie = sys::socket_cookie(stream).expect("SO_COOKIE");
    eventually_some("a record of the connection", Duration::from_secs(5), || {
        records(bed)
            .into_iter()
            .find(|r| r.cookie == cookie)
            .ok_or_else(|| "none".into())
    })
}

/// With a mesh: the kernel recorded this connection as captured. Without one nothing is to be seen.
pub(crate) fn is_captured(bed: &Bed, stream: &TcpStream, direction: u64) {
    if bed.has_mesh() {
        let record = record_of(bed, stream);
        assert_eq!(
            (record.path, record.direction),
            (PROXIED, direction),
            "{record:?}"
        );
    }
}

/// Waits until a map holds nothing.
pub(crate) fn map_empties(bed: &Bed, map: &str) {
    eventually_some(
        &format!("map {map} empty"),
        Duration::from_secs(10),
        || match bpf::dump(bed.agent().node(), map) {
            entries if entries.is_empty() => Ok(()),
            entries => Err(format!("{} entries, one: {}", entries.len(), entries[0])),
        },
    );
}
