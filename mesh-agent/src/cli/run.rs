//! `mesh-agent run`

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::Args;

use super::{Global, failure::Failure, reach};
use crate::{
    agent::{self, AgentOptions},
    telemetry::logging::{self, LogFormat},
};

#[derive(Debug, Args)]
pub(super) struct Run {
    /// Directory of YAML files; watched for changes
    #[arg(long, value_name = "DIR")]
    config: PathBuf,
    /// The host's BPF filesystem
    #[arg(long, value_name = "PATH", default_value = "/sys/fs/bpf")]
    bpffs: PathBuf,
    /// Root of cgroup2 [default: from /proc/mounts]
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,
    /// Reserved for what will survive a restart; nothing is kept there yet [default: /var/lib/mesh-agent/NODE]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Where /metrics, /healthz and /readyz are served
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:15020")]
    metrics_addr: SocketAddr,
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
    /// Level or TARGET=LEVEL pairs; `access=off` silences the access log [default: RUST_LOG, else info]
    #[arg(long, value_name = "FILTER")]
    log_level: Option<String>,
    /// Namespace whose policies apply to the whole mesh
    #[arg(long, value_name = "NAMESPACE", default_value = "mesh-system")]
    root_namespace: String,
    /// Threads that carry connections [default: one a CPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    workers: Option<u16>,
    /// Connections at once [default: from the limit of open files]
    #[arg(long, value_name = "N")]
    max_connections: Option<u64>,
    /// Closed connections that are kept for `connections --closed`
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    closed_connections: usize,
    /// Seconds that they are kept
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    closed_seconds: u64,
    /// Label sets of the TCP metrics; connections above it are counted in the overflow series
    #[arg(long, value_name = "N", default_value_t = 5_000)]
    max_series: usize,
}

impl Run {
    pub(super) fn execute(self, global: &Global) -> Result<ExitCode, Failure> {
        if !self.config.is_dir() {
            return Err(Failure::usage(format!(
                "--config {} is not a directory",
                self.config.display()
            ))
            .next("Give the directory that holds the YAML files; it may be empty."));
        }
        let options = self.options(global)?;
        agent::run(options).map_err(|error| {
            Failure::new(format!("{error:#}"))
                .next("`mesh-agent check` says whether this machine has all that the agent needs.")
        })?;
        Ok(ExitCode::SUCCESS)
    }

    fn options(self, global: &Global) -> Result<AgentOptions, Failure> {
        let node = match &global.node {
            Some(node) => node.clone(),
            None => reach::host_name()?,
        };
        let log_filter = self
            .log_level
            .or_else(|| std::env::var("RUST_LOG").ok().filter(|v| !v.is_empty()))
            .unwrap_or_else(|| "info".into());
        logging::check_filter(&log_filter).map_err(|e| Failure::usage(e.to_string()))?;
        Ok(AgentOptions {
            socket: global
                .socket
                .clone()
                .unwrap_or_else(|| reach::default_socket(&node)),
            state_dir: self
                .state_dir
                .unwrap_or_else(|| PathBuf::from("/var/lib/mesh-agent").join(&node)),
            config: self.config,
            bpffs: self.bpffs,
            cgroup2: self.cgroup,
            metrics_addr: self.metrics_addr,
            log_format: self.log_format,
            log_filter,
            root_namespace: self.root_namespace,
            workers: self.workers.map(usize::from),
            max_connections: self.max_connections,
            closed_max: self.closed_connections,
            closed_age: std::time::Duration::from_secs(self.closed_seconds),
            flows_max: self.max_series,
            node,
        })
    }
}
