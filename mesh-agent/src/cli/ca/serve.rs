//! `mesh-agent ca serve`

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::{Failure, Folder, duration, failure};
use crate::{
    api::Environment,
    catalog::{Catalog, CatalogOptions},
    cli::reach,
    discovery::file::{FileOptions, FileSource},
    identity::server::{CaServer, CaServerOptions, NodeTokens, State},
    model::TrustDomain,
    telemetry::{
        Telemetry, TelemetryOptions,
        logging::{self, LogFormat},
    },
};

/// How often the configuration is compared with what is in effect, whatever the kernel's watch says.
const POLL: Duration = Duration::from_secs(2);
/// When the process goes, whatever still runs gets this long.
const LAST_WORDS: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub(in crate::cli) struct Serve {
    #[command(flatten)]
    folder: Folder,
    /// Where the certificate service is
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:15012")]
    listen: SocketAddr,
    /// Directory of YAML files that says which workloads are on which node; watched [default: config in --state]
    #[arg(long, value_name = "DIR")]
    config: Option<PathBuf>,
    /// Namespace whose policies apply to the whole mesh
    #[arg(long, value_name = "NAMESPACE", default_value = "mesh-system")]
    root_namespace: String,
    /// Sign only identities of this trust domain [default: what the configuration says]
    #[arg(long, value_name = "NAME", value_parser = trust_domain)]
    trust_domain: Option<TrustDomain>,
    /// Name in the TLS certificate of the service; again for more [default: this host's name, localhost]
    #[arg(long, value_name = "NAME")]
    dns_name: Vec<String>,
    /// Address in the TLS certificate of the service; again for more [default: that of --listen, loopback]
    #[arg(long, value_name = "ADDRESS")]
    ip: Vec<IpAddr>,
    /// Longest life of a certificate
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
    cert_ttl_max: Duration,
    /// List of revoked credentials, one name (jti) a line; read again when it changes [default: revoked-tokens in --state]
    #[arg(long, value_name = "FILE")]
    revoked_tokens: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
    /// Level or TARGET=LEVEL pairs; the decisions are the target `ca` [default: RUST_LOG, else info]
    #[arg(long, value_name = "FILTER")]
    log_level: Option<String>,
}

fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    TrustDomain::new(text).map_err(|error| error.to_string())
}

impl Serve {
    pub(super) fn execute(self) -> Result<ExitCode, Failure> {
        let log_filter = self
            .log_level
            .clone()
            .or_else(|| std::env::var("RUST_LOG").ok().filter(|v| !v.is_empty()))
            .unwrap_or_else(|| "info".into());
        logging::check_filter(&log_filter).map_err(|e| Failure::usage(e.to_string()))?;
        let state = self.folder.open()?;
        let config = self.config(&state)?;
        // It counts the lines that a slow reader of the log misses.
        let telemetry = Telemetry::new(TelemetryOptions::default());
        let (_log, _flush) = logging::init(self.log_format, &log_filter, &telemetry)
            .map_err(|error| Failure::new(error.to_string()))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .thread_name("mesh-ca")
            .build()?;
        let result = runtime.block_on(self.serve(&state, config));
        runtime.shutdown_timeout(LAST_WORDS);
        result.map(|()| ExitCode::SUCCESS)
    }

    fn config(&self, state: &State) -> Result<PathBuf, Failure> {
        match &self.config {
            Some(dir) if dir.is_dir() => Ok(dir.clone()),
            Some(dir) => Err(Failure::usage(format!(
                "--config {} is not a directory",
                dir.display()
            ))
            .next("Give the directory of YAML files that the agents run with.")),
            None => {
                let dir = state.dir().join("config");
                std::fs::create_dir_all(&dir)?;
                Ok(dir)
            }
        }
    }

    async fn serve(self, state: &State, config: PathBuf) -> Result<(), Failure> {
        let mut term = signal(SignalKind::terminate())?;
        let mut int = signal(SignalKind::interrupt())?;
        state.ensure_token_key().map_err(failure)?;
        let tokens = NodeTokens::open(state, self.revoked_tokens.clone())
            .map_err(|error| Failure::new(format!("node credentials: {error}")))?;
        let catalog = Catalog::with_options(CatalogOptions {
            root_namespace: self.root_namespace.clone(),
            // It is on no node: no workload is its own.
            ..CatalogOptions::new("")
        });
        let source = follow(config, &self.root_namespace, &catalog).await?;
        let options = self.options()?;
        let server = CaServer::bind(state, Arc::new(tokens), catalog, options)
            .await
            .map_err(|error| Failure::new(error.to_string()))?;
        let stop = async {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
        };
        let result = server.run(stop).await;
        drop(source);
        result.map_err(|error| Failure::new(error.to_string()))
    }

    fn options(self) -> Result<CaServerOptions, Failure> {
        let (mut dns_names, mut ips) = (self.dns_name, self.ip);
        if dns_names.is_empty() {
            dns_names = vec![reach::host_name()?, "localhost".to_owned()];
        }
        if ips.is_empty() {
            ips = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
            let own = self.listen.ip();
            if !own.is_unspecified() && !ips.contains(&own) {
                ips.push(own);
            }
        }
        Ok(CaServerOptions {
            listen: self.listen,
            dns_names,
            ips,
            ttl_max: self.cert_ttl_max,
            trust_domain: self.trust_domain,
        })
    }
}

/// A first configuration that is wrong keeps the authority from starting, as it does the agent.
async fn follow(
    dir: PathBuf,
    root_namespace: &str,
    catalog: &Arc<Catalog>,
) -> Result<FileSource, Failure> {
    let shown = dir.display().to_string();
    let options = FileOptions {
        dir,
        // Nothing of the configuration is about this machine.
        environment: Environment {
            root_namespace: root_namespace.to_owned(),
            ..Environment::default()
        },
        poll: POLL,
    };
    let catalog = Arc::clone(catalog);
    let source = tokio::task::spawn_blocking(move || FileSource::spawn(options, catalog))
        .await
        .map_err(|error| Failure::new(error.to_string()))??;
    if let Some(errors) = &source.status().error {
        return Err(Failure::new(format!(
            "the configuration is refused:\n  {}",
            errors.join("\n  ")
        ))
        .next(format!(
            "`mesh-agent config validate {shown}` says the same."
        )));
    }
    Ok(source)
}
