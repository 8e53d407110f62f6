//! Agents that die and come back, pods that are released or deleted.

use std::{
    io::{ErrorKind, Read, Write},
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use mesh_agent::capture::{Capture, CaptureError, CaptureOptions, PodState, release_node};

use crate::bed::{
    self, Agent, Pins, SOON, address, echo, eventually, is_root, line, node, wanted, wanted_open,
    wire,
};

#[test]
fn a_dead_agent_refuses_at_once_when_closed() {
    if !is_root() {
        return;
    }
    let pins = Pins(node());
    let (a, b) = wire();
    b.serve("0.0.0.0:8080");
    let agent = Agent::start(&pins.0);
    agent.enrol(vec![wanted(&a), wanted(&b)]);
    agent.kill();
    let begun = Instant::now();
    let to = SocketAddr::new(b.v4.into(), 8080);
    assert_eq!(
        a.connect(to).unwrap_err().kind(),
        ErrorKind::ConnectionRefused,
        "outbound"
    );
    // From the namespace of the wire's other end, which is not captured by its own rules any more: only inbound.
    assert!(begun.elapsed().as_millis() < 500);
    // Restarted: everything is as before, and nothing had to be enrolled anew in between.
    let agent = Agent::start(&pins.0);
    assert!(agent.capture.adopted());
    // Longer than its first looks at the world: as long as nobody said what is wanted, all stays as it was.
    let begun = Instant::now();
    while begun.elapsed().as_millis() < 1500 {
        let dialled = a.connect(to).map_err(|e| e.kind()).err();
        assert_eq!(
            dialled,
            Some(ErrorKind::ConnectionRefused),
            "no hole while it starts"
        );
    }
    agent.enrol(vec![wanted(&a), wanted(&b)]);
    let mut stream = a.connect(to).unwrap();
    assert_eq!(line(&mut stream), format!("original={to}"));
    agent.release();
}

#[test]
fn a_dead_agent_lets_pass_when_open() {
    if !is_root() {
        return;
    }
    let pins = Pins(node());
    let (a, b) = wire();
    b.serve("0.0.0.0:8080");
    let agent = Agent::start(&pins.0);
    agent.enrol(vec![wanted_open(&a), wanted_open(&b)]);
    let only_mesh: SocketAddr = "198.18.0.1:80".parse().unwrap();
    agent.capture.set_mesh_addrs([only_mesh.ip()]);
    agent.kill();
    let to = SocketAddr::new(b.v4.into(), 8080);
    let mut stream = a.connect(to).unwrap();
    let client = stream.local_addr().unwrap();
    assert_eq!(
        line(&mut stream),
        format!("accept={client} peer={client} local={to}")
    );
    assert_eq!(
        a.connect(only_mesh).unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
    // Protected: never plain, whatever the fail policy.
    let agent = Agent::start(&pins.0);
    let mut protected = wanted_open(&b);
    protected.protected = true;
    agent.enrol(vec![wanted_open(&a), protected]);
    agent.kill();
    assert_eq!(
        a.connect(to).unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
}

#[test]
fn release_leaves_nothing_and_cuts_nothing() {
    if !is_root() {
        return;
    }
    let pins = Pins(node());
    let (a, b) = wire();
    b.serve("0.0.0.0:8080");
    let to = SocketAddr::new(b.v4.into(), 8080);
    let mut before = a.connect(to).unwrap();
    line(&mut before);
    let agent = Agent::start(&pins.0);
    agent.enrol(vec![wanted(&a), wanted(&b)]);
    let mut during = a.connect(to).unwrap();
    assert_eq!(line(&mut during), format!("original={to}"));
    // The pod a alone, while its connections live.
    agent.apply(vec![wanted(&b)]);
    eventually("a is released", || agent.capture.pods().len() == 1);
    during.write_all(b"x").unwrap();
    let mut one = [0];
    during.read_exact(&mut one).unwrap();
    assert_eq!(&one, b"x", "a captured connection lives on");
    assert_eq!(during.peer_addr().unwrap(), to, "and still shows its peer");
    let mut plain = a.connect(to).unwrap();
    assert!(
        line(&mut plain).starts_with("accept="),
        "new ones are not captured"
    );
    let left = agent
        .capture
        .map_stats()
        .into_iter()
        .find(|m| m.name == "workloads")
        .unwrap();
    assert_eq!(left.entries, 1);
    let said = agent.release();
    assert!(said.iter().any(|s| s.contains("map conns")), "{said:?}");
    assert!(!pins.dir().exists());
    assert_eq!(echo(before, b"still here"), b"still here");
}

#[test]
fn enrolling_and_releasing_under_load_loses_no_connection() {
    if !is_root() {
        return;
    }
    let pins = Pins(node());
    let (a, b) = wire();
    b.serve("0.0.0.0:8080");
    let to = SocketAddr::new(b.v4.into(), 8080);
    let agent = Agent::start(&pins.0);
    let stop = AtomicBool::new(false);
    let counts = std::thread::scope(|s| {
        let dial = || {
            a.run(|| {
                let (mut captured, mut plain) = (0, 0);
                while !stop.load(Ordering::Relaxed) {
                    let mut stream =
                        std::net::TcpStream::connect_timeout(&to, SOON).expect("connect");
                    let said = line(&mut stream);
                    assert_eq!(echo(stream, b"payload"), b"payload", "after {said:?}");
                    if said.starts_with("original=") {
                        captured += 1;
                    } else {
                        assert!(said.starts_with("accept="), "{said:?}");
                        plain += 1;
                    }
                }
                (captured, plain)
            })
        };
        let clients = [s.spawn(dial), s.spawn(dial), s.spawn(dial)];
        for wanted in [
            vec![wanted(&b)],
            vec![wanted(&a), wanted(&b)],
            vec![wanted(&a)],
            vec![],
            vec![wanted(&a)],
        ] {
            let n = wanted.len();
            agent.apply(wanted);
            eventually("the pass is done", || {
                let pods = agent.capture.pods();
                pods.len() == n && pods.iter().all(|p| p.state == PodState::Enrolled)
            });
            std::thread::sleep(std::time::Duration::from_millis(300));
        }
        stop.store(true, Ordering::Relaxed);
        clients.map(|c| c.join().unwrap())
    });
    assert!(
        counts
            .iter()
            .all(|(captured, plain)| *captured > 10 && *plain > 10),
        "{counts:?}"
    );
    agent.apply(vec![]);
    eventually("all is released", || agent.capture.pods().is_empty());
    let left = agent.capture.map_stats();
    assert!(left.iter().all(|m| m.entries == 0), "{left:?}");
    agent.release();
}

#[test]
fn fifty_pods_are_captured_in_seconds() {
    if !is_root() {
        return;
    }
    let pins = Pins(node());
    let wires: Vec<_> = (0..25).map(|_| wire()).collect();
    let pods: Vec<_> = wires
        .iter()
        .flat_map(|(a, b)| [wanted(a), wanted(b)])
        .collect();
    let n = pods.len() as u32;
    let begun = Instant::now();
    let agent = Agent::start(&pins.0);
    let started = begun.elapsed();
    agent.enrol(pods);
    let each = (begun.elapsed() - started) / n;
    eprintln!("start {started:?}, each pod {each:?}");
    assert!(each.as_millis() < 200, "{each:?} for each pod");
    agent.release();
}

#[test]
fn release_without_an_agent() {
    if !is_root() {
        return;
    }
    let pins = Pins(node());
    let (a, b) = wire();
    b.serve("0.0.0.0:8080");
    let agent = Agent::start(&pins.0);
    agent.enrol(vec![wanted(&a)]);
    let running = release_node("/sys/fs/bpf".as_ref(), &pins.0).unwrap_err();
    assert!(matches!(running, CaptureError::Locked { .. }), "{running}");
    agent.kill();
    let said = release_node("/sys/fs/bpf".as_ref(), &pins.0).unwrap();
    assert!(said.iter().any(|s| s.contains("connect4")), "{said:?}");
    assert!(!pins.dir().exists());
    let mut stream = a.connect(SocketAddr::new(b.v4.into(), 8080)).unwrap();
    assert!(line(&mut stream).starts_with("accept="));
    assert!(
        release_node("/sys/fs/bpf".as_ref(), &pins.0)
            .unwrap()
            .is_empty()
    );
}

/// An agent whose layouts are others finds what the one before it left: nothing is open while it takes over.
#[test]
fn an_upgrade_that_changes_layouts_opens_nothing() {
    if !is_root() {
        return;
    }
    let pins = Pins(node());
    let ((near, pod), (other_near, other)) = (wire(), wire());
    pod.serve("0.0.0.0:8080");
    other.serve("0.0.0.0:8080");
    let agent = Agent::start(&pins.0);
    agent.enrol(vec![wanted(&pod), wanted(&other)]);
    agent.kill();
    let old = pins.dir().join("v1");
    let now = pins.dir().join(format!("v{}", mesh_common::ABI_VERSION));
    std::fs::rename(now, &old).unwrap();
    let to = SocketAddr::new(pod.v4.into(), 8080);
    let out = SocketAddr::new(near.v4.into(), 9);
    let (stop, applying) = (AtomicBool::new(false), AtomicBool::new(false));
    let tried = std::sync::atomic::AtomicU32::new(0);
    let agent = std::thread::scope(|s| {
        let watch = s.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                tried.fetch_add(1, Ordering::Relaxed);
                let early = !applying.load(Ordering::SeqCst);
                if let Ok(mut stream) = near.connect(to) {
                    assert!(!early || applying.load(Ordering::SeqCst), "past the agent");
                    line(&mut stream);
                }
            }
        });
        let leave = s.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // Nobody listens there: only the agent can be what answers.
                if let Ok(mut stream) = pod.connect(out) {
                    let said = line(&mut stream);
                    // For a moment both versions redirect: to a port of its own that leads nowhere.
                    let own = format!("original={}:1", pod.v4);
                    let known = said.is_empty() || said == format!("original={out}");
                    assert!(known || said.starts_with(&own), "{said}");
                }
            }
        });
        let agent = Agent::start(&pins.0);
        eventually("both have tried for a while", || {
            tried.load(Ordering::Relaxed) > 200
        });
        applying.store(true, Ordering::SeqCst);
        // One that cannot be enrolled yet stays as it was.
        let mut broken = wanted(&other);
        broken.addresses = vec!["192.0.2.99".parse().unwrap()];
        agent.apply(vec![wanted(&pod), broken]);
        eventually("carried by the new agent", || {
            let stream = near.connect(to);
            stream.is_ok_and(|mut s| line(&mut s).starts_with("accept="))
        });
        stop.store(true, Ordering::Relaxed);
        watch.join().unwrap();
        leave.join().unwrap();
        agent
    });
    let plain = agent.capture.plain_inbound();
    assert!(plain.is_empty(), "{plain:?}");
    let to = SocketAddr::new(other.v4.into(), 8080);
    let closed = || other_near.connect(to).map_err(|e| e.kind()).err();
    assert_eq!(closed(), Some(ErrorKind::ConnectionRefused));
    assert!(old.exists());
    agent.enrol(vec![wanted(&pod), wanted(&other)]);
    assert_eq!(closed(), None);
    eventually("nothing of the old version is left", || !old.exists());
    agent.release();
}

