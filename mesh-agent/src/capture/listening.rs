//! `listen_ports`: where the applications of a pod listen, kept true from sock_diag. The kernel program only adds.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use mesh_common::{Addr, ListenKey, Share, ip_key};

use super::{
    diag::{self, Socket},
    listeners::Listener,
    maps::Maps,
    netlink::Netlink,
    share,
    sys::bpf,
};

/// Reads the pod's listeners and brings the map's entries of `netns` to them. Returns where applications listen.
///
/// `found` is what stands in the map for this pod, read before; walking the whole map for each pod would be quadratic.
/// An entry goes when its listener is `missing` at two looks: the kernel program adds an entry a moment before the
/// socket is among the listening ones.
pub(super) fn sync(
    maps: &Maps,
    netns: u64,
    diag: &mut Netlink,
    own: &[Listener],
    addresses: &[IpAddr],
    found: &HashSet<Addr>,
    missing: &mut HashSet<Addr>,
) -> io::Result<Vec<SocketAddr>> {
    let mut listening = Vec::new();
    let mut wanted = HashSet::new();
    diag::dump(diag, diag::LISTENING, false, |socket| {
        if own.iter().any(|l| l.cookie == socket.cookie) {
            return;
        }
        keys(&socket, addresses, &mut wanted);
        listening.push(SocketAddr::new(
            socket.local.ip().to_canonical(),
            socket.local.port(),
        ));
    })?;
    let key = |addr: &Addr| ListenKey { netns, addr: *addr };
    let mut added = 0;
    let new: Vec<&Addr> = wanted.difference(found).collect();
    if !new.is_empty() {
        // The rest is not steered: its share is used up.
        let room = share::room(maps, netns, Share::ListenPorts)?;
        for addr in new.into_iter().take(room) {
            let inserted = maps.listen_ports.insert_with(&key(addr), &1, bpf::NOEXIST);
            match inserted {
                Ok(()) => added += 1,
                // By the kernel program, since `found` was read.
                Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {}
                Err(e) => return Err(e),
            }
        }
    }
    // Twice: the self-test's own entry lives for less.
    let absent = found.difference(&wanted);
    let (gone, doubtful): (HashSet<Addr>, HashSet<Addr>) =
        absent.partition(|a| missing.contains(a));
    for addr in &gone {
        added -= i64::from(maps.listen_ports.remove(&key(addr))?);
    }
    share::note(maps, netns, Share::ListenPorts, added)?;
    *missing = doubtful;
    listening.sort();
    listening.dedup();
    Ok(listening)
}

/// The entries that stand for one listener.
fn keys(socket: &Socket, addresses: &[IpAddr], wanted: &mut HashSet<Addr>) {
    let (ip, port) = (socket.local.ip().to_canonical(), socket.local.port());
    if ip.is_loopback() {
        // Nobody reaches it through an address of the pod.
        return;
    }
    if socket.device != 0 {
        // The agent could not: it dials over the loopback device.
        return;
    }
    let unspecified = ip.is_unspecified();
    if socket.v6 && unspecified && socket.v6only {
        // `::` in the map stands for both families.
        for address in addresses.iter().filter(|a| a.is_ipv6()) {
            wanted.insert(Addr::new(ip_key(*address), port));
        }
    } else if socket.v6 && unspecified && ip.is_ipv6() {
        wanted.insert(Addr::new([0; 16], port));
    } else if unspecified {
        wanted.insert(Addr::new(ip_key(Ipv4Addr::UNSPECIFIED.into()), port));
    } else {
        wanted.insert(Addr::new(ip_key(ip), port));
    }
}

/// What stands in the map for each pod, one pass.
pub(super) fn found(maps: &Maps) -> io::Result<std::collections::HashMap<u64, HashSet<Addr>>> {
    let mut by_pod = std::collections::HashMap::<u64, HashSet<Addr>>::new();
    for (key, _) in maps.listen_ports.entries()? {
        by_pod.entry(key.netns).or_default().insert(key.addr);
    }
    Ok(by_pod)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(local: &str, v6only: bool) -> Socket {
        let local: SocketAddr = local.parse().unwrap();
        Socket {
            cookie: 1,
            state: diag::state::LISTEN,
            v6: local.is_ipv6(),
            v6only,
            local,
            remote: local,
            device: 0,
            receive_queue: 0,
            orphan: false,
            info: None,
        }
    }

    #[test]
    fn wildcards_and_v6only() {
        let pod: Vec<IpAddr> = vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        let of = |local: &str, v6only| {
            let mut wanted = HashSet::new();
            keys(&listener(local, v6only), &pod, &mut wanted);
            let mut shown: Vec<_> = wanted
                .iter()
                .map(|a| SocketAddr::from(*a).to_string())
                .collect();
            shown.sort();
            shown.join(" ")
        };
        assert_eq!(of("[::]:80", false), "[::]:80");
        assert_eq!(of("[::]:80", true), "[fd00::1]:80");
        assert_eq!(of("0.0.0.0:80", false), "0.0.0.0:80");
        assert_eq!(of("127.0.0.1:80", false), "");
        assert_eq!(of("10.0.0.1:80", false), "10.0.0.1:80");
        assert_eq!(of("[::ffff:0.0.0.0]:80", false), "0.0.0.0:80");
        let mut wanted = HashSet::new();
        let bound = Socket {
            device: 7,
            ..listener("0.0.0.0:80", false)
        };
        keys(&bound, &pod, &mut wanted);
        assert!(wanted.is_empty(), "bound to a device that is not lo");
    }
}
