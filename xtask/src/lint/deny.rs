//! cargo-deny: licences, duplicates and sources always; advisories when their database can be had.

use std::process::Command;

use anyhow::Result;

use crate::sh;

/// Both workspaces that go into the agent: its own, and that of the kernel programs it carries.
const MANIFESTS: [&str; 2] = ["Cargo.toml", "mesh-ebpf/Cargo.toml"];

pub(super) fn run() -> Result<()> {
    let advisories = fetch_advisories();
    for manifest in MANIFESTS {
        check(manifest, &["bans", "licenses", "sources"])?;
        if advisories {
            check(manifest, &["advisories"])?;
        }
    }
    if !advisories {
        println!(
            "deny: advisories NOT CHECKED: the RustSec database cannot be fetched from here; \
             run `cargo deny check advisories` where it can"
        );
    }
    Ok(())
}

fn check(manifest: &str, what: &[&str]) -> Result<()> {
    let mut cargo = sh::cargo();
    cargo.args(["deny", "--manifest-path", manifest, "check"]);
    // One deny.toml serves both: what it excuses for one workspace need not occur in the other.
    for unused in [
        "unmatched-skip",
        "unmatched-skip-root",
        "license-not-encountered",
        "license-exception-not-encountered",
    ] {
        cargo.args(["--allow", unused]);
    }
    sh::run(cargo.args(what))
}

/// Whether the advisory database is there and fresh. `timeout` because a firewall that drops lets the fetch hang.
fn fetch_advisories() -> bool {
    let mut fetch = Command::new("timeout");
    fetch
        .args(["60", "cargo", "deny", "fetch", "db"])
        .current_dir(sh::root());
    sh::succeeds(&mut fetch)
}
