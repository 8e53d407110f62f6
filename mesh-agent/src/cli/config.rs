//! `mesh-agent config validate DIR` and `mesh-agent config dump`

use std::{fmt::Write as _, path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    Global,
    failure::Failure,
    output::{Format, Screen},
    reach,
    table::Tint,
    units,
};
use crate::api::{self, ConfigError, Warning};

#[derive(Debug, Subcommand)]
pub(super) enum Config {
    /// Checks a directory as `run` would read it; needs no agent
    Validate(Validate),
    /// Prints the configuration in effect
    Dump,
}

#[derive(Debug, Args)]
pub(super) struct Validate {
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

#[derive(Debug, Serialize)]
struct Verdict {
    valid: bool,
    resources: usize,
    errors: Vec<ConfigError>,
    warnings: Vec<Warning>,
}

impl Validate {
    pub(super) fn execute(&self, global: &Global, screen: &Screen) -> Result<ExitCode, Failure> {
        if !self.dir.is_dir() {
            return Err(
                Failure::usage(format!("{} is not a directory", self.dir.display()))
                    .next("Give the directory that holds the YAML files."),
            );
        }
        let verdict = match api::load_dir(&self.dir) {
            Ok((config, warnings)) => Verdict {
                valid: true,
                resources: config.resources(),
                errors: Vec::new(),
                warnings,
            },
            Err(errors) => Verdict {
                valid: false,
                resources: 0,
                errors,
                warnings: Vec::new(),
            },
        };
        match global.output {
            Format::Json | Format::Yaml => screen.serialized(global.output, &verdict)?,
            Format::Table | Format::Wide => {
                screen.print(&self.render(&verdict, screen.colour))?;
            }
        }
        Ok(ExitCode::from(u8::from(!verdict.valid)))
    }

    fn render(&self, verdict: &Verdict, colour: bool) -> String {
        let mut out = String::new();
        // Writing to a String does not fail.
        for error in &verdict.errors {
            let _ = write!(out, "{} {error}", Tint::Bad.paint("error:", colour));
            let _ = match &error.expected {
                // Most messages say it themselves.
                Some(expected) if !error.message.contains(expected.as_str()) => {
                    writeln!(out, " (expected: {expected})")
                }
                _ => writeln!(out),
            };
        }
        for warning in &verdict.warnings {
            let _ = writeln!(out, "{} {warning}", Tint::Warn.paint("warning:", colour));
        }
        let dir = self.dir.display();
        let _ = if verdict.valid {
            writeln!(
                out,
                "{} {dir}: {}, {}",
                Tint::Good.paint("valid:", colour),
                units::count(verdict.resources, "resource"),
                units::count(verdict.warnings.len(), "warning")
            )
        } else {
            writeln!(
                out,
                "{dir}: {}; an agent would keep the last good configuration",
                units::count(verdict.errors.len(), "error")
            )
        };
        out
    }
}

pub(super) async fn dump(global: &Global, screen: &Screen) -> Result<ExitCode, Failure> {
    let config: serde_json::Value = reach::client(global)?.get("/v1/config").await?;
    // YAML is what configuration is written in.
    let format = match global.output {
        Format::Json => Format::Json,
        _ => Format::Yaml,
    };
    screen.serialized(format, &config)?;
    Ok(ExitCode::SUCCESS)
}