#[test]
fn what_nobody_wants_after_a_restart_is_released() {
    if !is_root() {
        return;
    }
    let pins = Pins(node());
    let (a, b) = wire();
    b.serve("0.0.0.0:8080");
    let agent = Agent::start(&pins.0);
    agent.enrol(vec![wanted(&a), wanted(&b)]);
    agent.kill();
    let agent = Agent::start(&pins.0);
    agent.enrol(vec![wanted(&b)]);
    let entries = |name: &str| {
        agent
            .capture
            .map_stats()
            .into_iter()
            .find(|m| m.name == name)
            .unwrap()
            .entries
    };
    // The third is its link-local address.
    assert_eq!((entries("workloads"), entries("pod_addrs")), (1, 3));
    let mut stream = a.connect(SocketAddr::new(b.v4.into(), 8080)).unwrap();
    assert!(line(&mut stream).starts_with("accept="));
    agent.release();
}

#[test]
fn a_deleted_namespace_dies_and_a_new_one_under_its_path_is_captured() {
    if !is_root() {
        return;
    }
    let pins = Pins(node());
    let (a, b) = wire();
    let mut agent = Agent::start(&pins.0);
    agent.enrol(vec![wanted(&a)]);
    let first = agent.capture.pods()[0].cookie.unwrap();
    // Pooled sockets must not hold it either.
    let pod = agent.capture.pod(&wanted(&a).name).unwrap();
    drop(agent.runtime.block_on(pod.socket(false)).unwrap());
    drop(pod);
    a.delete();
    let released = agent
        .runtime
        .block_on(async { tokio::time::timeout(SOON, agent.released.recv()).await });
    assert_eq!(released.unwrap(), Some((first, true)));
    // The other end of the wire goes with the namespace, not before.
    eventually("the namespace is really gone", || {
        !b.run(|| has_link("eth0"))
    });
    bed::ip(&format!("netns add {}", a.name));
    bed::ip(&format!("-n {} link set lo up", a.name));
    bed::ip(&format!(
        "-n {} link add eth0 type veth peer name other",
        a.name
    ));
    address(&a);
    eventually("the new namespace is captured", || {
        let pods = agent.capture.pods();
        pods.iter()
            .any(|p| p.state == PodState::Enrolled && p.cookie != Some(first))
    });
    let to: SocketAddr = "203.0.113.7:8080".parse().unwrap();
    let mut stream = a.connect(to).unwrap();
    assert_eq!(line(&mut stream), format!("original={to}"));
    agent.release();
}

