//! `mesh-agent completions SHELL`

use std::process::ExitCode;

use clap::Args;
use clap_complete::Shell;

use super::{failure::Failure, output::Screen};

#[derive(Debug, Args)]
pub(super) struct Completions {
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    pub(super) fn execute(
        &self,
        screen: &Screen,
        command: &mut clap::Command,
    ) -> Result<ExitCode, Failure> {
        // Into memory first: the generator panics on a pipe that was closed.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, command, "mesh-agent", &mut script);
        screen.print(&String::from_utf8_lossy(&script))?;
        Ok(ExitCode::SUCCESS)
    }
}
