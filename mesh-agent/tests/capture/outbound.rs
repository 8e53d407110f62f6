//! What a pod dials.

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr, SocketAddrV6, TcpStream},
};

use crate::bed::{Agent, Pins, SOON, echo, is_root, line, node, wanted, wire};

fn outside(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn v4_v6_and_mapped_reach_the_agent_and_look_untouched() {
    if !is_root() {
        return;
    }
    let pins = Pins(node());
    let (a, _b) = wire();
    let agent = Agent::start(&pins.0);
    agent.enrol(vec![wanted(&a)]);
    let mapped = SocketAddr::V6(SocketAddrV6::new(
        Ipv4Addr::new(203, 0, 113, 9).to_ipv6_mapped(),
        80,
        0,
        0,
    ));
    for (dial, original) in [
        (outside("203.0.113.7:8080"), "203.0.113.7:8080"),
        (outside("[2001:db8:5::7]:443"), "[2001:db8:5::7]:443"),
        (mapped, "203.0.113.9:80"),
        // The pod's own address is a destination like others.
        (
            SocketAddr::new(a.v4.into(), 4321),
            &format!("{}:4321", a.v4),
        ),
    ] {
        let mut stream = a.connect(dial).unwrap_or_else(|e| panic!("{dial}: {e}"));
        assert_eq!(stream.peer_addr().unwrap(), dial, "getpeername");
        assert_eq!(line(&mut stream), format!("original={original}"));
        assert_eq!(echo(stream, b"hello"), b"hello");
    }
    agent.release();
}

#[test]
fn loopback_is_untouched() {
    if !is_root() {
        return;
    }
    let pins = Pins(node());
    let (a, _b) = wire();
    let agent = Agent::start(&pins.0);
    agent.enrol(vec![wanted(&a)]);
    let app = a.serve("127.0.0.1:0");
    let mut stream = a.connect(app).unwrap();
    assert!(line(&mut stream).contains(&format!("local={app}")));
    let refused = a.connect(outside("127.0.0.1:9")).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    agent.release();
}

#[test]
fn an_address_that_appears_later_is_captured() {
    if !is_root() {
        return;
    }
    let pins = Pins(node());
    let (a, _b) = wire();
    // Without its IPv6 address at first.
    crate::bed::ip(&format!("-n {} addr del {}/64 dev eth0", a.name, a.v6));
    let agent = Agent::start(&pins.0);
    let mut pod = wanted(&a);
    pod.addresses = vec![a.v4.into()];
    agent.enrol(vec![pod]);
    let shown = || agent.capture.pods()[0].addresses.clone();
    assert_eq!(shown(), vec![std::net::IpAddr::from(a.v4)]);
    crate::bed::ip(&format!(
        "-n {} addr add {}/64 dev eth0 nodad",
        a.name, a.v6
    ));
    crate::bed::eventually("the new address is captured", || shown().len() == 2);
    let dial = outside("[2001:db8:5::7]:443");
    let mut stream = a.run(|| TcpStream::connect_timeout(&dial, SOON)).unwrap();
    assert_eq!(line(&mut stream), "original=[2001:db8:5::7]:443");
    agent.release();
}

/// Two workloads may have the same address (a bridge inside each, or one that means harm): that keeps neither from
/// being captured, and who is configured to have it has it.
#[test]
fn an_address_in_two_namespaces() {
    if !is_root() {
        return;
    }
    let pins = Pins(node());
    let (a, b) = wire();
    let shared: std::net::IpAddr = "172.31.255.1".parse().unwrap();
    let add = |ns: &crate::bed::Ns, address: std::net::IpAddr| {
        crate::bed::ip(&format!("-n {} addr add {address}/32 dev lo", ns.name));
    };
    add(&a, shared);
    add(&b, shared);
    add(&a, b.v4.into());
    let agent = Agent::start(&pins.0);
    agent.enrol(vec![wanted(&a)]);
    let shown = |ns: &crate::bed::Ns| {
        let pods = agent.capture.pods();
        let pod = pods.iter().find(|p| *p.name.name == *ns.name);
        pod.map(|p| p.addresses.clone()).unwrap_or_default()
    };
    assert!(shown(&a).contains(&b.v4.into()), "nobody else is there yet");
    agent.enrol(vec![wanted(&a), wanted(&b)]);
    assert!(shown(&b).contains(&b.v4.into()), "{:?}", shown(&b));
    assert!(!shown(&b).contains(&shared), "{:?}", shown(&b));
    crate::bed::eventually("the other one lets go of it", || {
        !shown(&a).contains(&b.v4.into())
    });
    let dial = outside("203.0.113.9:443");
    for ns in [&a, &b] {
        let mut stream = ns.run(|| TcpStream::connect_timeout(&dial, SOON)).unwrap();
        assert_eq!(line(&mut stream), "original=203.0.113.9:443");
    }
    agent.release();
}

/// The maps are shared by all workloads of the node.
#[test]
fn thousands_of_addresses_are_not_all_captured() {
    if !is_root() {
        return;
    }
    let pins = Pins(node());
    let (a, _b) = wire();
    a.run(|| {
        let range = "for i in $(seq 1 150); do echo addr add 172.30.1.$i/32 dev lo; echo addr add 172.30.2.$i/32 dev lo; done | ip -batch -";
        let done = crate::bed::output(std::process::Command::new("sh").args(["-c", range]));
        assert!(done.status.success());
    });
    let agent = Agent::start(&pins.0);
    agent.enrol(vec![wanted(&a)]);
    let shown = agent.capture.pods()[0].addresses.clone();
    assert_eq!(shown.len(), 256 + 2);
    assert!(shown.contains(&a.v4.into()) && shown.contains(&a.v6.into()));
    agent.release();
}
