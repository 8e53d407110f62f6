//! Records of connections that the kernel programs cannot keep true alone: those older than enrolment, and the live
//! counters of those that do not pass through the agent. Also the sweep of entries that nobody took.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use mesh_common::{Addr, ConnRecord, Direction, KernelClose, Path, Share, Tuple};

use super::{
    diag::{self, Socket, payload_bytes, state},
    enrolled::Enrolled,
    maps::Maps,
    netlink::Netlink,
    share,
    sys::{bpf, sock::monotonic_ns},
};

/// `orig_dst` and `clients` entries that nobody took for this long are from connections that died in between; no
/// connect lasts longer (`tcp_syn_retries` gives up after 127 s).
const STALE_NS: u64 = 180 * 1_000_000_000;

/// Connections of a namespace that have an application, or will have when it accepts.
pub(super) fn existing(diag: &mut Netlink) -> io::Result<Vec<Socket>> {
    let mut found = Vec::new();
    diag::dump(diag, diag::CONNECTED, true, |socket| {
        // What a process has closed ends by itself; an agent that was killed leaves such.
        let left = socket.orphan
            && socket.state != state::ESTABLISHED
            && socket.state != state::CLOSE_WAIT;
        if !left && !is_loopback(&socket) {
            found.push(socket);
        }
    })?;
    Ok(found)
}

/// Inserts a record for each connection that is older than enrolment. `had_sockets`: this agent had sockets in the
/// namespace before, which must not be taken for an application's.
pub(super) fn adopt(
    maps: &Maps,
    netns: u64,
    found: &[Socket],
    listening: &[SocketAddr],
    had_sockets: bool,
) -> io::Result<()> {
    if found.is_empty() {
        return Ok(());
    }
    let own = if had_sockets {
        own_cookies()?
    } else {
        HashSet::new()
    };
    let now = monotonic_ns();
    let room = share::room(maps, netns, Share::Conns)?;
    let mut added = 0;
    for socket in found.iter().filter(|s| !own.contains(&s.cookie)) {
        if added == room {
            tracing::warn!(
                netns,
                connections = found.len(),
                "has so many connections that some are not recorded"
            );
            break;
        }
        // Served here, if somebody listens on its port.
        let inbound = listening.iter().any(|l| l.port() == socket.local.port());
        let mut record = ConnRecord {
            netns,
            local: canonical(socket.local),
            remote: canonical(socket.remote),
            original_dst: canonical(if inbound { socket.local } else { socket.remote }),
            start_ns: now,
            direction: if inbound {
                Direction::Inbound
            } else {
                Direction::Outbound
            } as u8,
            path: Path::Unmeshed as u8,
            ..ConnRecord::default()
        };
        refresh_record(&mut record, socket, now);
        match maps
            .conns
            .insert_with(&socket.cookie, &record, bpf::NOEXIST)
        {
            // The kernel program saw it begin.
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {}
            Err(e) if e.raw_os_error() == Some(libc::E2BIG) => break,
            Ok(()) => added += 1,
            Err(e) => return Err(e),
        }
    }
    share::note(maps, netns, Share::Conns, added as i64)
}

/// What one look at the records found.
#[derive(Debug, Default)]
pub(super) struct Refreshed {
    /// Records of connections older than enrolment that ended: removed from the map, final.
    pub ended: Vec<(u64, ConnRecord)>,
}

/// Refreshes the records of connections that do not pass through the agent, and removes those the kernel program does
/// not know the end of.
pub(super) fn refresh(maps: &Maps, pods: &HashMap<u64, Arc<Enrolled>>) -> io::Result<Refreshed> {
    let mut out = Refreshed::default();
    let now = monotonic_ns();
    for (cookie, mut record) in maps.conns.entries()? {
        if record.path == Path::Proxied as u8 {
            continue;
        }
        let Some(pod) = pods.get(&record.netns) else {
            continue;
        };
        let socket = {
            let mut inner = pod.lock();
            let Some(inner) = inner.as_mut() else {
                continue;
            };
            match diag::find(&mut inner.diag, &record.local, &record.remote, cookie) {
                Ok(socket) => socket,
                Err(error) => {
                    tracing::debug!(workload = %pod.pod.name, %error, "cannot look at a connection");
                    continue;
                }
            }
        };
        let lives = |s: &&Socket| s.state != state::TIME_WAIT && s.state != state::CLOSE;
        if let Some(socket) = socket.as_ref().filter(lives) {
            if refresh_record(&mut record, socket, now) {
                update(maps, cookie, &record)?;
            }
        } else if record.path == Path::Unmeshed as u8 {
            record.close_reason = guess_close(record.state, socket.map(|s| s.state)) as u8;
            record.state = state::CLOSE;
            record.last_ns = now;
            if maps.conns.remove(&cookie)? {
                share::note(maps, record.netns, Share::Conns, -1)?;
                out.ended.push((cookie, record));
            }
        }
        // The kernel program reports the end of the others itself.
    }
    Ok(out)
}

