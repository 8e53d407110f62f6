//! What an enrolled workload dials is captured, and what must not be captured is left alone.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use mesh_tests::{
    Bed,
    bed::needs_mesh,
    runner::Shared,
    tests,
    traffic::{self, Server},
};

use crate::common::{OUTBOUND, is_captured, must_be_reset, must_echo};

static BED: Shared<Bed> = Shared::new();

tests! {
    real_address,
    v4_mapped_address,
    service_address,
    service_port_that_is_not,
    closed_port,
    own_address,
    own_service,
    loopback_untouched,
    udp_untouched,
    capture_range_port_of_another_host,
    excluded_port_and_range,
    registered_only,
}

pub(crate) fn teardown() {
    BED.clear();
}

fn bed() -> Arc<Bed> {
    BED.get(|| {
        Bed::plan()
            .pods(&["client", "web1", "web2", "self1"])
            .outsider("ext")
            .service("web", &[(80, 8080)])
            .service("self", &[(80, 8080), (81, 8081)])
            .start()
    })
}

fn real_address() {
    let bed = bed();
    let (client, ext) = (bed.pod("client"), bed.pod("ext"));
    for v6 in [false, true] {
        let server = Server::echo(ext, ext.addr(v6, 0));
        let stream = traffic::connect(client, server.addr).unwrap();
        is_captured(&bed, &stream, OUTBOUND);
        crate::common::echoes(&stream);
    }
}

fn v4_mapped_address() {
    let bed = bed();
    let (client, ext) = (bed.pod("client"), bed.pod("ext"));
    let server = Server::echo(ext, ext.v4(0));
    let mapped = SocketAddr::from((ext.v4.to_ipv6_mapped(), server.port()));
    let socket = traffic::client::tcp(client, true).unwrap();
    socket.connect(&mapped.into()).unwrap();
    let stream = std::net::TcpStream::from(socket);
    traffic::client::patient(&stream).unwrap();
    assert_eq!(stream.peer_addr().unwrap(), mapped);
    assert_eq!(
        stream.local_addr().unwrap().ip(),
        client.v4.to_ipv6_mapped()
    );
    is_captured(&bed, &stream, OUTBOUND);
    crate::common::echoes(&stream);
}

fn service_address() {
    let bed = bed();
    let client = bed.pod("client");
    for v6 in [false, true] {
        let servers: Vec<_> = ["web1", "web2"]
            .iter()
            .map(|name| Server::named(bed.pod(name), bed.pod(name).addr(v6, 8080), name))
            .collect();
        let mut answers: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
        let to = bed.service("web", v6, 80);
        for _ in 0..20 {
            let stream = traffic::connect(client, to).unwrap();
            assert_eq!(stream.peer_addr().unwrap(), to);
            let answer = traffic::round_trip(&stream, b"who?").unwrap();
            *answers.entry(answer).or_default() += 1;
        }
        if bed.has_mesh() {
            // Round robin, the default: even to the connection.
            assert_eq!(answers.get(&b"web1"[..]), Some(&10), "{answers:?}");
            assert_eq!(answers.get(&b"web2"[..]), Some(&10), "{answers:?}");
        }
        drop(servers);
    }
}

fn service_port_that_is_not() {
    needs_mesh();
    let bed = bed();
    must_be_reset(
        bed.pod("client"),
        bed.service("web", false, 4711),
        Duration::from_secs(2),
    );
}

fn closed_port() {
    let bed = bed();
    let ext = bed.pod("ext");
    for to in [ext.v4(1), ext.v6(1)] {
        must_be_reset(bed.pod("client"), to, Duration::from_secs(2));
    }
}

fn own_address() {
    let bed = bed();
    let pod = bed.pod("self1");
    for v6 in [false, true] {
        let server = Server::echo(pod, pod.addr(v6, 0));
        let stream = traffic::connect(pod, server.addr).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), server.addr);
        crate::common::echoes(&stream);
        assert_eq!(server.last_seen().peer.ip(), pod.addr(v6, 0).ip());
        assert_eq!(server.last_seen().local, server.addr);
    }
}

