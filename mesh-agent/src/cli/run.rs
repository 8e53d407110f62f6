//! `mesh-agent run`

use std::{net::SocketAddr, ops::RangeInclusive, path::PathBuf, process::ExitCode, time::Duration};

use clap::Args;

use super::{Global, failure::Failure, reach};
use crate::{
    agent::{self, AgentOptions, CaChoice, IdentityOptions},
    api::GepDuration,
    telemetry::{
        TracingOptions,
        logging::{self, LogFormat},
    },
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
    /// Private folder of what survives a restart: the built-in certificate authority [default: /var/lib/mesh-agent/NODE]
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
    /// Label sets of the metrics of requests (each has three histograms); requests above it are counted in overflow series
    #[arg(long, value_name = "N", default_value_t = 2_000)]
    max_request_series: usize,
    /// Write the queries of requests to the access log; they may hold secrets
    #[arg(long)]
    access_log_query: bool,
    /// Collector that takes spans (OTLP over gRPC), such as http://127.0.0.1:4317 [default: no spans]
    #[arg(long, value_name = "URL", value_parser = collector)]
    otlp_endpoint: Option<String>,
    /// Share in percent of the requests that begin a trace here which are sampled; others follow their client's decision
    #[arg(long, value_name = "PERCENT", default_value_t = 1.0, value_parser = percent, requires = "otlp_endpoint")]
    trace_sampling: f64,
    #[command(flatten)]
    identity: Identity,
}

fn collector(text: &str) -> Result<String, String> {
    TracingOptions::check(text)
        .map(|_| text.to_owned())
        .map_err(|e| e.to_string())
}

fn percent(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|p| (0.0..=100.0).contains(p))
        .ok_or_else(|| "between 0 and 100".into())
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Identity")]
struct Identity {
    /// Who signs the certificates of workloads: `built-in` (this node alone), or the URL of a service that speaks
    /// Istio's protocol (istiod, or mesh-agent ca serve)
    #[arg(long, value_name = "built-in|URL", default_value = BUILT_IN, value_parser = ca_url)]
    ca: String,
    /// Bearer token for the certificate authority; re-read for each request
    #[arg(long, value_name = "FILE")]
    ca_token_file: Option<PathBuf>,
    /// Roots (PEM) that the certificate authority's own certificate is verified by
    #[arg(long, value_name = "FILE")]
    ca_root_file: Option<PathBuf>,
    /// Name of the cluster, as the certificate authority knows it
    #[arg(long, value_name = "NAME", default_value = "Kubernetes")]
    cluster_id: String,
    /// Roots (PEM) to trust instead of those that the certificate authority names; re-read when the file changes
    #[arg(long, value_name = "FILE")]
    trust_bundle: Option<PathBuf>,
    /// Certificate revocation lists (PEM or DER); re-read when the file changes
    #[arg(long, value_name = "FILE")]
    crl: Option<PathBuf>,
    /// Lifetime of the certificates that are asked for, such as 24h or 90m
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = cert_ttl)]
    cert_ttl: Duration,
}

const BUILT_IN: &str = "built-in";
/// Shorter ones leave no time to renew them, longer ones are not what an authority should sign.
const TTL: RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(90 * 86_400);

fn ca_url(text: &str) -> Result<String, String> {
    let host = text
        .strip_prefix("https://")
        .map(|rest| rest.trim_end_matches('/'));
    match host {
        _ if text == BUILT_IN => Ok(text.to_owned()),
        Some(host) if !host.is_empty() && !host.contains(['/', '?', '#', '@', ' ']) => {
            Ok(text.to_owned())
        }
        _ => Err(format!("{BUILT_IN} or https://HOST:PORT")),
    }
}

fn cert_ttl(text: &str) -> Result<Duration, String> {
    let ttl = text.parse::<GepDuration>().map_err(|e| e.to_string())?.0;
    if TTL.contains(&ttl) {
        Ok(ttl)
    } else {
        Err("between 1m and 2160h (90 days)".into())
    }
}

impl Identity {
    fn options(self) -> Result<IdentityOptions, Failure> {
        let ca = if self.ca == BUILT_IN {
            if self.ca_token_file.is_some() || self.ca_root_file.is_some() {
                return Err(Failure::usage(
                    "--ca-token-file and --ca-root-file are for a certificate authority elsewhere, and there is no --ca URL",
                )
                .next("Name it with --ca https://HOST:PORT, or leave them out: the built-in one needs neither."));
            }
            CaChoice::BuiltIn
        } else {
            CaChoice::Istio {
                url: self.ca,
                token_file: self.ca_token_file,
                root_file: self.ca_root_file,
                cluster_id: self.cluster_id,
            }
        };
        Ok(IdentityOptions {
            ca,
            trust_bundle: self.trust_bundle,
            crl: self.crl,
            cert_ttl: self.cert_ttl,
        })
    }
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
            closed_age: Duration::from_secs(self.closed_seconds),
            flows_max: self.max_series,
            requests_max: self.max_request_series,
            log_query: self.access_log_query,
            tracing: self.otlp_endpoint.map(|endpoint| TracingOptions {
                endpoint,
                ratio: self.trace_sampling / 100.0,
            }),
            identity: self.identity.options()?,
            node,
        })
    }
}
