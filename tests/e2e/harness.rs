//! The harness itself: what a run leaves when it is killed, the next one removes; its peers and its eavesdropper do what
//! tests take them to do.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use mesh_tests::{
    NetNs, Node, eventually,
    hbone::{self, Peer, TunnelServer},
    pki::{self, Authority, Leaf, spiffe},
    run,
    sniff::Sniffer,
    tests,
    traffic::{self, Server},
};

tests! {
    a_killed_run_is_swept,
    drop_removes_also_on_panic,
    tunnel_peers_know_good_from_bad,
    the_eavesdropper_hears,
}

pub(crate) fn teardown() {}

fn netns_of(prefix: &str) -> Vec<PathBuf> {
    std::fs::read_dir("/run/netns")
        .map(|dir| {
            dir.flatten()
                .map(|e| e.path())
                .filter(|p| p.file_name().unwrap().to_string_lossy().starts_with(prefix))
                .collect()
        })
        .unwrap_or_default()
}

fn a_killed_run_is_swept() {
    // Another run of this very binary, in a test that takes long enough to be killed in.
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "proxy::slow_reader_holds_the_sender_back"])
        .env("MESH_TESTS_MESH", "off")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let prefix = format!("cm-{}-", child.id());
    eventually("it has made namespaces", Duration::from_secs(20), || {
        netns_of(&prefix).len() >= 3
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!netns_of(&prefix).is_empty(), "it left something");
    run::sweep_dead();
    // Another run's sweep may have been faster; what counts is that nothing stays.
    eventually("it is gone", Duration::from_secs(5), || {
        netns_of(&prefix).is_empty()
    });
}

fn drop_removes_also_on_panic() {
    let (tell, told) = std::sync::mpsc::channel();
    let result = std::thread::spawn(move || {
        let node = Node::new();
        let pod = node.pod("p");
        tell.send((node.path(), pod.path())).unwrap();
        // The hook stays silent for this payload.
        mesh_tests::prereq::skip("a panic on purpose");
    })
    .join();
    assert!(result.is_err());
    let (node, pod) = told.recv().unwrap();
    for path in [node, pod] {
        assert!(!Path::new(&path).exists(), "{}", path.display());
    }
    let ns = NetNs::new();
    let path = ns.path();
    drop(ns);
    assert!(!path.exists());
}

/// The peers of the tests among themselves: what they refuse, and that they serve each other.
fn tunnel_peers_know_good_from_bad() {
    let node = Node::new();
    let (a, b) = (node.pod("a"), node.pod("b"));
    let root = Authority::root("tests");
    let roots = Authority::store(&[&root]);
    let id = |name| spiffe("cluster.local", "shop", name);
    let below = root.intermediate("below");
    let server = TunnelServer::echo(&b, b.v4.into(), below.issue(&id("b")).server(&roots));
    let ask = |config| {
        hbone::run(async {
            let mut peer = Peer::open(&a, b.v4(hbone::PORT), &Arc::new(config)).await?;
            assert_eq!(peer.server, [id("b")]);
            let answer = peer.connect(b.v4(80)).await?;
            assert_eq!(answer.status, 200);
            answer.round_trip(b"hello").await
        })
    };
    let good = ask(root.issue(&id("a")).client(&roots));
    assert_eq!(good.unwrap(), b"hello");
    let asked = server.asked();
    assert_eq!(asked[0].client, [id("a")]);
    assert_eq!(asked[0].authority, b.v4(80).to_string());
    let other = Authority::root("others");
    for (what, config) in [
        (
            "expired",
            root.leaf(&Leaf::of(id("a")).expired()).client(&roots),
        ),
        (
            "early",
            root.leaf(&Leaf::of(id("a")).not_yet()).client(&roots),
        ),
        ("unknown root", other.issue(&id("a")).client(&roots)),
        ("nobody", pki::anonymous(&roots)),
        (
            "a client of others",
            root.issue(&id("a")).client(&Authority::store(&[&other])),
        ),
    ] {
        let refused = ask(config).expect_err(what);
        assert!(refused.is_connection(), "{what}: {refused}");
    }
    assert_eq!(server.asked().len(), 1);
}

fn the_eavesdropper_hears() {
    const MARKER: &[u8] = b"for-your-eyes-only";
    let (a, b) = (Node::new(), Node::new());
    Node::link(&a, &b);
    let (client, web) = (a.pod("client"), b.pod("web"));
    for v6 in [false, true] {
        let server = Server::echo(&web, web.addr(v6, 0));
        let sniffers = [Sniffer::start(&a, MARKER), Sniffer::start(&b, MARKER)];
        let stream = traffic::connect(&client, server.addr).unwrap();
        traffic::round_trip(&stream, &MARKER.repeat(2000)).unwrap();
        for sniffer in sniffers {
            let seen = sniffer.finish();
            assert!(seen.marked >= 2, "{seen:?}");
            assert_eq!(seen.tunnel_bytes, 0);
        }
    }
    // Without the marker it hears none.
    let server = Server::echo(&web, web.v4(15008));
    let sniffer = Sniffer::start(&a, MARKER);
    let mut stream = traffic::connect(&client, server.addr).unwrap();
    stream.write_all(b"hello").unwrap();
    traffic::round_trip(&stream, b"hello").unwrap();
    let seen = sniffer.finish();
    assert_eq!(seen.marked, 0);
    assert!(seen.tunnel_bytes > 0 && seen.tunnels.len() == 1, "{seen:?}");
}