fn has_link(name: &str) -> bool {
    let mut ip = std::process::Command::new("ip");
    bed::output(ip.args(["link", "show", name]))
        .status
        .success()
}

#[test]
fn one_agent_for_each_node_name() {
    if !is_root() {
        return;
    }
    let (first, second) = (Pins(node()), Pins(node()));
    let (a, b) = wire();
    let one = Agent::start(&first.0);
    let again = one
        .runtime
        .block_on(Capture::start(CaptureOptions::new(first.0.as_str())));
    assert!(matches!(again, Err(CaptureError::Locked { .. })));
    let two = Agent::start(&second.0);
    one.enrol(vec![wanted(&a)]);
    two.enrol(vec![wanted(&b)]);
    let to: SocketAddr = "203.0.113.7:8080".parse().unwrap();
    for ns in [&a, &b] {
        let mut stream = ns.connect(to).unwrap();
        assert_eq!(line(&mut stream), format!("original={to}"));
    }
    // One namespace is one agent's.
    two.apply(vec![wanted(&b), wanted(&a)]);
    let refused = two
        .capture
        .pods()
        .into_iter()
        .find(|p| p.netns == a.path())
        .unwrap();
    let PodState::Failed { reason, .. } = refused.state else {
        panic!("{:?}", refused.state)
    };
    assert!(reason.contains("another agent"), "{reason}");
    one.release();
    two.release();
}

