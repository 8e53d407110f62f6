//! What `mesh-agent run` was told.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use crate::telemetry::logging::LogFormat;

#[derive(Clone, Debug)]
pub struct AgentOptions {
    pub node: String,
    /// Directory of YAML files.
    pub config: PathBuf,
    /// The host's BPF filesystem.
    pub bpffs: PathBuf,
    /// `None`: found in /proc/mounts.
    pub cgroup2: Option<PathBuf>,
    /// Reserved: nothing is kept there yet.
    pub state_dir: PathBuf,
    pub socket: PathBuf,
    pub metrics_addr: SocketAddr,
    pub log_format: LogFormat,
    /// Checked already.
    pub log_filter: String,
    /// Namespace whose policies apply to the whole mesh.
    pub root_namespace: String,
    /// `None`: one a CPU.
    pub workers: Option<usize>,
    /// `None`: from the limit of open files.
    pub max_connections: Option<u64>,
    /// Closed connections that are kept, and how long.
    pub closed_max: usize,
    pub closed_age: Duration,
    /// Label sets of the TCP metrics.
    pub flows_max: usize,
}
