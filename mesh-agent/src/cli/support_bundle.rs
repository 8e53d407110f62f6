//! `mesh-agent support-bundle`: the agent's state and this machine's, redacted, in one tar file.

use std::{
    fs::OpenOptions,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use clap::Args;

use super::{Global, failure::Failure, output::Screen, reach};
use crate::admin::api::{BundleFile, SupportBundle as Answer};

#[derive(Debug, Args)]
pub(super) struct SupportBundle {
    /// File to write [default: mesh-support-NODE-TIME.tar here]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

impl SupportBundle {
    pub(super) async fn execute(
        &self,
        global: &Global,
        screen: &Screen,
    ) -> Result<ExitCode, Failure> {
        let client = reach::client(global)?;
        let node = client
            .path()
            .file_stem()
            .map(|stem| stem.to_string_lossy().into_owned())
            .unwrap_or_default();
        let mut files = match client.post::<Answer>("/v1/support-bundle").await {
            Ok(answer) => answer.files,
            // An agent that does not answer is what many reports are about.
            Err(error) => vec![BundleFile {
                name: "agent-unreachable.txt".into(),
                content: format!("{error}\n"),
            }],
        };
        files.extend(machine());
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_secs());
        let stem = format!("mesh-support-{node}-{now}");
        let path = self
            .file
            .clone()
            .unwrap_or_else(|| PathBuf::from(format!("{stem}.tar")));
        write_tar(&path, &stem, &files, now)
            .map_err(|e| Failure::new(format!("cannot write {}: {e}", path.display())))?;
        screen.print(&format!("{}\n", path.display()))?;
        screen.remark(
            "Values whose names sound like secrets are redacted; read it before you send it.",
        );
        Ok(ExitCode::SUCCESS)
    }
}

/// Facts of the machine; none needs an agent.
fn machine() -> Vec<BundleFile> {
    let uname = rustix::system::uname();
    let mut files = vec![BundleFile {
        name: "machine.txt".into(),
        content: format!(
            "mesh-agent {}\nkernel {} {}\n{}\n",
            env!("CARGO_PKG_VERSION"),
            uname.release().to_string_lossy(),
            uname.machine().to_string_lossy(),
            uname.version().to_string_lossy()
        ),
    }];
    for (name, path) in [
        ("mounts.txt", "/proc/self/mounts"),
        ("os-release.txt", "/etc/os-release"),
        ("meminfo.txt", "/proc/meminfo"),
        ("netstat.txt", "/proc/net/netstat"),
        ("sockstat.txt", "/proc/net/sockstat"),
    ] {
        if let Ok(content) = std::fs::read_to_string(path) {
            files.push(BundleFile {
                name: name.into(),
                content,
            });
        }
    }
    files
}

/// Readable by the owner only: it names addresses and workloads.
pub(super) fn write_tar(
    path: &Path,
    folder: &str,
    files: &[BundleFile],
    mtime: u64,
) -> std::io::Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    let mut tar = tar::Builder::new(file);
    for file in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(file.content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(mtime);
        tar.append_data(
            &mut header,
            format!("{folder}/{}", file.name),
            file.content.as_bytes(),
        )?;
    }
    tar.into_inner()?.sync_all()
}
