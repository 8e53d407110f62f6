//! The two compilers that can build the kernel programs (architecture.md section 5).

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::deps::{self, cargo_tools};
use crate::sh;

pub(super) enum Toolchain {
    /// Debian's rustc-web with its ready-made core for bpfel-unknown-none: the canonical one.
    Debian,
    /// rustup's nightly with rust-src, which builds core itself.
    Nightly,
}

impl Toolchain {
    pub(super) fn usable(&self) -> bool {
        match self {
            Toolchain::Debian => deps::present(deps::Group::Kernel),
            Toolchain::Nightly => {
                let core = self.rustc_command().args(["--print", "sysroot"]).output();
                let sysroot = core.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
                let source =
                    sysroot.map(|s| Path::new(&s).join("lib/rustlib/src/rust/library/core"));
                source.is_ok_and(|path| path.is_dir()) && self.bpf_linker().is_ok()
            }
        }
    }

    pub(super) fn describe(&self) -> String {
        match self {
            Toolchain::Debian => "Debian's rustc-web and LLVM 22 (canonical)".to_owned(),
            Toolchain::Nightly => "rustup's nightly with rust-src".to_owned(),
        }
    }

    /// A cargo that builds for bpfel-unknown-none.
    pub(super) fn cargo(&self) -> Command {
        match self {
            Toolchain::Debian => {
                let mut cargo = sh::foreign("/usr/bin/cargo");
                cargo
                    .env("RUSTC", "/usr/bin/rustc")
                    // Debian's compiler is a stable one; the BPF target needs unstable features.
                    .env("RUSTC_BOOTSTRAP", "1")
                    .env("LLVM_PREFIX", cargo_tools::LLVM_PREFIX)
                    .env("LD_LIBRARY_PATH", cargo_tools::LLVM_LIB)
                    .env("PATH", path_with_cargo_bin());
                cargo
            }
            Toolchain::Nightly => {
                let mut cargo = sh::foreign("cargo");
                cargo
                    .args(["+nightly", "-Zbuild-std=core"])
                    .env("PATH", path_with_cargo_bin());
                cargo
            }
        }
    }

    fn rustc_command(&self) -> Command {
        match self {
            Toolchain::Debian => sh::foreign("/usr/bin/rustc"),
            Toolchain::Nightly => {
                let mut rustc = sh::foreign("rustc");
                rustc.arg("+nightly");
                rustc
            }
        }
    }

    pub(super) fn rustc(&self) -> Result<String> {
        Ok(sh::output(self.rustc_command().arg("-V"))?
            .trim()
            .to_owned())
    }

    /// The LLVM of the compiler; bpf-linker's is the same under the canonical toolchain.
    pub(super) fn llvm(&self) -> Result<String> {
        let verbose = sh::output(self.rustc_command().arg("-vV"))?;
        let line = verbose
            .lines()
            .find_map(|line| line.strip_prefix("LLVM version: "));
        let rustc = line.context("rustc -vV names no LLVM")?;
        match self {
            Toolchain::Debian => {
                let config = Path::new(cargo_tools::LLVM_PREFIX).join("bin/llvm-config");
                let linker = sh::output(Command::new(config).arg("--version"))?;
                Ok(format!("{rustc} (rustc), {} (bpf-linker)", linker.trim()))
            }
            Toolchain::Nightly => Ok(rustc.to_owned()),
        }
    }

    pub(super) fn bpf_linker(&self) -> Result<String> {
        let mut ask = Command::new(cargo_tools::path(cargo_tools::BPF_LINKER));
        ask.arg("--version")
            .env("LD_LIBRARY_PATH", cargo_tools::LLVM_LIB);
        Ok(sh::output(&mut ask)?.trim().to_owned())
    }
}

fn path_with_cargo_bin() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{}:{path}", sh::cargo_home().join("bin").display())
}