/// Replaces a record if it is still there.
pub(super) fn update(maps: &Maps, cookie: u64, record: &ConnRecord) -> io::Result<()> {
    match maps.conns.insert_with(&cookie, record, bpf::EXIST) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// Deletes what no connection will take any more, and sets the counts of shares right. Returns how many entries.
pub(super) fn sweep(maps: &Maps) -> io::Result<usize> {
    let limit = monotonic_ns().saturating_sub(STALE_NS);
    let old_dst = maps
        .orig_dst
        .entries()?
        .into_iter()
        .filter(|(_, v)| v.created_ns < limit);
    let old_dst: Vec<Tuple> = old_dst.map(|(k, _)| k).collect();
    let old_clients = maps
        .clients
        .entries()?
        .into_iter()
        .filter(|(_, v)| v.created_ns < limit);
    let old_clients: Vec<Tuple> = old_clients.map(|(k, _)| k).collect();
    for key in &old_dst {
        maps.orig_dst.remove(key)?;
    }
    for key in &old_clients {
        maps.clients.remove(key)?;
    }
    let now = monotonic_ns();
    let mut unused = 0;
    for (key, entry) in maps.vouched.entries()? {
        if entry.expires_ns <= now {
            unused += usize::from(maps.vouched.remove(&key)?);
        }
    }
    share::reconcile(maps)?;
    Ok(old_dst.len() + old_clients.len() + unused)
}

/// Brings counters and state up to date; true if anything changed.
fn refresh_record(record: &mut ConnRecord, socket: &Socket, now: u64) -> bool {
    let before = *record;
    record.state = socket.state;
    if let Some(info) = socket.info {
        let dialled = record.direction == Direction::Outbound as u8;
        (record.bytes_sent, record.bytes_received) = payload_bytes(info, socket.state, dialled);
        record.srtt_us = info.rtt_us;
        record.retransmits = info.retransmits;
    }
    let changed = *record != before;
    if changed {
        record.last_ns = now;
    }
    changed
}

/// How a connection ended that no kernel program watched: from the state in which it was seen last, up to a second
/// ago. The side that closes first leaves TIME_WAIT; where it is not here, it was there (or a reset, which is rarer).
fn guess_close(last: u8, left: Option<u8>) -> KernelClose {
    match (last, left) {
        (_, Some(state::TIME_WAIT)) | (state::FIN_WAIT1 | state::FIN_WAIT2 | state::CLOSING, _) => {
            KernelClose::FinLocalFirst
        }
        (state::SYN_SENT | state::SYN_RECV, _) => KernelClose::ConnectFailed,
        _ => KernelClose::FinRemoteFirst,
    }
}

fn canonical(a: SocketAddr) -> Addr {
    Addr::from(SocketAddr::new(a.ip().to_canonical(), a.port()))
}

fn is_loopback(socket: &Socket) -> bool {
    let loopback = |ip: IpAddr| ip.to_canonical().is_loopback();
    loopback(socket.local.ip()) || loopback(socket.remote.ip())
}

/// Cookies of all sockets of this process.
fn own_cookies() -> io::Result<HashSet<u64>> {
    let mut cookies = HashSet::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let Ok(path) = entry.map(|e| e.path()) else {
            continue;
        };
        let is_socket =
            std::fs::read_link(&path).is_ok_and(|t| t.to_string_lossy().starts_with("socket:"));
        let number = path
            .file_name()
            .and_then(|n| n.to_str()?.parse::<i32>().ok());
        if let (true, Some(fd)) = (is_socket, number) {
            cookies.extend(super::sys::sock::cookie_of_number(fd));
        }
    }
    Ok(cookies)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_closed_first() {
        use KernelClose::{ConnectFailed, FinLocalFirst, FinRemoteFirst};
        assert_eq!(
            guess_close(state::ESTABLISHED, Some(state::TIME_WAIT)),
            FinLocalFirst
        );
        assert_eq!(guess_close(state::FIN_WAIT2, None), FinLocalFirst);
        assert_eq!(guess_close(state::ESTABLISHED, None), FinRemoteFirst);
        assert_eq!(guess_close(state::LAST_ACK, None), FinRemoteFirst);
        assert_eq!(guess_close(state::SYN_SENT, None), ConnectFailed);
    }

    #[test]
    fn syn_and_fin_are_no_payload() {
        let info = diag::Info {
            bytes_acked: 101,
            bytes_received: 50,
            ..Default::default()
        };
        assert_eq!(payload_bytes(info, state::ESTABLISHED, true), (100, 50));
        assert_eq!(payload_bytes(info, state::ESTABLISHED, false), (101, 50));
        assert_eq!(payload_bytes(info, state::FIN_WAIT2, true), (99, 50));
        assert_eq!(payload_bytes(info, state::CLOSE_WAIT, true), (100, 49));
    }
}
