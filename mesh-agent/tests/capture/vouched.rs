//! 4-tuples that this node vouches for.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use mesh_common::Path;

use crate::bed::{
    Agent, Ns, Pins, SOON, counted, entries, eventually, is_root, line, node, protected, wanted,
    wire,
};

/// Dials from a port that is known before.
fn connect_from(ns: &Ns, from: SocketAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    ns.run(|| {
        let domain = socket2::Domain::for_address(to);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&from.into())?;
        socket.connect_timeout(&to.into(), Duration::from_secs(3))?;
        Ok(socket.into())
    })
}

#[test]
fn a_vouched_tuple_passes_once_and_no_other_does() {
    if !is_root() {
        return;
    }
    let pins = Pins(node());
    let (a, b) = wire();
    b.serve("[::]:8080");
    let agent = Agent::start(&pins.0);
    agent.enrol(vec![protected(wanted(&b))]);
    let cookie = agent.capture.pods()[0].cookie.unwrap();
    for (from, to) in [
        (IpAddr::from(a.v4), IpAddr::from(b.v4)),
        (a.v6.into(), b.v6.into()),
    ] {
        let (from, to) = (SocketAddr::new(from, 33_001), SocketAddr::new(to, 8080));
        let path = |stream: &mut TcpStream| {
            assert!(line(stream).contains(&format!("{}", from.ip())));
            let all = agent.capture.read_conns();
            let found = all.iter().find(|(_, r)| SocketAddr::from(r.remote) == from);
            found.unwrap().1.path
        };
        agent.capture.vouch(cookie, from, to, SOON).unwrap();
        let mut stream = connect_from(&a, from, to).unwrap();
        assert_eq!(path(&mut stream), Path::Vouched as u8);
        assert_eq!(entries(&agent, "vouched"), 0, "taken");
        // No plain connection that policy could forbid.
        assert!(agent.capture.plain_inbound().is_empty());
        drop(stream);
        eventually("it has ended", || agent.capture.read_conns().is_empty());
        // The other end of it is in TIME_WAIT, which a new connection may take over.
        let mut stream = connect_from(&a, from.ip_with_port(33_002), to).unwrap();
        drop(line(&mut stream));
        let all = agent.capture.read_conns();
        assert!(all.iter().all(|(_, r)| r.path == Path::Proxied as u8));
    }
    assert!(counted(&agent, "passed_vouched") >= 2);
    agent.release();
}

trait WithPort {
    fn ip_with_port(self, port: u16) -> SocketAddr;
}

impl WithPort for SocketAddr {
    fn ip_with_port(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(), port)
    }
}

/// Probes must not fail because the agent is restarted.
#[test]
fn it_passes_without_an_agent_within_its_time() {
    if !is_root() {
        return;
    }
    let pins = Pins(node());
    let (a, b) = wire();
    b.serve("0.0.0.0:8080");
    let agent = Agent::start(&pins.0);
    agent.enrol(vec![protected(wanted(&b))]);
    let cookie = agent.capture.pods()[0].cookie.unwrap();
    let from = |port| SocketAddr::new(a.v4.into(), port);
    let to = SocketAddr::new(b.v4.into(), 8080);
    let vouch = |port, time| agent.capture.vouch(cookie, from(port), to, time).unwrap();
    vouch(33_001, SOON);
    vouch(33_002, Duration::ZERO);
    agent.runtime.block_on(agent.capture.stop_steering());
    let refused = |port: u16| connect_from(&a, from(port), to).map_err(|e| e.kind()).err();
    assert_eq!(
        refused(33_002),
        Some(ErrorKind::ConnectionRefused),
        "too late"
    );
    assert_eq!(refused(33_003), Some(ErrorKind::ConnectionRefused));
    assert_eq!(refused(33_001), None);
    agent.release();
}
