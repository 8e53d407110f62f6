//! What dials an enrolled workload is steered through the agent, and its ports stay as open or closed as they are.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use mesh_tests::{
    Bed, eventually,
    runner::Shared,
    tests,
    traffic::{self, Server, server},
};

use crate::common::{INBOUND, PROXIED, must_be_refused, must_be_reset, must_echo, records};

static BED: Shared<Bed> = Shared::new();

tests! {
    from_outside,
    any_address_listener,
    listener_from_before_enrolment,
    closed_port_refuses,
    loopback_listener_stays_private,
    port_opened_after_enrolment,
    closed_listener_refuses_again,
    reuseport_reload,
    listeners_on_capture_ports,
    server_speaks_first,
    nobody_answers_on_agent_ports,
    agent_listeners_dialled_from_inside,
}

pub(crate) fn teardown() {
    BED.clear();
}

fn bed() -> Arc<Bed> {
    BED.get(|| {
        Bed::plan()
            .pods(&["web1", "web2", "peer"])
            .outsider("ext")
            .start()
    })
}

/// With a mesh: the server's side of the connection was steered.
fn is_steered(bed: &Bed, server: SocketAddr) {
    if !bed.has_mesh() {
        return;
    }
    let all = records(bed);
    assert!(
        all.iter()
            .any(|r| r.direction == INBOUND && r.path == PROXIED && r.local == server),
        "no proxied inbound record for {server}: {all:?}"
    );
}

fn from_outside() {
    let bed = bed();
    let (ext, web) = (bed.pod("ext"), bed.pod("web1"));
    for v6 in [false, true] {
        let server = Server::echo(web, web.addr(v6, 0));
        let stream = traffic::connect(ext, server.addr).unwrap();
        crate::common::ping(&stream).unwrap();
        is_steered(&bed, server.addr);
        crate::common::echoes(&stream);
    }
}

fn any_address_listener() {
    let bed = bed();
    let (ext, web) = (bed.pod("ext"), bed.pod("web1"));
    let v4 = Server::echo(web, (Ipv4Addr::UNSPECIFIED, 0).into());
    must_echo(ext, web.v4(v4.port()));
    // One v6 socket serves both families and sees v4 clients mapped.
    let both = Server::echo(web, (Ipv6Addr::UNSPECIFIED, 0).into());
    must_echo(ext, web.v6(both.port()));
    assert_eq!(both.last_seen().peer.ip(), ext.v6);
    must_echo(ext, web.v4(both.port()));
    let seen = both.last_seen();
    assert_eq!(seen.peer.ip(), ext.v4.to_ipv6_mapped());
    assert_eq!(seen.getpeername.ip(), ext.v4.to_ipv6_mapped());
    assert_eq!(
        seen.local,
        SocketAddr::from((web.v4.to_ipv6_mapped(), both.port()))
    );
}

fn listener_from_before_enrolment() {
    let mut bed = Bed::plan().pods(&["web1"]).outsider("ext").prepare();
    let web = Arc::clone(bed.pod("web1"));
    let old = [
        Server::echo(&web, web.v4(8080)),
        Server::echo(&web, (Ipv6Addr::UNSPECIFIED, 8081).into()),
    ];
    bed.start_agent();
    let ext = bed.pod("ext");
    for to in [web.v4(8080), web.v4(8081), web.v6(8081)] {
        let stream = traffic::connect(ext, to).unwrap();
        crate::common::ping(&stream).unwrap();
        is_steered(&bed, to);
        crate::common::echoes(&stream);
    }
    drop(old);
}

fn closed_port_refuses() {
    let bed = bed();
    for to in [bed.pod("web1").v4(9), bed.pod("web1").v6(9)] {
        must_be_refused(bed.pod("ext"), to);
    }
}

fn loopback_listener_stays_private() {
    let bed = bed();
    let (ext, web) = (bed.pod("ext"), bed.pod("web1"));
    let v4 = Server::echo(web, (Ipv4Addr::LOCALHOST, 0).into());
    let v6 = Server::echo(web, (Ipv6Addr::LOCALHOST, 0).into());
    must_be_refused(ext, web.v4(v4.port()));
    must_be_refused(ext, web.v6(v6.port()));
    must_echo(web, v4.addr);
    must_echo(web, v6.addr);
    assert_eq!((v4.count(), v6.count()), (1, 1));
}

fn port_opened_after_enrolment() {
    let bed = bed();
    let (ext, web) = (bed.pod("ext"), bed.pod("web1"));
    must_be_refused(ext, web.v4(9001));
    let server = Server::echo(web, web.v4(9001));
    // At once: the kernel itself notes the listener.
    let stream = traffic::connect(ext, server.addr).unwrap();
    crate::common::ping(&stream).unwrap();
    is_steered(&bed, server.addr);
    crate::common::echoes(&stream);
}

