//! What the kernel must offer before an agent can be tried: the BPF file system.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::sh;

const BPFFS: &str = "/sys/fs/bpf";

/// Mounts bpffs where the agent pins its maps, unless it is there.
pub(crate) fn mount_bpffs() -> Result<()> {
    if bpffs_mounted() {
        return Ok(());
    }
    println!("{BPFFS} is not mounted; the agent pins its maps there.");
    sh::require_root("mounting bpffs")?;
    sh::run(Command::new("mount").args(["-t", "bpf", "bpf", BPFFS]))
}

fn bpffs_mounted() -> bool {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    Path::new(BPFFS).is_dir()
        && mounts.lines().any(|line| {
            let mut fields = line.split_whitespace().skip(1);
            fields.next() == Some(BPFFS) && fields.next() == Some("bpf")
        })
}
