//! One workload cannot take the maps from the others.

use std::{
    io::{ErrorKind, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::AsRawFd,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_agent::{
    capture::{CaptureOptions, Shares, WantedPod},
    model::EffectivePolicy,
};
use mesh_common::{Path, Share, Usage};

use crate::bed::{
    Agent, Ns, Pins, counted, entries, eventually, is_root, line, node, protected, refusal, wanted,
    wire,
};

const REFUSED: Option<ErrorKind> = Some(ErrorKind::ConnectionRefused);

fn agent(pins: &Pins, shares: Shares) -> Agent {
    Agent::with(CaptureOptions {
        shares,
        ..CaptureOptions::new(pins.0.as_str())
    })
}

fn at(ns: &Ns, port: u16) -> SocketAddr {
    SocketAddr::new(ns.v4.into(), port)
}

/// True if a connection was carried by the agent; it says who the application saw.
fn is_carried(agent: &Agent, from: &Ns, to: SocketAddr) -> bool {
    let mut stream = from.connect(to).unwrap_or_else(|e| panic!("{to}: {e}"));
    let client = stream.local_addr().unwrap();
    let said = line(&mut stream).replace("[::ffff:", "").replace("]:", ":");
    assert!(said.contains(&format!("{client}")), "{said}");
    let all = agent.capture.read_conns();
    let record = all
        .iter()
        .find(|(_, r)| SocketAddr::from(r.local) == to && SocketAddr::from(r.remote) == client);
    record.unwrap().1.path == Path::Proxied as u8
}

#[test]
fn a_pod_that_listens_everywhere_leaves_the_ports_of_others() {
    if !is_root() {
        return;
    }
    let pins = Pins(node());
    let ((near_hog, hog), (near_other, other)) = (wire(), wire());
    let agent = agent(
        &pins,
        Shares {
            listen_ports: Some(8),
            ..Shares::default()
        },
    );
    // One is older than enrolment, so it is the agent that enters it: the same share.
    let first = hog.listen("0.0.0.0:7000");
    agent.enrol(vec![wanted(&hog), wanted(&other)]);
    let ports = 7000..7020_u16;
    let many: Vec<_> = ports
        .clone()
        .skip(1)
        .map(|p| hog.listen(&format!("0.0.0.0:{p}")))
        .collect();
    assert!(counted(&agent, "listen_ports_share") >= 12);
    assert_eq!(counted(&agent, "listen_ports_full"), 0);
    assert_eq!(entries(&agent, "listen_ports"), 8);
    other.serve("0.0.0.0:8080");
    assert!(is_carried(&agent, &near_other, at(&other, 8080)));
    // Where the map has no room, a workload that must be protected is closed.
    let dial = |port| refusal(&near_hog, at(&hog, port));
    assert!(ports.clone().all(|p| dial(p).is_none()));
    agent.apply(vec![protected(wanted(&hog)), wanted(&other)]);
    let open = ports.clone().filter(|p| dial(*p).is_none()).count();
    let closed = ports.filter(|p| dial(*p) == REFUSED).count();
    assert_eq!((open, closed), (8, 12));
    // Given back: the next one is steered.
    drop((first, many));
    eventually("they are forgotten", || {
        entries(&agent, "listen_ports") == 1
    });
    hog.serve("0.0.0.0:8081");
    assert!(is_carried(&agent, &near_hog, at(&hog, 8081)));
    agent.release();
}

/// Captured, and never seen by the agent: no SYN goes out, and the kernel program hears of no end.
#[allow(unsafe_code)]
fn connect_in_repair_mode(to: SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let on: libc::c_int = 1;
    // SAFETY: the pointer and the length describe `on`.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_REPAIR,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    let _ = socket.connect(&to.into());
}

#[test]
fn a_pod_that_floods_the_node_with_connects_is_alone_refused() {
    if !is_root() {
        return;
    }
    let pins = Pins(node());
    let (hog, other) = wire();
    let agent = agent(
        &pins,
        Shares {
            orig_dst: Some(16),
            ..Shares::default()
        },
    );
    agent.enrol(vec![wanted(&hog), wanted(&other)]);
    let to: SocketAddr = "203.0.113.7:80".parse().unwrap();
    hog.run(|| (0..100).for_each(|_| connect_in_repair_mode(to)));
    assert_eq!(entries(&agent, "orig_dst"), 16);
    assert_eq!(refusal(&hog, to), REFUSED);
    assert!(counted(&agent, "orig_dst_share") >= 85);
    let mut stream = other.connect(to).unwrap();
    assert_eq!(line(&mut stream), format!("original={to}"));
    agent.release();
}

#[test]
fn a_pod_with_many_connections_leaves_the_records_of_others() {
    if !is_root() {
        return;
    }
    let pins = Pins(node());
    let (hog, other) = wire();
    hog.serve("0.0.0.0:8080");
    other.serve("0.0.0.0:8080");
    let agent = agent(
        &pins,
        Shares {
            conns: Some(5),
            ..Shares::default()
        },
    );
    let excluded = EffectivePolicy {
        exclude_ports: vec![8080],
        ..EffectivePolicy::default()
    };
    agent.enrol(vec![
        WantedPod {
            policy: Arc::new(excluded),
            ..wanted(&hog)
        },
        wanted(&other),
    ]);
    let (hogs, others) = (
        agent.capture.pod(&wanted(&hog).name).unwrap().cookie,
        agent.capture.pod(&wanted(&other).name).unwrap().cookie,
    );
    let records = |netns: u64| {
        let all = agent.capture.read_conns();
        all.iter().filter(|(_, r)| r.netns == netns).count()
    };
    let dial = || -> Vec<TcpStream> {
        (0..12)
            .map(|_| hog.connect(at(&other, 8080)).unwrap())
            .collect()
    };
    let open = dial();
    // Both sides have their share, and no more.
    eventually("all have reached the application", || {
        counted(&agent, "conns_share") == 14
    });
    assert_eq!((records(hogs), records(others)), (5, 5));
    drop(open);
    eventually("all have ended", || records(hogs) + records(others) == 0);
    let open = dial();
    eventually("what was given back is taken again", || {
        counted(&agent, "conns_share") == 28
    });
    assert_eq!((records(hogs), records(others)), (5, 5));
    drop(open);
    agent.release();
}

/// An application that does not accept fills `clients`. What must never happen is that another one, or it itself, is
/// shown a loopback address as its client.
#[test]
fn where_a_client_cannot_be_announced_nothing_is_connected() {
    if !is_root() {
        return;
    }
    let pins = Pins(node());
    let ((near_hog, hog), (near_other, other)) = (wire(), wire());
    let sleeper = hog.run(|| {
        let any: SocketAddr = "[::]:7000".parse().unwrap();
        let socket =
            socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).unwrap();
        socket.bind(&any.into()).unwrap();
        socket.listen(0).unwrap();
        socket
    });
    let seen = clients_of(&hog, "[::]:8080");
    other.serve("[::]:8080");
    let agent = agent(
        &pins,
        Shares {
            clients: Some(4),
            ..Shares::default()
        },
    );
    agent.enrol(vec![wanted(&hog), wanted(&other)]);
    let waiting: Vec<_> = (0..12).map(|_| near_hog.connect(at(&hog, 7000))).collect();
    eventually("the share is used up", || {
        counted(&agent, "clients_share") > 0
    });
    assert_eq!(entries(&agent, "clients"), 4);
    for ip in [IpAddr::from(hog.v4), hog.v6.into()] {
        // Reset, which connect() may already see.
        if let Ok(mut stream) = near_hog.connect(SocketAddr::new(ip, 8080)) {
            assert_eq!(line(&mut stream), "", "an application would see {ip}");
        }
    }
    // Another workload of the node has its own share.
    assert!(is_carried(&agent, &near_other, at(&other, 8080)));
    // When the sleeper is gone, all is as before.
    drop((sleeper, waiting));
    eventually("given back", || entries(&agent, "clients") == 0);
    assert!(is_carried(&agent, &near_hog, at(&hog, 8080)));
    let seen: Vec<IpAddr> = seen.try_iter().collect();
    assert_eq!(seen, [IpAddr::from(near_hog.v4)]);
    agent.release();
}

/// An application that tells each client who it is, and tells us.
fn clients_of(ns: &Ns, at: &str) -> std::sync::mpsc::Receiver<IpAddr> {
    let listener = ns.listen(at);
    let (tell, seen) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        while let Ok((mut stream, peer)) = listener.accept() {
            if tell.send(peer.ip().to_canonical()).is_err() {
                return;
            }
            let _ = writeln!(stream, "accept={peer}");
        }
    });
    seen
}