fn own_service() {
    let bed = bed();
    let pod = bed.pod("self1");
    for (v6, port, target) in [(false, 80, 8080), (true, 81, 8081)] {
        let server = Server::echo(pod, pod.addr(v6, target));
        must_echo(pod, bed.service("self", v6, port));
        assert_eq!(server.last_seen().local, server.addr);
    }
}

fn loopback_untouched() {
    let bed = bed();
    let pod = bed.pod("client");
    for addr in [
        SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        SocketAddr::from((Ipv4Addr::new(127, 9, 9, 9), 0)),
        SocketAddr::from((Ipv6Addr::LOCALHOST, 0)),
    ] {
        let server = Server::echo(pod, addr);
        let stream = traffic::connect(pod, server.addr).unwrap();
        // Nobody in between: both ends name each other's ports.
        let (me, peer) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
        crate::common::echoes(&stream);
        assert_eq!(peer, server.addr);
        assert_eq!(server.last_seen().peer, me);
    }
}

fn udp_untouched() {
    let bed = bed();
    let (client, ext) = (bed.pod("client"), bed.pod("ext"));
    for v6 in [false, true] {
        let server = ext.enter(|| UdpSocket::bind(ext.addr(v6, 0))).unwrap();
        let to = server.local_addr().unwrap();
        for connected in [false, true] {
            let socket = client
                .enter(|| UdpSocket::bind(client.addr(v6, 0)))
                .unwrap();
            for s in [&server, &socket] {
                s.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            }
            if connected {
                socket.connect(to).unwrap();
                assert_eq!(socket.peer_addr().unwrap(), to);
                socket.send(b"hello").unwrap();
            } else {
                socket.send_to(b"hello", to).unwrap();
            }
            let mut buffer = [0_u8; 16];
            let (n, from) = server.recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer[..n], b"hello");
            assert_eq!(from, socket.local_addr().unwrap());
            server.send_to(b"world", from).unwrap();
            assert_eq!(socket.recv(&mut buffer).unwrap(), 5);
        }
    }
}

/// The ports that captured connections are redirected to are virtual: dialling such a port means that port.
fn capture_range_port_of_another_host() {
    let bed = bed();
    let (client, ext) = (bed.pod("client"), bed.pod("ext"));
    for port in [15100, 15500, 16123] {
        let _server = Server::echo(ext, ext.v4(port));
        must_echo(client, ext.v4(port));
    }
}

fn excluded_port_and_range() {
    let bed = Bed::plan()
        .pods(&["client"])
        .outsider("ext")
        .outsider("far")
        .prepare();
    let far = bed.pod("far").v4;
    bed.config.mesh_policy(&format!(
        "  exclude:\n    ports: [7777]\n    cidrs: [\"{far}/32\"]"
    ));
    let mut bed = bed;
    bed.start_agent();
    let (client, ext, far) = (bed.pod("client"), bed.pod("ext"), bed.pod("far"));
    for server in [
        Server::echo(ext, ext.v4(7777)),
        Server::echo(far, far.v4(0)),
    ] {
        let stream = traffic::connect(client, server.addr).unwrap();
        let me = stream.local_addr().unwrap();
        crate::common::echoes(&stream);
        assert_eq!(server.last_seen().peer, me, "it went through a proxy");
    }
    let server = Server::echo(ext, ext.v4(0));
    let stream = traffic::connect(client, server.addr).unwrap();
    is_captured(&bed, &stream, OUTBOUND);
    crate::common::echoes(&stream);
}

fn registered_only() {
    needs_mesh();
    let bed = Bed::plan()
        .pods(&["client", "web1"])
        .outsider("ext")
        .service("web", &[(80, 8080)])
        .mesh_policy("  outbound: registered-only")
        .start();
    let (client, web, ext) = (bed.pod("client"), bed.pod("web1"), bed.pod("ext"));
    let _web = Server::echo(web, web.v4(8080));
    let stranger = Server::echo(ext, ext.v4(0));
    must_echo(client, bed.service("web", false, 80));
    must_echo(client, web.v4(8080));
    must_be_reset(client, stranger.addr, Duration::from_secs(2));
    assert_eq!(stranger.count(), 0);
}
