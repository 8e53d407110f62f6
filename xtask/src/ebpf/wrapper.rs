//! This program as cargo's RUSTC_WRAPPER while the kernel programs are built.
//!
//! Cargo hashes the absolute path of a crate outside its workspace into the crate's id, and the id is part of every
//! symbol name: mesh-common lies beside mesh-ebpf, so two checkouts would give two objects. The wrapper replaces that
//! hash for our own two crates; `--remap-path-prefix` does the rest.

use std::ffi::OsString;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

/// Set in the environment of the cargo that calls us.
pub(crate) const ENV: &str = "MESH_XTASK_RUSTC_WRAPPER";

/// Runs the compiler as cargo asked, our crates under a name that does not depend on where they lie.
pub(crate) fn run() -> Result<ExitCode> {
    let mut args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if args.is_empty() {
        anyhow::bail!("{ENV} is set, but cargo did not call us");
    }
    let rustc = args.remove(0);
    fix_id(&mut args);
    let status = Command::new(&rustc)
        .args(&args)
        .status()
        .context("could not start rustc")?;
    Ok(u8::try_from(status.code().unwrap_or(1)).map_or(ExitCode::FAILURE, ExitCode::from))
}

fn fix_id(args: &mut [OsString]) {
    let name = args.iter().position(|arg| arg == "--crate-name");
    let Some(name) = name.and_then(|at| args.get(at + 1)).cloned() else {
        return;
    };
    if name != "mesh_common" && name != "mesh_ebpf" {
        return;
    }
    for arg in args {
        if arg.to_string_lossy().starts_with("metadata=") {
            *arg = OsString::from(format!("metadata={}", name.to_string_lossy()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixed(line: &str) -> String {
        let mut args: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        fix_id(&mut args);
        args.join(std::ffi::OsStr::new(" ")).into_string().unwrap()
    }

    #[test]
    fn only_our_crates_lose_their_path() {
        assert_eq!(
            fixed("--crate-name mesh_common -C metadata=ab -C extra-filename=-ab"),
            "--crate-name mesh_common -C metadata=mesh_common -C extra-filename=-ab"
        );
        assert_eq!(
            fixed("--crate-name aya_ebpf -C metadata=ab"),
            "--crate-name aya_ebpf -C metadata=ab"
        );
        assert_eq!(fixed("-vV"), "-vV");
    }
}
