//! What a test needs from the machine. In CI a missing piece is a failure, elsewhere a named skip.

use std::{path::Path, process::Command};

/// A panic with this payload is a skip.
#[derive(Debug)]
pub struct Skip(pub String);

/// Ends the test as skipped.
pub fn skip(why: impl Into<String>) -> ! {
    std::panic::panic_any(Skip(why.into()))
}

/// Skips outside CI, fails in it.
pub fn missing(what: &str) -> ! {
    if in_ci() {
        panic!("missing on a CI machine: {what}");
    }
    skip(format!("needs {what}"))
}

pub fn in_ci() -> bool {
    std::env::var("CI").is_ok_and(|v| v == "true" || v == "1")
}

/// Needs every one of these programs.
pub fn programs(names: &[&str]) {
    for name in names {
        if find(name).is_none() {
            missing(&format!("the program {name}"));
        }
    }
}

/// Where a program is, /usr/sbin included (not on every user's PATH).
pub fn find(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin"])
        .map(|dir| Path::new(dir).join(name))
        .find(|p| p.is_file())
}

/// Needs Istio's pieces (tests/peers/istio), which `cargo xtask deps test` builds; gives the program.
pub fn istio_peer() -> std::path::PathBuf {
    // .../target/debug/deps/e2e-HASH
    let target = std::env::current_exe()
        .ok()
        .and_then(|path| Some(path.ancestors().nth(3)?.to_owned()))
        .unwrap_or_default();
    let path = target.join("peers/istio-peer");
    if !path.is_file() {
        missing("istio-peer: install Go 1.26 or later and run `cargo xtask deps test`");
    }
    path
}

/// Needs root and network namespaces.
pub fn namespaces() {
    if !rustix::process::geteuid().is_root() {
        missing("root");
    }
    programs(&["ip"]);
}

/// Needs BPF: cgroup2 and a mounted bpffs.
pub fn bpf() {
    namespaces();
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    if !mounts
        .lines()
        .any(|l| l.split(' ').nth(2) == Some("cgroup2"))
    {
        missing("a cgroup2 mount");
    }
    if !mounts.contains(" /sys/fs/bpf bpf ") {
        // Mounting it is what the agent's own check tells the operator to do.
        let mounted = Command::new("mount")
            .args(["-t", "bpf", "bpf", "/sys/fs/bpf"])
            .status()
            .is_ok_and(|s| s.success());
        if !mounted {
            missing("bpffs at /sys/fs/bpf");
        }
    }
}
