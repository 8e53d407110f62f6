//! `mesh-agent ca`: a certificate authority for a mesh without Kubernetes.

mod rotate;
mod serve;
mod token;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Subcommand};

use super::{Global, failure::Failure, output::Screen};
use crate::{
    api::GepDuration,
    identity::server::{State, StateError},
};

#[derive(Debug, Subcommand)]
pub(super) enum Ca {
    /// Runs a certificate authority in the foreground: Istio's certificate service
    Serve(serve::Serve),
    /// Makes the credential of a node (--node) and prints it
    Token(token::Token),
    /// Revokes credentials: by name, or all of a node (--node)
    Revoke(token::Revoke),
    /// Replaces the root: prepare, activate, finish
    RotateRoot(rotate::RotateRoot),
}

/// Options of all of them.
#[derive(Debug, Args)]
struct Folder {
    /// Folder of the authority: its keys, what it trusts, the credentials it gave out
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
}

impl Folder {
    fn open(&self) -> Result<State, Failure> {
        State::open(&self.state).map_err(failure)
    }
}

impl Ca {
    pub(super) fn execute(self, global: &Global, screen: &Screen) -> Result<ExitCode, Failure> {
        match self {
            Self::Serve(serve) => serve.execute(),
            Self::Token(token) => token.execute(global, screen),
            Self::Revoke(revoke) => revoke.execute(global, screen),
            Self::RotateRoot(rotate) => rotate.execute(global, screen),
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn failure(error: StateError) -> Failure {
    Failure::new(error.to_string())
}

/// `24h`, `1h30m`, `90s`
fn duration(text: &str) -> Result<Duration, String> {
    text.parse::<GepDuration>().map(|duration| duration.0)
}
