//! BUILD.toml beside the object: what it was built from and with.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::sh;

/// What the committed object was made of.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) rustc: String,
    pub(super) llvm: String,
    pub(super) bpf_linker: String,
    /// SHA-256 over the sources, see [`hash_sources`].
    pub(super) sources: String,
    /// SHA-256 of the object.
    pub(super) object: String,
}

impl Record {
    pub(super) fn to_toml(&self) -> String {
        format!(
            "# Written by `cargo xtask ebpf`; `cargo xtask ebpf --check` compares.\n\
             rustc = \"{}\"\nllvm = \"{}\"\nbpf-linker = \"{}\"\nsources = \"{}\"\nobject = \"{}\"\n",
            self.rustc, self.llvm, self.bpf_linker, self.sources, self.object
        )
    }

    /// Reads what [`Record::to_toml`] writes: one `name = "value"` a line, no other TOML.
    pub(super) fn from_toml(text: &str) -> Result<Self> {
        let get = |name: &str| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(" = \""));
            let value = line
                .and_then(|rest| rest.strip_suffix('"'))
                .map(str::to_owned);
            value.with_context(|| format!("no field {name}"))
        };
        Ok(Self {
            rustc: get("rustc")?,
            llvm: get("llvm")?,
            bpf_linker: get("bpf-linker")?,
            sources: get("sources")?,
            object: get("object")?,
        })
    }

    pub(super) fn same_tools(&self, other: &Self) -> bool {
        (&self.rustc, &self.llvm, &self.bpf_linker)
            == (&other.rustc, &other.llvm, &other.bpf_linker)
    }

    pub(super) fn tools(&self) -> String {
        format!("{}, LLVM {}, {}", self.rustc, self.llvm, self.bpf_linker)
    }
}

/// Every file that decides what the object is: the programs, the shared types, their manifests and the lock file.
const SOURCES: [&str; 5] = [
    "mesh-ebpf/Cargo.toml",
    "mesh-ebpf/Cargo.lock",
    "mesh-ebpf/src",
    "mesh-common/Cargo.toml",
    "mesh-common/src",
];

/// One hash over names and contents of all sources, in the order of their names.
pub(super) fn hash_sources() -> Result<String> {
    let root = sh::root();
    let mut files = Vec::new();
    for source in SOURCES {
        collect(&root.join(source), &mut files)?;
    }
    for optional in ["mesh-ebpf/build.rs", "mesh-ebpf/.cargo/config.toml"] {
        let path = root.join(optional);
        if path.exists() {
            files.push(path);
        }
    }
    files.sort();
    let mut all = Vec::new();
    for file in files {
        let name = file
            .strip_prefix(&root)
            .unwrap_or(&file)
            .to_string_lossy()
            .into_owned();
        let bytes = fs::read(&file).with_context(|| format!("{}", file.display()))?;
        all.extend_from_slice(format!("{name}\0{}\0", bytes.len()).as_bytes());
        all.extend_from_slice(&bytes);
    }
    sh::sha256(&all)
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if path.is_file() {
        files.push(path.to_path_buf());
        return Ok(());
    }
    if !path.is_dir() {
        bail!("{} is missing", path.display());
    }
    for entry in fs::read_dir(path)? {
        collect(&entry?.path(), files)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let record = Record {
            rustc: "rustc 1.96.0 (Debian)".into(),
            llvm: "22.1.8".into(),
            bpf_linker: "bpf-linker 0.13.0".into(),
            sources: "ab".into(),
            object: "cd".into(),
        };
        assert_eq!(Record::from_toml(&record.to_toml()).unwrap(), record);
        let error = Record::from_toml("rustc = \"x\"\n").unwrap_err();
        assert!(error.to_string().contains("llvm"), "{error}");
    }
}
