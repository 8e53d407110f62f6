//! Which agent is meant.

use std::os::unix::net::UnixListener;

use crate::cli::{
    Global,
    reach::{node_name, socket},
};

#[test]
fn the_only_living_agent_is_meant() {
    let dir = tempfile::tempdir().unwrap();
    let global = Global::default();
    let none = socket(&global, &dir.path().join("missing")).unwrap_err();
    assert_eq!(none.code, 3);
    assert!(none.next.unwrap().contains("mesh-agent run"));
    assert_eq!(socket(&global, dir.path()).unwrap_err().code, 3);

    let bind = |name: &str| UnixListener::bind(dir.path().join(name)).unwrap();
    drop(bind("dead.sock"));
    assert_eq!(
        socket(&global, dir.path()).unwrap(),
        dir.path().join("dead.sock")
    );
    let _one = bind("n1.sock");
    std::fs::write(dir.path().join("notes"), "").unwrap();
    assert_eq!(
        socket(&global, dir.path()).unwrap(),
        dir.path().join("n1.sock")
    );
    let _two = bind("n2.sock");
    let several = socket(&global, dir.path()).unwrap_err();
    assert_eq!(several.code, 2);
    assert!(several.next.unwrap().contains("--node: n1, n2"));
}

#[test]
fn options_win() {
    let dir = tempfile::tempdir().unwrap();
    let mut global = Global {
        node: Some("n9".into()),
        ..Global::default()
    };
    assert_eq!(
        socket(&global, dir.path()).unwrap(),
        dir.path().join("n9.sock")
    );
    global.socket = Some("/tmp/x.sock".into());
    assert_eq!(
        socket(&global, dir.path()).unwrap(),
        std::path::Path::new("/tmp/x.sock")
    );
}

#[test]
fn node_names_are_safe_in_paths() {
    for good in ["n1", "ip-10-0-0-1.eu.compute.internal", "A_b"] {
        assert!(node_name(good).is_ok(), "{good}");
    }
    for bad in ["", ".", "..", "a/b", "-x", "a b", &"x".repeat(64)] {
        assert!(node_name(bad).is_err(), "{bad}");
    }
}
