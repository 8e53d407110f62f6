//! Istio's own pieces as peers: a Go program from tests/peers/istio, built into target/peers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result};

use crate::sh;

fn sources() -> PathBuf {
    sh::root().join("tests/peers/istio")
}

/// Where the program is, once built.
fn path() -> PathBuf {
    sh::target_dir().join("peers").join("istio-peer")
}

/// Whether it is there and no older than its sources.
pub(super) fn is_current() -> bool {
    let built = |path: &Path| fs::metadata(path)?.modified();
    let Ok(built) = built(&path()) else {
        return false;
    };
    newest(&sources()).is_some_and(|newest| newest <= built)
}

fn newest(dir: &Path) -> Option<SystemTime> {
    let entries = fs::read_dir(dir).ok()?.flatten();
    entries
        .filter_map(|entry| entry.metadata().ok()?.modified().ok())
        .max()
}

pub(super) fn install() -> Result<()> {
    let go = ["go", "/usr/local/go/bin/go"]
        .into_iter()
        .find(|go| sh::succeeds(Command::new(go).arg("version")))
        .context(
            "building Istio's pieces needs Go 1.26 or later (Debian's is older): https://go.dev/dl/",
        )?;
    sh::run(
        Command::new(go)
            .current_dir(sources())
            .args(["build", "-trimpath", "-ldflags=-s -w", "-o"])
            .arg(path())
            .arg("."),
    )
}
