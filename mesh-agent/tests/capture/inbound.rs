//! What dials a pod.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
};

use crate::bed::{Agent, Pins, eventually, is_root, line, node, wanted, wire};

#[test]
fn the_application_sees_the_client_and_its_own_address() {
    if !is_root() {
        return;
    }
    let pins = Pins(node());
    let (a, b) = wire();
    // One listener is older than enrolment, one comes later.
    b.serve("[::]:8080");
    let agent = Agent::start(&pins.0);
    agent.enrol(vec![wanted(&b)]);
    b.serve("0.0.0.0:8081");
    for to in [
        SocketAddr::new(b.v4.into(), 8080),
        SocketAddr::new(b.v6.into(), 8080),
        SocketAddr::new(b.v4.into(), 8081),
    ] {
        let mut stream = a.connect(to).unwrap_or_else(|e| panic!("{to}: {e}"));
        let client = stream.local_addr().unwrap();
        let said = line(&mut stream);
        let shown = |what: &str| -> SocketAddr {
            let word = said
                .split(' ')
                .find_map(|w| w.strip_prefix(&format!("{what}=")))
                .unwrap();
            let address: SocketAddr = word.parse().unwrap();
            SocketAddr::new(address.ip().to_canonical(), address.port())
        };
        assert_eq!(
            (shown("accept"), shown("peer"), shown("local")),
            (client, client, to)
        );
        assert_eq!(stream.peer_addr().unwrap(), to);
    }
    let carried = agent
        .capture
        .counters()
        .into_iter()
        .find(|(_, n, _)| *n == "steered_inbound")
        .unwrap();
    assert!(
        carried.2 >= 3,
        "the connections went through the agent: {carried:?}"
    );
    agent.release();
}

#[test]
fn a_closed_port_refuses_and_a_loopback_listener_stays_inside() {
    if !is_root() {
        return;
    }
    let pins = Pins(node());
    let (a, b) = wire();
    b.serve("127.0.0.1:8082");
    let short = b.listen("0.0.0.0:8083");
    let agent = Agent::start(&pins.0);
    agent.enrol(vec![wanted(&b)]);
    let kind = |port: u16| {
        a.connect(SocketAddr::new(b.v4.into(), port))
            .map_err(|e| e.kind())
            .err()
    };
    assert_eq!(kind(9999), Some(ErrorKind::ConnectionRefused));
    assert_eq!(kind(8082), Some(ErrorKind::ConnectionRefused));
    assert_eq!(kind(8083), None);
    drop(short);
    eventually("the closed listener's port refuses", || {
        kind(8083) == Some(ErrorKind::ConnectionRefused)
    });
    // The listeners' real ports are on loopback: nobody reaches them from outside.
    let listening = agent.capture.pods()[0].listening.clone();
    assert!(listening.iter().all(|l| l.port() == 8082), "{listening:?}");
    agent.release();
}

#[test]
fn a_listener_for_ipv6_only_does_not_open_ipv4() {
    if !is_root() {
        return;
    }
    let pins = Pins(node());
    let (a, b) = wire();
    let _only_v6 = b.run(|| {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).unwrap();
        socket.set_only_v6(true).unwrap();
        let any: SocketAddr = "[::]:8084".parse().unwrap();
        socket.bind(&any.into()).unwrap();
        socket.listen(8).unwrap();
        socket
    });
    let agent = Agent::start(&pins.0);
    agent.enrol(vec![wanted(&b)]);
    let dial = |ip: IpAddr| {
        a.connect(SocketAddr::new(ip, 8084))
            .map_err(|e| e.kind())
            .err()
    };
    assert_eq!(dial(b.v6.into()), None);
    assert_eq!(dial(b.v4.into()), Some(ErrorKind::ConnectionRefused));
    agent.release();
}
