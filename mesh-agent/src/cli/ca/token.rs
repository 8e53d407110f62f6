//! `mesh-agent ca token` and `mesh-agent ca revoke`

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use clap::Args;
use serde::Serialize;

use super::{Failure, Folder, Global, Screen, duration, failure};
use crate::{cli::output::Format, identity::moment};

/// A node that is not looked after for longer gets no certificates any more.
const MAX_TTL: Duration = Duration::from_secs(400 * 24 * 3600);

#[derive(Debug, Args)]
pub(in crate::cli) struct Token {
    #[command(flatten)]
    folder: Folder,
    /// How long the credential is good for
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
    ttl: Duration,
}

#[derive(Serialize)]
struct Made {
    token: String,
    id: String,
    node: String,
    expires: String,
}

impl Token {
    pub(super) fn execute(self, global: &Global, screen: &Screen) -> Result<ExitCode, Failure> {
        let Some(node) = &global.node else {
            return Err(Failure::usage("whose credential is it to be?").next(
                "Give the name of the node: --node NAME, as in spec.node of its workloads.",
            ));
        };
        if self.ttl.is_zero() || self.ttl > MAX_TTL {
            return Err(Failure::usage(
                "--ttl must be more than nothing and at most 9600h",
            ));
        }
        let state = self.folder.open()?;
        let (token, made) = state
            .issue(node, SystemTime::now(), self.ttl)
            .map_err(failure)?;
        let made = Made {
            token,
            id: made.id,
            node: made.node,
            expires: moment(made.expires),
        };
        match global.output {
            Format::Json | Format::Yaml => screen.serialized(global.output, &made)?,
            Format::Table | Format::Wide => {
                screen.print(&format!("{}\n", made.token))?;
                screen.remark(&format!(
                    "credential {} of node {}, good until {}; store it where only the node's agent reads it",
                    made.id, made.node, made.expires
                ));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Revoke {
    #[command(flatten)]
    folder: Folder,
    /// Names of credentials, as `ca token` and the authority's log show them
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// The list, if `ca serve` was given another one
    #[arg(long, value_name = "FILE")]
    revoked_tokens: Option<PathBuf>,
}

impl Revoke {
    pub(super) fn execute(self, global: &Global, screen: &Screen) -> Result<ExitCode, Failure> {
        let state = self.folder.open()?;
        let mut names = self.names;
        if let Some(node) = &global.node {
            let issued = state.issued().map_err(failure)?;
            names.extend(
                issued
                    .into_iter()
                    .filter(|one| one.node == *node)
                    .map(|one| one.id),
            );
            if names.is_empty() {
                screen.remark(&format!("node {node} has no credential that is still good"));
                return Ok(ExitCode::SUCCESS);
            }
        }
        if names.is_empty() {
            return Err(Failure::usage("which credential?").next(
                "Give its name, or --node NAME for all that were made for a node with this --state.",
            ));
        }
        let list = self
            .revoked_tokens
            .unwrap_or_else(|| state.revoked_tokens());
        let new = state.revoke(&list, &names).map_err(failure)?;
        match global.output {
            Format::Json | Format::Yaml => screen.serialized(global.output, &new)?,
            Format::Table | Format::Wide => {
                let lines: String = new.iter().map(|name| format!("revoked {name}\n")).collect();
                screen.print(&lines)?;
                screen.remark(&format!(
                    "{} holds them; a running authority refuses them from now on. Certificates that were signed before live on",
                    list.display()
                ));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