fn closed_listener_refuses_again() {
    let bed = bed();
    let (ext, web) = (bed.pod("ext"), bed.pod("web1"));
    let server = Server::echo(web, web.v4(9002));
    must_echo(ext, server.addr);
    let addr = server.addr;
    server.stop();
    // The agent may need a moment to see it; then a closed port is closed, not open with an RST behind it.
    eventually("the port refuses", Duration::from_secs(4), || {
        traffic::connect(ext, addr)
            .is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
    });
    // And the application can have its port back at once.
    let server = Server::echo(web, addr);
    must_echo(ext, server.addr);
}

/// A server that reloads the nginx way: the new process listens beside the old one, then the old one stops.
fn reuseport_reload() {
    let bed = bed();
    let (ext, web) = (bed.pod("ext"), bed.pod("web2"));
    let addr = web.v4(9003);
    let make = || {
        Server::run(
            server::listen(web, addr, true).unwrap(),
            true,
            |stream, _| server::echo(&stream),
        )
        .unwrap()
    };
    let mut current = make();
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // Connections in a closing listener's queue are reset without a mesh too: only later ones count.
                if let Ok(stream) = traffic::connect(ext, addr)
                    && traffic::round_trip(&stream, b"x").is_ok()
                {
                    done.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        for _ in 0..5 {
            let next = make();
            std::mem::replace(&mut current, next).stop();
            let before = done.load(Ordering::Relaxed);
            eventually("requests go on", Duration::from_secs(5), || {
                done.load(Ordering::Relaxed) > before + 20
            });
        }
        stop.store(true, Ordering::Relaxed);
    });
    must_echo(ext, addr);
}

fn listeners_on_capture_ports() {
    let bed = bed();
    let (ext, web, peer) = (bed.pod("ext"), bed.pod("web2"), bed.pod("peer"));
    let far = Server::echo(ext, ext.v4(0));
    let servers: Vec<_> = (15100..15164)
        .chain([15009, 15020])
        .map(|port| Server::named(web, web.v4(port), &port.to_string()))
        .collect();
    for server in &servers {
        for client in [ext, peer] {
            let stream = traffic::connect(client, server.addr).unwrap();
            let answer = traffic::round_trip(&stream, b"?").unwrap();
            assert_eq!(answer, server.port().to_string().as_bytes());
        }
    }
    // What the pod itself dials is still captured and not given to its own servers.
    for _ in 0..64 {
        must_echo(web, far.addr);
    }
}

fn server_speaks_first() {
    let bed = bed();
    let (ext, web) = (bed.pod("ext"), bed.pod("web1"));
    let server = Server::greeter(web, web.v4(0), "220 ready\r\n");
    let mut stream = traffic::connect(ext, server.addr).unwrap();
    let mut banner = [0_u8; 11];
    std::io::Read::read_exact(&mut stream, &mut banner).unwrap();
    assert_eq!(&banner, b"220 ready\r\n");
    crate::common::echoes(&stream);
}

/// The agent's listeners inside the pod, and its virtual ports, are closed to the network.
fn nobody_answers_on_agent_ports() {
    let bed = bed();
    let (ext, peer) = (bed.pod("ext"), bed.pod("peer"));
    for port in [15100, 15101, 16123, 15009] {
        must_be_refused(ext, peer.v4(port));
    }
    // Real ports of whatever listens in the pod's namespace, the agent's listeners included.
    let listening = mesh_tests::command::stdout(peer, "ss", &["-Htln"], Duration::from_secs(5));
    for line in listening.lines() {
        let local = line.split_whitespace().nth(3).unwrap_or_default();
        let port: u16 = local.rsplit(':').next().unwrap().parse().unwrap();
        must_be_refused(ext, peer.v4(port));
        must_be_refused(ext, peer.v6(port));
    }
}

/// A process of the pod sees the agent's listeners and dials one where it is bound: nothing was captured, nothing is
/// dialled on. (To dial on would lead to the same listener, and again, until no descriptor is left.)
fn agent_listeners_dialled_from_inside() {
    mesh_tests::bed::needs_mesh();
    let bed = bed();
    let peer = bed.pod("peer");
    let listening = mesh_tests::command::stdout(peer, "ss", &["-Htln"], Duration::from_secs(5));
    let loopback: Vec<SocketAddr> = listening
        .lines()
        .filter_map(|line| line.split_whitespace().nth(3)?.parse().ok())
        .filter(|local: &SocketAddr| local.ip().is_loopback())
        .collect();
    assert!(loopback.len() >= 4, "the agent's listeners: {listening}");
    for local in loopback {
        must_be_reset(peer, local, Duration::from_secs(2));
    }
}