/// Counts that are wrong, for whatever reason, lock nobody out for long.
#[test]
fn counts_that_are_off_are_set_right() {
    if !is_root() {
        return;
    }
    let pins = Pins(node());
    let (a, _b) = wire();
    let agent = Agent::start(&pins.0);
    agent.enrol(vec![wanted(&a)]);
    let pin = pins
        .dir()
        .join(format!("v{}", mesh_common::ABI_VERSION))
        .join("usage");
    let map = aya::maps::Map::HashMap(aya::maps::MapData::from_pin(pin).unwrap());
    let mut usage = aya::maps::HashMap::<_, u64, Usage>::try_from(map).unwrap();
    let cookie = agent.capture.pods()[0].cookie.unwrap();
    let mut row = usage.get(&cookie, 0).unwrap();
    row.held = [1 << 40; 4];
    usage.insert(cookie, row, 0).unwrap();
    let to: SocketAddr = "203.0.113.7:80".parse().unwrap();
    assert_eq!(refusal(&a, to), REFUSED);
    let deadline = Instant::now() + Duration::from_secs(30);
    while usage.get(&cookie, 0).unwrap().held != [0; 4] {
        assert!(Instant::now() < deadline, "{:?}", usage.get(&cookie, 0));
        std::thread::sleep(Duration::from_millis(20));
    }
    let stream = a.connect(to).unwrap();
    let held = usage.get(&cookie, 0).unwrap().held;
    assert_eq!(held[Share::Conns as usize], 1);
    drop(stream);
    agent.release();
}
