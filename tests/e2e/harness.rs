//! The harness itself: what a run leaves when it is killed, the next one removes.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use mesh_tests::{NetNs, Node, eventually, run, tests};

tests! { a_killed_run_is_swept, drop_removes_also_on_panic }

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
