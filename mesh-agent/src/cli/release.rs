//! `mesh-agent release`: through the agent if it runs, else by itself.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use super::{
    Global,
    failure::Failure,
    output::{Format, Screen},
    reach,
};
use crate::{
    admin::{
        api::Released,
        client::{Client, ClientError},
    },
    capture,
};

#[derive(Debug, Args)]
pub(super) struct Release {
    /// The host's BPF filesystem, as it was given to `run`
    #[arg(long, value_name = "PATH", default_value = "/sys/fs/bpf")]
    bpffs: PathBuf,
}

impl Release {
    pub(super) async fn execute(
        &self,
        global: &Global,
        screen: &Screen,
    ) -> Result<ExitCode, Failure> {
        let node = self.node(global)?;
        let socket = global
            .socket
            .clone()
            .unwrap_or_else(|| reach::default_socket(&node));
        let released: Released = match Client::new(&socket).post("/v1/release").await {
            Ok(released) => released,
            // No agent: what it left in the kernel is found by the node's name.
            Err(ClientError::Missing { .. } | ClientError::Refused { .. }) => {
                let mut removed = capture::release_node(&self.bpffs, &node)
                    .map_err(|e| Failure::new(e.to_string()))?;
                if std::fs::remove_file(&socket).is_ok() {
                    removed.push(format!("socket {}", socket.display()));
                }
                Released { removed }
            }
            Err(error) => return Err(error.into()),
        };
        match global.output {
            Format::Json | Format::Yaml => screen.serialized(global.output, &released)?,
            Format::Table | Format::Wide if released.removed.is_empty() => {
                screen.print(&format!("nothing of node {node} was left\n"))?;
            }
            Format::Table | Format::Wide => {
                let lines: String = released
                    .removed
                    .iter()
                    .map(|what| format!("removed {what}\n"))
                    .collect();
                screen.print(&lines)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    fn node(&self, global: &Global) -> Result<String, Failure> {
        if let Some(node) = &global.node {
            return Ok(node.clone());
        }
        match reach::socket(global, std::path::Path::new(reach::RUN_DIR)) {
            Ok(socket) => Ok(socket
                .file_stem()
                .map(|stem| stem.to_string_lossy().into_owned())
                .unwrap_or_default()),
            // None ever ran, or it was killed and its socket removed: the default name.
            Err(failure) if failure.code == 3 => reach::host_name(),
            Err(failure) => Err(failure),
        }
    }
}
