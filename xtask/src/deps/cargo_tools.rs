//! Programs that `cargo install` builds.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::sh;

/// A crate whose binary is needed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tool {
    pub(crate) name: &'static str,
    pub(crate) why: &'static str,
    /// Exactly this version, when the version matters to what it makes.
    version: Option<&'static str>,
    args: &'static [&'static str],
    env: &'static [(&'static str, &'static str)],
}

/// Where the LLVM of the canonical toolchain lives.
pub(crate) const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
pub(crate) const LLVM_LIB: &str = "/usr/lib/llvm-22/lib";

pub(crate) const BPF_LINKER: Tool = Tool {
    name: "bpf-linker",
    why: "links Rust into a BPF object (built here against Debian's LLVM)",
    version: Some("0.13.0"),
    args: &["--no-default-features", "--features", "llvm-22"],
    env: &[("LLVM_PREFIX", LLVM_PREFIX), ("LD_LIBRARY_PATH", LLVM_LIB)],
};

pub(crate) const CARGO_DENY: Tool = Tool {
    name: "cargo-deny",
    why: "licences, duplicate crates, sources, advisories",
    version: None,
    args: &[],
    env: &[],
};

pub(crate) const CARGO_FUZZ: Tool = Tool {
    name: "cargo-fuzz",
    why: "libFuzzer over the parsers of foreign bytes",
    version: None,
    args: &[],
    env: &[],
};

/// Where the tool's binary is.
pub(crate) fn path(tool: Tool) -> PathBuf {
    sh::cargo_home().join("bin").join(tool.name)
}

/// Whether it is there in the wanted version, and what to say about it.
pub(super) fn state(tool: Tool) -> (bool, String) {
    let mut ask = Command::new(path(tool));
    ask.arg("--version").envs(tool.env.iter().copied());
    let Ok(said) = sh::output(&mut ask) else {
        return (false, String::new());
    };
    let said = said.trim();
    match tool.version {
        Some(wanted) if !said.ends_with(wanted) => {
            (false, format!(" [found {said}, want {wanted}]"))
        }
        _ => (true, format!(" [{said}]")),
    }
}

pub(super) fn install(tool: Tool) -> Result<()> {
    // The toolchain pinned for the project may be older than the tool wants: leave the choice to the outer default.
    let mut command = sh::foreign("cargo");
    command.current_dir("/").env_remove("CARGO_TARGET_DIR");
    command
        .args(["install", tool.name, "--locked"])
        .args(tool.args);
    if let Some(version) = tool.version {
        command.args(["--version", version, "--force"]);
    }
    command.envs(tool.env.iter().copied());
    sh::run(&mut command)
}
