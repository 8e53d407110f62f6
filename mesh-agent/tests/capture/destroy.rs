//! Connections past the agent, found and ended.

use std::{
    io::{ErrorKind, Read},
    net::{SocketAddr, TcpStream},
    sync::Arc,
};

use mesh_agent::{capture::WantedPod, model::EffectivePolicy};
use mesh_common::{KernelClose, Path};

use crate::bed::{
    Agent, Pins, SOON, eventually, is_root, line, node, protected, wanted, wanted_open, wire,
};

fn end_of(stream: &mut TcpStream) -> Option<ErrorKind> {
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.read(&mut [0]).map_err(|e| e.kind()).err()
}

#[test]
fn connections_older_than_the_mesh_are_ended() {
    if !is_root() {
        return;
    }
    let pins = Pins(node());
    let (a, b) = wire();
    b.serve("[::]:8080");
    b.serve("[::]:8081");
    let dial = |to: SocketAddr| {
        let mut stream = a.connect(to).unwrap();
        line(&mut stream);
        stream
    };
    // An IPv4 client of an IPv6 socket, and one of its own family.
    let mut old = [
        dial(SocketAddr::new(b.v4.into(), 8080)),
        dial(SocketAddr::new(b.v6.into(), 8080)),
    ];
    let excluded = dial(SocketAddr::new(b.v4.into(), 8081));
    let mut agent = Agent::start(&pins.0);
    let policy = EffectivePolicy {
        exclude_ports: vec![8081],
        ..EffectivePolicy::default()
    };
    agent.enrol(vec![
        wanted(&a),
        protected(WantedPod {
            policy: Arc::new(policy),
            ..wanted(&b)
        }),
    ]);
    let found = agent.capture.plain_inbound();
    assert_eq!(
        found.len(),
        2,
        "outbound ones and exclusions are not: {found:?}"
    );
    for (cookie, record) in &found {
        assert_eq!(record.path, Path::Unmeshed as u8);
        assert!(!agent.capture.destroy(record.netns + 1, *cookie).unwrap());
        assert!(agent.capture.destroy(record.netns, *cookie).unwrap());
        assert!(
            !agent.capture.destroy(record.netns, *cookie).unwrap(),
            "gone"
        );
    }
    for stream in &mut old {
        assert_eq!(end_of(stream), Some(ErrorKind::ConnectionReset));
    }
    assert!(agent.capture.plain_inbound().is_empty());
    let mut reported = 0;
    eventually("their ends are reported", || {
        while let Ok((cookie, record)) = agent.closed.try_recv() {
            if found.iter().any(|(c, _)| *c == cookie) {
                assert_eq!(record.close_reason, KernelClose::Aborted as u8);
                reported += 1;
            }
        }
        reported == 2
    });
    drop(excluded);
    agent.release();
}

#[test]
fn so_are_those_that_were_let_in_while_no_agent_was_there() {
    if !is_root() {
        return;
    }
    let pins = Pins(node());
    let (a, b) = wire();
    b.serve("0.0.0.0:8080");
    let agent = Agent::start(&pins.0);
    agent.enrol(vec![wanted_open(&b)]);
    let to = SocketAddr::new(b.v4.into(), 8080);
    let mut carried = a.connect(to).unwrap();
    line(&mut carried);
    drop(carried);
    eventually("it has ended", || agent.capture.read_conns().is_empty());
    agent.kill();
    let mut plain = a.connect(to).unwrap();
    line(&mut plain);
    let mut agent = Agent::start(&pins.0);
    agent.enrol(vec![protected(wanted_open(&b))]);
    let mut carried = a.connect(to).unwrap();
    line(&mut carried);
    let found = agent.capture.plain_inbound();
    assert_eq!(found.len(), 1, "{found:?}");
    let (cookie, record) = found[0];
    assert_eq!(record.path, Path::Passthrough as u8);
    assert_eq!(SocketAddr::from(record.remote), plain.local_addr().unwrap());
    assert!(agent.capture.destroy(record.netns, cookie).unwrap());
    assert_eq!(end_of(&mut plain), Some(ErrorKind::ConnectionReset));
    // What the agent carries is its own to end.
    for (cookie, record) in agent.capture.read_conns() {
        assert!(!agent.capture.destroy(record.netns, cookie).unwrap());
    }
    let last = agent
        .runtime
        .block_on(async { tokio::time::timeout(SOON, agent.closed.recv()).await });
    assert_eq!(last.unwrap().unwrap().0, cookie);
    agent.release();
}