#[test]
fn what_cannot_be_captured_says_why() {
    if !is_root() {
        return;
    }
    let pins = Pins(node());
    let (a, b) = wire();
    let agent = Agent::start(&pins.0);
    let mut host = wanted(&a);
    host.netns = "/proc/self/ns/net".into();
    let mut foreign = wanted(&b);
    foreign.addresses = vec!["192.0.2.99".parse().unwrap()];
    let mut missing = wanted(&a);
    missing.name = mesh_agent::model::ResourceName::new("test", "missing");
    missing.netns = "/run/netns/cm-there-is-none".into();
    let mut twice = wanted(&b);
    twice.name = mesh_agent::model::ResourceName::new("test", "twice");
    agent.apply(vec![host, foreign, missing, twice.clone()]);
    let reason = |name: &str| -> String {
        let pods = agent.capture.pods();
        let pod = pods.iter().find(|p| &*p.name.name == name).unwrap();
        match &pod.state {
            PodState::Failed { reason, .. } => reason.clone(),
            other => format!("{other:?}"),
        }
    };
    assert!(
        reason(&a.name).contains("host's own"),
        "{}",
        reason(&a.name)
    );
    assert!(
        reason("missing").contains("cannot open"),
        "{}",
        reason("missing")
    );
    let other = [reason(&b.name), reason("twice")];
    assert!(
        other[0].contains("does not own 192.0.2.99") || other[0].contains("claimed by"),
        "{other:?}"
    );
    // The right one alone is captured; then the second claim is refused.
    agent.apply(vec![twice, wanted(&b)]);
    let states: Vec<_> = [reason(&b.name), reason("twice")].into_iter().collect();
    assert!(
        states.iter().any(|s| s == "Enrolled") && states.iter().any(|s| s.contains("claimed by")),
        "{states:?}"
    );
    agent.release();
}
