//! Workloads that a policy protects: nothing plain past the agent.

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpListener},
    sync::Arc,
};

use mesh_agent::{capture::WantedPod, model::EffectivePolicy};

use crate::bed::{
    Agent, Ns, Pins, counted, eventually, is_root, line, node, output, protected, refusal, wanted,
    wanted_open, wire,
};

/// A listener that the agent cannot reach: it hears one device only.
fn bound_to_eth0(ns: &Ns, at: &str) -> TcpListener {
    let at: SocketAddr = at.parse().unwrap();
    ns.run(|| {
        let domain = socket2::Domain::for_address(at);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).unwrap();
        socket.bind_device(Some(b"eth0")).unwrap();
        socket.bind(&at.into()).unwrap();
        socket.listen(8).unwrap();
        socket.into()
    })
}

const REFUSED: Option<ErrorKind> = Some(ErrorKind::ConnectionRefused);

#[test]
fn a_listener_that_the_agent_does_not_have_is_closed_to_others() {
    if !is_root() {
        return;
    }
    let pins = Pins(node());
    let (a, b) = wire();
    b.serve("[::]:8080");
    let _device = bound_to_eth0(&b, "[::]:8081");
    let agent = Agent::start(&pins.0);
    let both = |port| {
        [
            SocketAddr::new(b.v4.into(), port),
            SocketAddr::new(b.v6.into(), port),
        ]
    };
    agent.enrol(vec![wanted(&b)]);
    for to in both(8081) {
        assert_eq!(refusal(&a, to), None, "passed where nothing protects");
    }
    // From one connect to the next, with no moment between.
    agent.apply(vec![protected(wanted(&b))]);
    for to in both(8081).into_iter().chain(both(9999)) {
        assert_eq!(refusal(&a, to), REFUSED, "{to}");
    }
    for to in both(8080) {
        let mut stream = a.connect(to).unwrap();
        assert!(
            line(&mut stream).starts_with("accept="),
            "through the agent"
        );
    }
    assert!(counted(&agent, "refused_protected") >= 4);
    // Inside the pod nothing has changed.
    let own = b.serve("127.0.0.1:0");
    assert_eq!(refusal(&b, own), None);
    agent.apply(vec![wanted(&b)]);
    assert_eq!(refusal(&a, both(8081)[0]), None);
    agent.release();
}

#[test]
fn it_stays_closed_through_every_end_of_an_agent() {
    if !is_root() {
        return;
    }
    let pins = Pins(node());
    let (a, b) = wire();
    b.serve("[::]:8080");
    let _device = bound_to_eth0(&b, "[::]:8081");
    let all = [
        SocketAddr::new(b.v4.into(), 8080),
        SocketAddr::new(b.v6.into(), 8080),
        SocketAddr::new(b.v4.into(), 8081),
        SocketAddr::new(b.v6.into(), 8081),
    ];
    let closed = |when: &str| {
        for to in all {
            assert_eq!(refusal(&a, to), REFUSED, "{to} {when}");
        }
    };
    // The client's own policy is open too: what counts is the destination's.
    let pods = || vec![wanted_open(&a), protected(wanted_open(&b))];
    let agent = Agent::start(&pins.0);
    agent.enrol(pods());
    agent.runtime.block_on(agent.capture.stop_steering());
    closed("after SIGTERM");
    agent.capture.close_listeners();
    closed("with the listeners closed");
    agent.kill();
    closed("with the agent dead");
    let agent = Agent::start(&pins.0);
    assert!(agent.capture.adopted());
    closed("with an agent that does not yet know what is wanted");
    agent.enrol(pods());
    assert!(line(&mut a.connect(all[0]).unwrap()).starts_with("original="));
    // Released knowingly, it is as open as any.
    agent.release();
    for to in all {
        assert_eq!(refusal(&a, to), None, "{to}");
    }
}

/// Neighbours on the wire reach a pod by its link-local address, which the agent does not serve.
#[test]
fn link_local_addresses_are_no_way_around() {
    if !is_root() {
        return;
    }
    let pins = Pins(node());
    let (a, b) = wire();
    b.serve("[::]:8080");
    let shown = |ns: &Ns, args: &str| {
        let mut ip = std::process::Command::new("ip");
        let out = output(ip.args(["-n", &ns.name]).args(args.split(' ')));
        String::from_utf8(out.stdout).unwrap()
    };
    let text = shown(&b, "-6 -o addr show dev eth0 scope link");
    let address = text.split_whitespace().find_map(|w| w.strip_suffix("/64"));
    let device = shown(&a, "-o link show dev eth0");
    let device: u32 = device.split(':').next().unwrap().parse().unwrap();
    let to = |port| {
        let ip = address.unwrap().parse().unwrap();
        SocketAddr::V6(std::net::SocketAddrV6::new(ip, port, 0, device))
    };
    eventually("the kernel serves the address", || {
        refusal(&a, to(8080)).is_none()
    });
    let agent = Agent::start(&pins.0);
    agent.enrol(vec![wanted(&b)]);
    assert_eq!(refusal(&a, to(8080)), None, "left alone");
    agent.apply(vec![protected(wanted(&b))]);
    assert_eq!(refusal(&a, to(8080)), REFUSED);
    assert_eq!(refusal(&a, to(15008)), REFUSED);
    agent.kill();
    assert_eq!(refusal(&a, to(8080)), REFUSED);
    let agent = Agent::start(&pins.0);
    agent.enrol(vec![wanted(&b)]);
    assert_eq!(refusal(&a, to(8080)), None);
    agent.release();
}

/// The operator's own hole.
#[test]
fn exclusions_pass_also_into_a_protected_workload() {
    if !is_root() {
        return;
    }
    let pins = Pins(node());
    let (a, b) = wire();
    b.serve("[::]:8080");
    b.serve("[::]:8081");
    let policy = EffectivePolicy {
        exclude_ports: vec![8080],
        exclude_cidrs: vec![format!("{}/128", a.v6).parse().unwrap()],
        ..EffectivePolicy::default()
    };
    let agent = Agent::start(&pins.0);
    agent.enrol(vec![protected(WantedPod {
        policy: Arc::new(policy),
        ..wanted(&b)
    })]);
    agent.kill();
    assert_eq!(refusal(&a, SocketAddr::new(b.v4.into(), 8080)), None);
    assert_eq!(refusal(&a, SocketAddr::new(b.v6.into(), 8081)), None);
    assert_eq!(refusal(&a, SocketAddr::new(b.v4.into(), 8081)), REFUSED);
}
