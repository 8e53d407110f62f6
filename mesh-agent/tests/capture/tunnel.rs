//! The tunnel's port, which is the mesh's on every address of a captured workload.

use std::{io::ErrorKind, net::SocketAddr, sync::Arc};

use mesh_agent::{capture::WantedPod, model::EffectivePolicy};

use crate::bed::{
    Agent, Pins, echo, eventually, ip, is_root, line, node, refusal, wanted, wanted_open, wire,
};

const PORT: u16 = 15008;

#[test]
fn every_address_leads_to_the_agent_whoever_listens_there() {
    if !is_root() {
        return;
    }
    let pins = Pins(node());
    let (a, b) = wire();
    ip(&format!("-n {} addr add 10.99.7.7/32 dev lo", b.name));
    let agent = Agent::start(&pins.0);
    agent.enrol(vec![wanted(&b)]);
    let later: SocketAddr = "10.99.7.8:15008".parse().unwrap();
    let addresses = [
        SocketAddr::new(b.v4.into(), PORT),
        SocketAddr::new(b.v6.into(), PORT),
        "10.99.7.7:15008".parse().unwrap(),
    ];
    let tunnel = |to: SocketAddr| {
        let mut stream = a.connect(to).unwrap_or_else(|e| panic!("{to}: {e}"));
        let client = stream.local_addr().unwrap();
        assert_eq!(
            line(&mut stream),
            format!("tunnel peer={client} local={to}")
        );
        // The agent's own connection: nobody's record.
        let records = agent.capture.read_conns();
        assert!(records.is_empty(), "{records:?}");
        assert_eq!(echo(stream, b"hello"), b"hello");
    };
    for to in addresses {
        tunnel(to);
    }
    // It is the mesh's also where an application has it, and for clients and ports that policy leaves alone.
    b.serve("[::]:15008");
    let policy = EffectivePolicy {
        exclude_ports: vec![PORT],
        exclude_cidrs: vec![format!("{}/32", a.v4).parse().unwrap()],
        ..EffectivePolicy::default()
    };
    agent.apply(vec![WantedPod {
        policy: Arc::new(policy),
        ..wanted(&b)
    }]);
    for to in addresses {
        tunnel(to);
    }
    // An address that comes later.
    ip(&format!("-n {} addr add {}/32 dev lo", b.name, later.ip()));
    eventually("the new address is captured", || {
        agent.capture.pods()[0].addresses.contains(&later.ip())
    });
    tunnel(later);
    agent.release();
    // The application has its port back.
    let mut stream = a.connect(addresses[0]).unwrap();
    assert!(line(&mut stream).starts_with("accept="));
}

#[test]
fn without_an_agent_it_is_refused_and_never_the_applications() {
    if !is_root() {
        return;
    }
    let pins = Pins(node());
    let (a, b) = wire();
    b.serve("[::]:15008");
    b.serve("[::]:8080");
    let tunnels = [
        SocketAddr::new(b.v4.into(), PORT),
        SocketAddr::new(b.v6.into(), PORT),
    ];
    let agent = Agent::start(&pins.0);
    agent.enrol(vec![wanted_open(&b)]);
    // Both ends of an agent: told to go, and killed.
    agent.runtime.block_on(agent.capture.stop_steering());
    for to in tunnels {
        assert_eq!(refusal(&a, to), Some(ErrorKind::ConnectionRefused), "{to}");
    }
    agent.kill();
    for to in tunnels {
        assert_eq!(refusal(&a, to), Some(ErrorKind::ConnectionRefused), "{to}");
    }
    let plain = SocketAddr::new(b.v4.into(), 8080);
    assert_eq!(refusal(&a, plain), None, "the policy is open");
    let agent = Agent::start(&pins.0);
    agent.enrol(vec![wanted_open(&b)]);
    for to in tunnels {
        assert!(line(&mut a.connect(to).unwrap()).starts_with("tunnel"));
    }
    agent.release();
}
