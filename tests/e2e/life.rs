//! The agent and its pods come and go, under traffic.

use std::{
    io::ErrorKind,
    net::SocketAddr,
    process::Command,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use mesh_tests::{
    Agent, Bed, Config, Node, Pod,
    bed::{NAMESPACE, needs_mesh, vips},
    bpf, command,
    config::{Service, Workload},
    eventually, eventually_some, tests,
    traffic::{self, End, Server},
};

use crate::common::{
    INBOUND, OUTBOUND, PROXIED, echoes, is_captured, must_be_refused, must_be_reset, must_echo,
    ping, records,
};

tests! {
    enrol_and_release_under_load(deadline = 120),
    killed_and_closed,
    killed_and_open,
    restart_with_changed_configuration,
    pid_of_the_dead_agent_reused,
    namespace_deleted_is_really_gone,
    namespace_made_again_is_enrolled_again,
    two_agents_on_one_kernel,
    term_drains_until_the_connections_end,
    term_ends_what_outlasts_the_drain,
    release_leaves_nothing,
    release_by_a_running_agent,
}

pub(crate) fn teardown() {}

/// Clients that must not see one error while `change` happens.
fn under_load<R>(routes: &[(&Pod, SocketAddr)], change: impl FnOnce() -> R) -> R {
    let stop = AtomicBool::new(false);
    let done: Vec<AtomicU64> = routes.iter().map(|_| AtomicU64::new(0)).collect();
    std::thread::scope(|scope| {
        for ((client, to), done) in routes.iter().zip(&done) {
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let stream = traffic::connect(client, *to)
                        .unwrap_or_else(|e| panic!("{} to {to}: {e}", client.name));
                    // Two steps with a breath in between, so that many are half done at any time.
                    ping(&stream).unwrap_or_else(|e| panic!("{} to {to}: {e}", client.name));
                    echoes(&stream);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // Also when `change` panics: the threads of the scope wait for it.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let result = change();
            for done in &done {
                let before = done.load(Ordering::Relaxed);
                eventually("the load goes on", Duration::from_secs(10), || {
                    done.load(Ordering::Relaxed) > before + 5
                });
            }
            result
        }));
        stop.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn enrol_and_release_under_load() {
    let mut bed = Bed::plan().pods(&["client", "web1", "ext"]).prepare();
    for pod in ["client", "web1", "ext"] {
        bed.set_enrolled(pod, false);
    }
    if bed_mesh() {
        bed.start_unenrolled();
    }
    let (client, web, ext) = (bed.pod("client"), bed.pod("web1"), bed.pod("ext"));
    let in_web = Server::echo(web, web.v4(0));
    let in_web6 = Server::echo(web, web.v6(0));
    let in_ext = Server::echo(ext, ext.v4(0));
    let old = [
        traffic::connect(client, in_ext.addr).unwrap(),
        traffic::connect(ext, in_web.addr).unwrap(),
        traffic::connect(client, in_web6.addr).unwrap(),
    ];
    for stream in &old {
        ping(stream).unwrap();
    }
    let routes: [(&Pod, SocketAddr); 4] = [
        (client, in_ext.addr),
        (ext, in_web.addr),
        (client, in_web.addr),
        (client, in_web6.addr),
    ];
    under_load(&routes, || {
        for _ in 0..3 {
            for pod in ["client", "web1"] {
                bed.set_enrolled(pod, true);
                bed.wait_state(pod, "enrolled");
            }
            let during = traffic::connect(client, in_web.addr).unwrap();
            ping(&during).unwrap();
            is_captured(&bed, &during, OUTBOUND);
            for stream in &old {
                ping(stream).expect("a connection older than the enrolment");
            }
            for pod in ["client", "web1"] {
                bed.set_enrolled(pod, false);
            }
            // A captured connection outlives the release of its pod as long as the drain allows.
            for _ in 0..10 {
                ping(&during).expect("a captured connection after the release");
            }
            echoes(&during);
            for pod in ["client", "web1"] {
                bed.wait_state(pod, "not enrolled");
            }
        }
    });
    for stream in &old {
        echoes(stream);
    }
}

fn bed_mesh() -> bool {
    mesh_tests::bed::mesh_is_on()
}

/// The usual bed of the tests below: an enrolled client and server, an outsider, a service.
fn bed(policy: &str) -> Bed {
    needs_mesh();
    let plan = Bed::plan()
        .pods(&["client", "web1"])
        .outsider("ext")
        .service("web", &[(80, 8080)]);
    if policy.is_empty() {
        plan.start()
    } else {
        plan.mesh_policy(policy).start()
    }
}

fn killed_and_closed() {
    let bed = bed("");
    let (client, web, ext) = (bed.pod("client"), bed.pod("web1"), bed.pod("ext"));
    let in_ext = Server::echo(ext, ext.v4(0));
    let in_web = Server::echo(web, web.v4(8080));
    let held = traffic::connect(client, in_ext.addr).unwrap();
    ping(&held).unwrap();
    let steered = traffic::connect(ext, in_web.addr).unwrap();
    ping(&steered).unwrap();
    bed.agent().kill();
    // What went through the agent dies with it, and is told so.
    assert_eq!(traffic::read_to_end(&held).1, End::Reset);
    assert_eq!(traffic::read_to_end(&steered).1, End::Reset);
    let accepted = (in_ext.count(), in_web.count());
    for _ in 0..5 {
        must_be_refused(client, in_ext.addr);
        must_be_refused(client, bed.service("web", false, 80));
        must_be_refused(client, in_web.addr);
        must_be_reset(ext, in_web.addr, Duration::from_secs(1));
    }
    assert_eq!(
        accepted,
        (in_ext.count(), in_web.count()),
        "nothing came through"
    );
    // Loopback and strangers are not the mesh's business.
    let local = Server::echo(web, (std::net::Ipv4Addr::LOCALHOST, 0).into());
    must_echo(web, local.addr);
    bed.agent().restart();
    for (from, to) in [
        (client, in_ext.addr),
        (ext, in_web.addr),
        (client, in_web.addr),
        (client, bed.service("web", false, 80)),
    ] {
        must_echo(from, to);
    }
    let stream = traffic::connect(client, in_ext.addr).unwrap();
    is_captured(&bed, &stream, OUTBOUND);
    echoes(&stream);
}

fn killed_and_open() {
    let bed = bed("  failPolicy: open");
    let (client, web, ext) = (bed.pod("client"), bed.pod("web1"), bed.pod("ext"));
    let in_ext = Server::echo(ext, ext.v4(0));
    let in_web = Server::echo(web, web.v4(8080));
    must_echo(client, in_ext.addr);
    bed.agent().kill();
    for (from, server) in [(client, &in_ext), (ext, &in_web), (client, &in_web)] {
        let stream = traffic::connect(from, server.addr).unwrap();
        let me = stream.local_addr().unwrap();
        echoes(&stream);
        assert_eq!(server.last_seen().peer, me, "plain, nobody in between");
    }
    // An address that only the mesh knows is nowhere to go, and connect() says so at once.
    must_be_refused(client, bed.service("web", false, 80));
    must_be_refused(ext, web.v4(9));
    bed.agent().restart();
    must_echo(client, bed.service("web", false, 80));
    let stream = traffic::connect(client, in_ext.addr).unwrap();
    is_captured(&bed, &stream, OUTBOUND);
    echoes(&stream);
}

/// Everything that can change while nobody looks.
fn restart_with_changed_configuration() {
    needs_mesh();
    let mut bed = Bed::plan()
        .pods(&["client", "web1", "web2"])
        .outsider("late")
        .outsider("ext")
        .service("web", &[(80, 8080)])
        .start();
    let ext = std::sync::Arc::clone(bed.pod("ext"));
    let web1 = std::sync::Arc::clone(bed.pod("web1"));
    let one = Server::named(&web1, web1.v4(8080), "web1");
    bed.agent().kill();
    // web1 leaves the mesh, web2's namespace is gone, late joins; ports open and close; the policy changes.
    bed.set_enrolled("web1", false);
    let web2 = bed.take_pod("web2");
    let wire = web2.veth.clone();
    bed.config
        .remove(&format!("workload-{NAMESPACE}-web2.yaml"));
    drop(web2);
    let late = std::sync::Arc::clone(bed.pod("late"));
    bed.config
        .workload(&Workload::of(&late, NAMESPACE, bed.node.name()));
    let in_late = Server::echo(&late, late.v4(0));
    let in_client = Server::echo(bed.pod("client"), bed.pod("client").v4(0));
    bed.config.mesh_policy("  outbound: registered-only");
    bed.agent().run();
    bed.agent().wait_ready();
    bed.agent()
        .wait_enrolled(&[format!("{NAMESPACE}/client"), format!("{NAMESPACE}/late")]);
    bed.wait_state("web1", "not enrolled");
    let stream = traffic::connect(&ext, one.addr).unwrap();
    let me = stream.local_addr().unwrap();
    assert_eq!(traffic::round_trip(&stream, b"?").unwrap(), b"web1");
    assert_eq!(one.last_seen().peer, me, "web1 was released");
    // web1 itself dials plainly; late and the client's new port are steered.
    for server in [&in_late, &in_client] {
        let stream = traffic::connect(&ext, server.addr).unwrap();
        ping(&stream).unwrap();
        assert!(
            records(&bed)
                .iter()
                .any(|r| r.local == server.addr && r.direction == INBOUND && r.path == PROXIED),
            "{} is not steered",
            server.addr
        );
        echoes(&stream);
    }
    let stranger = Server::echo(&ext, ext.v4(0));
    must_be_reset(bed.pod("client"), stranger.addr, Duration::from_secs(2));
    assert_eq!(stranger.count(), 0);
    eventually(
        "the deleted namespace is gone",
        Duration::from_secs(10),
        || !bed.node.has_wire(&wire),
    );
}

/// Whoever has the dead agent's process id is still captured: nothing is exempt by pid.
fn pid_of_the_dead_agent_reused() {
    // One at a time: the next pid is a thing of the whole machine.
    static ONE: Mutex<()> = Mutex::new(());
    let _one: MutexGuard<'_, ()> = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let bed = bed("");
    let (client, ext) = (bed.pod("client"), bed.pod("ext"));
    let server = Server::echo(ext, ext.v4(0));
    must_echo(client, server.addr);
    let pid = bed.agent().pid();
    bed.agent().kill();
    let script = format!(
        "exec 3<>/dev/tcp/{}/{} && echo connected",
        ext.v4,
        server.port()
    );
    let count = server.count();
    let answer = eventually_some(
        "a process with the agent's pid",
        Duration::from_secs(60),
        || {
            let mut command = Command::new("bash");
            command.args(["-c", &script]);
            command
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped());
            // On one thread: a new one would take the number for itself.
            let child = client.enter(|| {
                std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string())?;
                command.spawn()
            });
            let child = child.map_err(|e| e.to_string())?;
            let got = child.id();
            let out = child.wait_with_output().map_err(|e| e.to_string())?;
            if got == pid {
                Ok(out)
            } else {
                Err(format!("got pid {got}"))
            }
        },
    );
    assert!(!answer.status.success(), "it got through: {answer:?}");
    assert_eq!(server.count(), count);
}

