//! `mesh-agent ca rotate-root`

use std::{
    process::ExitCode,
    time::{Duration, SystemTime},
};

use clap::{Args, ValueEnum};

use super::{Failure, Folder, Global, Screen, duration};
use crate::{
    cli::output::Format,
    identity::server::{RotationError, Step},
};

#[derive(Debug, Args)]
pub(in crate::cli) struct RotateRoot {
    #[command(flatten)]
    folder: Folder,
    /// The step, in this order
    #[arg(value_enum)]
    step: Name,
    /// How long nodes must have had since the last step to renew their certificates: as long as those live
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
    wait: Duration,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Name {
    /// Makes a new root: nodes trust the old and the new one
    Prepare,
    /// Signs with the new root; the old one is still trusted
    Activate,
    /// Trusts the new root alone
    Finish,
}

impl RotateRoot {
    pub(super) fn execute(self, global: &Global, screen: &Screen) -> Result<ExitCode, Failure> {
        let state = self.folder.open()?;
        let step = match self.step {
            Name::Prepare => Step::Prepare,
            Name::Activate => Step::Activate,
            Name::Finish => Step::Finish,
        };
        let is = state
            .rotate(step, self.wait, SystemTime::now())
            .map_err(|error| {
                let failure = Failure::new(error.to_string());
                match error {
                    RotationError::TooSoon { .. } => failure.next(
                        "Wait, or say that every node has renewed since: --wait 0s. A node that has not refuses the others.",
                    ),
                    _ => failure,
                }
            })?;
        if matches!(global.output, Format::Json | Format::Yaml) {
            screen.serialized(global.output, &is)?;
            return Ok(ExitCode::SUCCESS);
        }
        let roots = state.bundle_file();
        let (done, then) = match self.step {
            Name::Prepare => (
                format!(
                    "{} is made and trusted; {} signs",
                    is.next.as_deref().unwrap_or_default(),
                    is.current
                ),
                format!("Copy {} to the nodes, then: activate", roots.display()),
            ),
            Name::Activate => (
                format!(
                    "{} signs; {} is still trusted",
                    is.current,
                    is.previous.as_deref().unwrap_or_default()
                ),
                "When all certificates have been renewed: finish".to_owned(),
            ),
            Name::Finish => (
                format!(
                    "{} alone is trusted; the old root and its key are removed",
                    is.current
                ),
                format!("Copy {} to the nodes", roots.display()),
            ),
        };
        screen.print(&format!("{done}\n"))?;
        screen.remark(&then);
        Ok(ExitCode::SUCCESS)
    }
}
