//! What `mesh-agent run` was told.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use crate::telemetry::{TracingOptions, logging::LogFormat};

#[derive(Clone, Debug)]
pub struct AgentOptions {
    pub node: String,
    /// Directory of YAML files.
    pub config: PathBuf,
    /// The host's BPF filesystem.
    pub bpffs: PathBuf,
    /// `None`: found in /proc/mounts.
    pub cgroup2: Option<PathBuf>,
    /// Private folder of what survives a restart: the key and certificate of the built-in certificate authority.
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
    /// Label sets of the metrics of requests.
    pub requests_max: usize,
    /// Queries of requests go to the access log.
    pub log_query: bool,
    /// Where spans go; `None`: there are none.
    pub tracing: Option<TracingOptions>,
    pub identity: IdentityOptions,
}

/// Who signs, whom to trust beside that.
#[derive(Clone, Debug)]
pub struct IdentityOptions {
    pub ca: CaChoice,
    /// PEM file of roots that are trusted instead of those that the certificate authority names; re-read when it changes.
    pub trust_bundle: Option<PathBuf>,
    /// File of certificate revocation lists, PEM or DER; re-read when it changes.
    pub crl: Option<PathBuf>,
    /// Lifetime that certificates are asked for with.
    pub cert_ttl: Duration,
}

/// The certificate authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CaChoice {
    /// Of this node alone, in the state folder.
    BuiltIn,
    /// A service that speaks Istio's protocol: istiod, or `mesh-agent ca serve`.
    Istio {
        /// `https://HOST:PORT`
        url: String,
        /// Bearer token; re-read for each request.
        token_file: Option<PathBuf>,
        /// PEM file of the roots that its TLS certificate is verified by.
        root_file: Option<PathBuf>,
        cluster_id: String,
    },
}