fn namespace_deleted_is_really_gone() {
    let mut bed = bed("");
    let client = std::sync::Arc::clone(bed.pod("client"));
    let web = bed.take_pod("web1");
    let in_web = Server::echo(&web, web.v4(8080));
    let held = traffic::connect(&client, in_web.addr).unwrap();
    ping(&held).unwrap();
    let out = traffic::connect(&web, in_web.addr).unwrap();
    ping(&out).unwrap();
    let wire = web.veth.clone();
    drop((in_web, out));
    drop(held);
    web.delete();
    drop(web);
    // The wire's other end goes when the kernel destroys the namespace, and only then.
    eventually_some(
        "the namespace is destroyed",
        Duration::from_secs(15),
        || {
            if bed.node.has_wire(&wire) {
                Err("its veth is still there: something holds the namespace".into())
            } else {
                Ok(())
            }
        },
    );
    assert_ne!(
        bed.agent()
            .workload_state(&format!("{NAMESPACE}/web1"))
            .as_deref(),
        Some("enrolled")
    );
    must_be_reset(
        &client,
        bed.service("web", false, 80),
        Duration::from_secs(12),
    );
}

fn namespace_made_again_is_enrolled_again() {
    let mut bed = bed("");
    let ext = std::sync::Arc::clone(bed.pod("ext"));
    let web = bed.take_pod("web1");
    let again = bed.node.replace(web);
    eventually_some("enrolled again", Duration::from_secs(15), || {
        match bed
            .agent()
            .workload_state(&format!("{NAMESPACE}/web1"))
            .as_deref()
        {
            Some("enrolled") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let server = Server::echo(&again, again.v4(8080));
    eventually("it is steered", Duration::from_secs(10), || {
        let Ok(stream) = traffic::connect(&ext, server.addr) else {
            return false;
        };
        ping(&stream).is_ok()
            && records(&bed)
                .iter()
                .any(|r| r.local == server.addr && r.direction == INBOUND && r.path == PROXIED)
    });
    must_echo(bed.pod("client"), bed.service("web", false, 80));
}

fn two_agents_on_one_kernel() {
    needs_mesh();
    let (left, right) = (Node::new(), Node::new());
    Node::link(&left, &right);
    let (client, web) = (left.pod("client"), right.pod("web1"));
    let config = Config::new();
    config.namespace(NAMESPACE, true);
    config.workload(&Workload::of(&client, NAMESPACE, left.name()));
    config.workload(&Workload::of(&web, NAMESPACE, right.name()));
    config.service(&Service {
        namespace: NAMESPACE.into(),
        name: "web".into(),
        vips: vips(1).to_vec(),
        ports: vec![(80, "8080".into())],
        app: "web".into(),
        client_ip_affinity: false,
    });
    // One authority for both, or neither would trust the other.
    let state = mesh_tests::run::folder().join("two-agents");
    let agents = [&left, &right].map(|node| {
        let agent = Agent::prepare(
            node,
            &config,
            &["--state-dir", &state.display().to_string()],
        );
        agent.run();
        agent.wait_ready();
        agent
    });
    let names = [format!("{NAMESPACE}/client"), format!("{NAMESPACE}/web1")];
    for (agent, own) in agents.iter().zip(&names) {
        agent.wait_enrolled(std::slice::from_ref(own));
    }
    for (agent, other) in agents.iter().zip(names.iter().rev()) {
        assert_eq!(agent.workload_state(other).as_deref(), Some("not enrolled"));
    }
    let server = Server::echo(&web, web.v4(8080));
    let to = SocketAddr::new(vips(1)[0], 80);
    let stream = traffic::connect(&client, to).unwrap();
    ping(&stream).unwrap();
    // Each kernel map holds its own pods' end and nothing else.
    for (agent, direction) in agents.iter().zip([1, 2]) {
        let found = bpf::dump(agent.node(), "conns");
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0]["value"]["direction"], direction);
    }
    echoes(&stream);
    assert_eq!(server.last_seen().peer.ip(), client.v4);
    // One dies: the other's pods do not care.
    agents[0].kill();
    must_be_refused(&client, to);
    let ext = right.pod("ext");
    must_echo(&ext, server.addr);
    agents[0].cli(&["release"]);
    assert!(!bpf::pins(agents[0].node()).exists());
    let stream = traffic::connect(&ext, server.addr).unwrap();
    ping(&stream).unwrap();
    assert_eq!(bpf::dump(agents[1].node(), "conns").len(), 1);
    echoes(&stream);
}

fn term_drains_until_the_connections_end() {
    let bed = bed("");
    let (client, ext) = (bed.pod("client"), bed.pod("ext"));
    let server = Server::echo(ext, ext.v4(0));
    let held = traffic::connect(client, server.addr).unwrap();
    ping(&held).unwrap();
    bed.agent().term();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        ping(&held).expect("a draining agent still carries");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(bed.agent().is_running(), "it waits for the connection");
    echoes(&held);
    drop(held);
    let code = bed.agent().wait_end(Duration::from_secs(10));
    assert_eq!(code, Some(0), "well before the drain timeout of 30 s");
    // A stopped agent is as gone as a killed one: the fail policy holds.
    must_be_refused(client, server.addr);
}

fn term_ends_what_outlasts_the_drain() {
    let bed = bed("  drainTimeout: 3s");
    let (client, ext) = (bed.pod("client"), bed.pod("ext"));
    let server = Server::echo(ext, ext.v4(0));
    let held = traffic::connect(client, server.addr).unwrap();
    ping(&held).unwrap();
    let began = Instant::now();
    bed.agent().term();
    let (got, end) = traffic::read_to_end(&held);
    let took = began.elapsed();
    assert_eq!(
        (got.as_slice(), end),
        (&b""[..], End::Reset),
        "after {took:?}"
    );
    assert!(
        (Duration::from_millis(2500)..Duration::from_secs(6)).contains(&took),
        "{took:?}"
    );
    assert_eq!(bed.agent().wait_end(Duration::from_secs(10)), Some(0));
    assert!(
        bed.agent().log().contains("drained"),
        "the access log names the reason"
    );
}

/// Ids of the programs, links and maps that a node holds in the kernel.
fn kernel_objects(node: &str) -> Vec<(&'static str, u64)> {
    let mut found = Vec::new();
    let mut folders = vec![bpf::pins(node)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            for kind in ["link", "prog", "map"] {
                let out = Command::new("bpftool")
                    .args(["-j", kind, "show", "pinned"])
                    .arg(&path)
                    .output()
                    .unwrap();
                if let Ok(json) = serde_json::from_slice::<serde_json::Value>(&out.stdout)
                    && let Some(id) = json["id"].as_u64()
                {
                    found.push((kind, id));
                    if let Some(prog) = json["prog_id"].as_u64() {
                        found.push(("prog", prog));
                    }
                }
            }
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

fn kernel_has((kind, id): (&str, u64)) -> bool {
    let out = Command::new("bpftool")
        .args(["-j", kind, "show", "id", &id.to_string()])
        .output()
        .unwrap();
    out.status.success()
}

fn all_is_gone(bed: &Bed, node: &str, objects: &[(&'static str, u64)]) {
    // The kernel frees programs a moment after the last reference.
    eventually_some(
        "the kernel objects are gone",
        Duration::from_secs(10),
        || {
            let left: Vec<_> = objects.iter().filter(|o| kernel_has(**o)).collect();
            if left.is_empty() {
                Ok(())
            } else {
                Err(format!("{left:?}"))
            }
        },
    );
    assert!(!std::path::Path::new("/sys/fs/bpf/mesh").join(node).exists());
    for pod in ["client", "web1"] {
        let listening = command::stdout(bed.pod(pod), "ss", &["-Htln"], Duration::from_secs(5));
        assert_eq!(listening, "", "{pod} still has listeners");
    }
}

fn release_leaves_nothing() {
    let bed = bed("");
    let (client, ext) = (bed.pod("client"), bed.pod("ext"));
    let server = Server::echo(ext, ext.v4(0));
    must_echo(client, server.addr);
    let node = bed.agent().node().to_owned();
    let objects = kernel_objects(&node);
    for kind in ["link", "map", "prog"] {
        assert!(objects.iter().any(|(k, _)| *k == kind), "{objects:?}");
    }
    bed.agent().kill();
    must_be_refused(client, server.addr);
    let out = bed.agent().cli(&["release"]);
    assert!(out.status.success(), "{out:?}");
    assert!(!out.stdout.is_empty(), "it says what it removed");
    all_is_gone(&bed, &node, &objects);
    // Plain again.
    let stream = traffic::connect(client, server.addr).unwrap();
    let me = stream.local_addr().unwrap();
    echoes(&stream);
    assert_eq!(server.last_seen().peer, me);
    // And once more is no error.
    assert!(bed.agent().cli(&["release"]).status.success());
}

/// `release` while the agent runs: it lets go of everything, then ends or stays without pods; traffic is plain.
fn release_by_a_running_agent() {
    let bed = bed("");
    let (client, ext) = (bed.pod("client"), bed.pod("ext"));
    let server = Server::echo(ext, ext.v4(0));
    must_echo(client, server.addr);
    let node = bed.agent().node().to_owned();
    let objects = kernel_objects(&node);
    let out = bed.agent().cli(&["release"]);
    assert!(out.status.success(), "{out:?}");
    all_is_gone(&bed, &node, &objects);
    match traffic::connect(client, server.addr) {
        Ok(stream) => {
            let me = stream.local_addr().unwrap();
            echoes(&stream);
            assert_eq!(server.last_seen().peer, me);
        }
        Err(e) => assert_ne!(e.kind(), ErrorKind::ConnectionRefused, "{e}"),
    }
}
