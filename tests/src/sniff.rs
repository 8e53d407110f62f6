//! What passes on the wires of a node, read with AF_PACKET as an eavesdropper would.

use std::{
    collections::BTreeSet,
    io::Read,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::{netns::NetNs, sys};

const ETH_P_ALL: u16 = 3;

/// Counts on every interface of a namespace until it is stopped.
#[derive(Debug)]
pub struct Sniffer {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    thread: Option<JoinHandle<()>>,
    name: String,
}

/// What was on the wire.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub packets: u64,
    pub bytes: u64,
    /// Packets that hold the marker.
    pub marked: u64,
    /// Bytes of TCP packets from or to port 15008.
    pub tunnel_bytes: u64,
    /// Connections begun to port 15008: client and server.
    pub tunnels: BTreeSet<(SocketAddr, SocketAddr)>,
    /// Packets that the kernel dropped because the reader was too slow: what was not seen proves nothing.
    pub dropped: u32,
}

impl Sniffer {
    /// Listens inside `ns` for packets that hold `marker`.
    pub fn start(ns: &NetNs, marker: &[u8]) -> Sniffer {
        let protocol = Protocol::from(i32::from(ETH_P_ALL.to_be()));
        let socket = ns
            .enter(|| Socket::new(Domain::PACKET, Type::RAW, Some(protocol)))
            .expect("AF_PACKET");
        sys::set_int(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 64 << 20).expect("SO_RCVBUF");
        socket
            .set_read_timeout(Some(Duration::from_millis(30)))
            .expect("SO_RCVTIMEO");
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(Seen::default()));
        let thread = {
            let (stop, seen, marker) = (Arc::clone(&stop), Arc::clone(&seen), marker.to_vec());
            std::thread::spawn(move || listen(socket, &marker, &stop, &seen))
        };
        Sniffer {
            stop,
            seen,
            thread: Some(thread),
            name: ns.name().to_owned(),
        }
    }

    /// What it saw so far.
    pub fn seen(&self) -> Seen {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Reads what is queued, stops, and gives what it saw. Panics when the kernel dropped packets.
    pub fn finish(mut self) -> Seen {
        self.end();
        let seen = self.seen();
        assert_eq!(seen.dropped, 0, "the sniffer of {} was too slow", self.name);
        seen
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        self.end();
    }
}

fn listen(mut socket: Socket, marker: &[u8], stop: &AtomicBool, seen: &Mutex<Seen>) {
    let mut buffer = vec![0_u8; 128 * 1024];
    loop {
        // Looked at before the read: what was queued by then is still read to its end.
        let last = stop.load(Ordering::Relaxed);
        match socket.read(&mut buffer) {
            Ok(n) => {
                let packet = &buffer[..n];
                let marked = contains(packet, marker);
                let tcp = Tcp::of(packet);
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen.packets += 1;
                seen.bytes += n as u64;
                seen.marked += u64::from(marked);
                if let Some(tcp) = tcp {
                    if tcp.to.port() == 15008 || tcp.from.port() == 15008 {
                        seen.tunnel_bytes += n as u64;
                    }
                    if tcp.syn && tcp.to.port() == 15008 {
                        seen.tunnels.insert((tcp.from, tcp.to));
                    }
                }
            }
            Err(_) if last => break,
            Err(_) => {}
        }
    }
    let dropped = sys::packet_drops(&socket).unwrap_or(u32::MAX);
    seen.lock().unwrap_or_else(PoisonError::into_inner).dropped = dropped;
}

fn contains(packet: &[u8], marker: &[u8]) -> bool {
    let Some(first) = marker.first() else {
        return false;
    };
    let mut rest = packet;
    while let Some(at) = rest.iter().position(|b| b == first) {
        rest = &rest[at..];
        if rest.starts_with(marker) {
            return true;
        }
        rest = &rest[1..];
    }
    false
}

/// The heads of a TCP packet in an Ethernet frame.
struct Tcp {
    from: SocketAddr,
    to: SocketAddr,
    /// SYN without ACK.
    syn: bool,
}

impl Tcp {
    fn of(frame: &[u8]) -> Option<Tcp> {
        let kind = u16::from_be_bytes(frame.get(12..14)?.try_into().ok()?);
        let ip = frame.get(14..)?;
        let (from, to, tcp): (IpAddr, IpAddr, &[u8]) = match kind {
            0x0800 if *ip.get(9)? == 6 => {
                let head = usize::from(ip[0] & 15) * 4;
                (v4(ip, 12)?.into(), v4(ip, 16)?.into(), ip.get(head..)?)
            }
            0x86dd if *ip.get(6)? == 6 => (v6(ip, 8)?.into(), v6(ip, 24)?.into(), ip.get(40..)?),
            _ => return None,
        };
        let port = |at: usize| Some(u16::from_be_bytes(tcp.get(at..at + 2)?.try_into().ok()?));
        Some(Tcp {
            from: (from, port(0)?).into(),
            to: (to, port(2)?).into(),
            syn: tcp.get(13)? & 0x12 == 0x02,
        })
    }
}

fn v4(ip: &[u8], at: usize) -> Option<Ipv4Addr> {
    let bytes: [u8; 4] = ip.get(at..at + 4)?.try_into().ok()?;
    Some(bytes.into())
}

fn v6(ip: &[u8], at: usize) -> Option<Ipv6Addr> {
    let bytes: [u8; 16] = ip.get(at..at + 16)?.try_into().ok()?;
    Some(bytes.into())
}
