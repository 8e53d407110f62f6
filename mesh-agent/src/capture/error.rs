//! What can go wrong in capture, in words for the operator.

use std::{io, net::IpAddr, path::PathBuf};

use crate::model::ResourceName;

/// Capture as a whole cannot start.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error(
        "no BPF filesystem at {path}: mount it on the host (mount -t bpf bpf {path}); in a container, mount the host's \
         into it"
    )]
    NoBpffs { path: PathBuf },
    #[error("cannot mount a BPF filesystem at {path}: {source}")]
    MountBpffs { path: PathBuf, source: io::Error },
    #[error(
        "no cgroup2 hierarchy in /proc/mounts: mount it (mount -t cgroup2 none /sys/fs/cgroup) or name it with --cgroup"
    )]
    NoCgroup2,
    #[error("another agent runs under the node name {node:?} on this machine ({path} is locked)")]
    Locked { node: String, path: PathBuf },
    #[error(
        "the pinned map {path} has another layout ({found}) than this agent's ({wanted}): stop every agent of this node, \
         run `mesh-agent release`, start again"
    )]
    Layout {
        path: PathBuf,
        found: String,
        wanted: String,
    },
    #[error("cannot load the kernel programs: {0}. `mesh-agent check` says what this kernel lacks")]
    Load(#[from] aya::EbpfError),
    #[error(
        "the kernel refused program {name}: {source}. `mesh-agent check` says what this kernel lacks"
    )]
    Program {
        name: &'static str,
        source: Box<aya::programs::ProgramError>,
    },
    #[error("the kernel object has no {0}: it was built for another version of the agent")]
    Missing(&'static str),
    #[error(
        "cannot attach {name} at {path}: {source}{}",
        if source.raw_os_error() == Some(libc::E2BIG) {
            ". 64 programs of this type are attached there already; `mesh-agent check` lists them"
        } else { "" }
    )]
    Attach {
        name: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
}

impl CaptureError {
    /// An error of the system with what was being done.
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// One workload cannot be captured; kept in its [`super::PodStatus`] and tried again.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    #[error("cannot open the network namespace {path}: {source}")]
    OpenNetns { path: PathBuf, source: io::Error },
    #[error("{path} is not a network namespace (yet)")]
    NotNetns { path: PathBuf },
    #[error("{path} is the host's own network namespace; it can never be enrolled")]
    HostNetns { path: PathBuf },
    #[error("{path} is already claimed by {by}: one namespace is one workload")]
    Claimed { path: PathBuf, by: ResourceName },
    #[error("{path} does not own {missing}; it has {}", list(has))]
    NotOwner {
        path: PathBuf,
        missing: IpAddr,
        has: Vec<IpAddr>,
    },
    #[error("{path} has no address but loopback; nothing can be captured")]
    NoAddress { path: PathBuf },
    #[error("address {address} is already captured for another namespace (cookie {cookie})")]
    AddressTaken { address: IpAddr, cookie: u64 },
    #[error(
        "another agent captures this namespace already (its sk_lookup program is attached): release it there"
    )]
    ForeignLookup,
    #[error("self-test failed: {0}")]
    SelfTest(String),
    #[error("{what}: {source}")]
    Io {
        what: &'static str,
        source: io::Error,
    },
    #[error("the namespace thread is gone")]
    ThreadGone,
}

impl EnrolError {
    pub(super) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

fn list(addresses: &[IpAddr]) -> String {
    if addresses.is_empty() {
        return "no address".into();
    }
    let words: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    words.join(", ")
}
