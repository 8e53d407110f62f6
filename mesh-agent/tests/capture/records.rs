//! Records of connections that do not pass through the agent.

use std::{
    io::{Read, Write},
    net::SocketAddr,
    sync::Arc,
};

use mesh_agent::model::EffectivePolicy;
use mesh_common::{Addr, Direction, KernelClose, Path};

use crate::bed::{Agent, Pins, eventually, is_root, line, node, wanted, wire};

#[test]
fn older_connections_are_listed_refreshed_and_reported_at_their_end() {
    if !is_root() {
        return;
    }
    let pins = Pins(node());
    let (a, b) = wire();
    b.serve("0.0.0.0:8080");
    let to = SocketAddr::new(b.v4.into(), 8080);
    let mut stream = a.connect(to).unwrap();
    let greeting = line(&mut stream).len() as u64 + 1;
    let mut agent = Agent::start(&pins.0);
    agent.enrol(vec![wanted(&a), wanted(&b)]);
    let find = |agent: &Agent, direction: Direction| {
        let all = agent.capture.read_conns();
        all.into_iter()
            .find(|(_, r)| r.direction == direction as u8)
            .map(|(_, r)| r)
    };
    let seen = find(&agent, Direction::Outbound).expect("listed at the client");
    assert_eq!(
        (seen.path, seen.remote),
        (Path::Unmeshed as u8, Addr::from(to))
    );
    assert!(
        find(&agent, Direction::Inbound).is_some(),
        "listed at the server"
    );
    stream.write_all(&[7; 1000]).unwrap();
    stream.read_exact(&mut [0; 1000]).unwrap();
    eventually("the counters follow", || {
        find(&agent, Direction::Outbound)
            .is_some_and(|r| (r.bytes_sent, r.bytes_received) == (1000, 1000 + greeting))
    });
    drop(stream);
    eventually("no record is left", || {
        agent.capture.read_conns().is_empty()
    });
    let mut ended = Vec::new();
    while let Ok((_, record)) = agent.closed.try_recv() {
        ended.push(record);
    }
    assert_eq!(ended.len(), 2, "{ended:?}");
    let client = ended
        .iter()
        .find(|r| r.direction == Direction::Outbound as u8)
        .unwrap();
    assert_eq!(client.bytes_sent, 1000);
    assert_eq!(client.close_reason, KernelClose::FinLocalFirst as u8);
    agent.release();
}

#[test]
fn excluded_connections_pass_plain_and_are_recorded() {
    if !is_root() {
        return;
    }
    let pins = Pins(node());
    let (a, b) = wire();
    b.serve("0.0.0.0:8080");
    b.serve("0.0.0.0:8081");
    let mut pod = wanted(&a);
    let policy = EffectivePolicy {
        exclude_ports: vec![8080],
        ..EffectivePolicy::default()
    };
    pod.policy = Arc::new(policy);
    let mut agent = Agent::start(&pins.0);
    agent.enrol(vec![pod.clone()]);
    let to = SocketAddr::new(b.v4.into(), 8080);
    let mut stream = a.connect(to).unwrap();
    let greeting = line(&mut stream);
    assert!(greeting.starts_with("accept="), "{greeting}");
    let (_, record) = agent
        .capture
        .read_conns()
        .into_iter()
        .next()
        .expect("recorded");
    assert_eq!(
        (record.path, record.remote),
        (Path::Passthrough as u8, Addr::from(to))
    );
    eventually("live counters", || {
        agent
            .capture
            .read_conns()
            .iter()
            .any(|(_, r)| r.bytes_received == greeting.len() as u64 + 1)
    });
    drop(stream);
    let (_, last) = agent.runtime.block_on(agent.closed.recv()).unwrap();
    assert_eq!(last.bytes_received, greeting.len() as u64 + 1);
    // A range instead of a port: takes effect on the running pod.
    let policy = EffectivePolicy {
        exclude_cidrs: vec![format!("{}/32", b.v4).parse().unwrap()],
        ..EffectivePolicy::default()
    };
    pod.policy = Arc::new(policy);
    agent.apply(vec![pod.clone()]);
    let mut stream = a.connect(SocketAddr::new(b.v4.into(), 8081)).unwrap();
    assert!(line(&mut stream).starts_with("accept="));
    pod.policy = Arc::default();
    agent.apply(vec![pod]);
    let mut stream = a.connect(to).unwrap();
    assert_eq!(line(&mut stream), format!("original={to}"));
    agent.release();
}
