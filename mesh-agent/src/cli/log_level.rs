//! `mesh-agent log-level [FILTER]`

use std::process::ExitCode;

use clap::Args;

use super::{
    Global,
    failure::Failure,
    output::{Format, Screen},
    reach,
};
use crate::admin::api;

#[derive(Debug, Args)]
pub(super) struct LogLevel {
    /// A level (error, warn, info, debug, trace) or TARGET=LEVEL pairs: info,access=off,mesh_agent::proxy=debug.
    /// Without it the filter in effect is printed
    #[arg(value_name = "FILTER")]
    filter: Option<String>,
}

impl LogLevel {
    pub(super) async fn execute(
        &self,
        global: &Global,
        screen: &Screen,
    ) -> Result<ExitCode, Failure> {
        let client = reach::client(global)?;
        let level: api::LogLevel = match &self.filter {
            None => client.get("/v1/log-level").await?,
            Some(filter) => {
                let body = api::LogLevel {
                    filter: filter.clone(),
                };
                client.put("/v1/log-level", &body).await?
            }
        };
        match global.output {
            Format::Json | Format::Yaml => screen.serialized(global.output, &level)?,
            Format::Table | Format::Wide => screen.print(&format!("{}\n", level.filter))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
