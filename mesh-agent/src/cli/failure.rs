//! How a command fails: a sentence, what to do next, an exit code.

use std::{io, process::ExitCode};

use crate::admin::client::ClientError;

const FAILED: u8 = 1;
const USAGE: u8 = 2;
const UNREACHABLE: u8 = 3;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) code: u8,
    pub(super) message: String,
    /// What to do next.
    pub(super) next: Option<String>,
    /// Whoever read the output went away; nothing is wrong.
    quiet: bool,
}

impl Failure {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self {
            code: FAILED,
            message: message.into(),
            next: None,
            quiet: false,
        }
    }

    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self {
            code: USAGE,
            ..Self::new(message)
        }
    }

    pub(super) fn unreachable(message: impl Into<String>) -> Self {
        Self {
            code: UNREACHABLE,
            ..Self::new(message)
        }
    }

    pub(super) fn next(self, next: impl Into<String>) -> Self {
        Self {
            next: Some(next.into()),
            ..self
        }
    }

    pub(super) fn report(&self) -> ExitCode {
        if self.quiet {
            return ExitCode::SUCCESS;
        }
        use io::Write as _;
        let mut text = format!("error: {}\n", self.message);
        if let Some(next) = &self.next {
            text.push_str(&format!("  {next}\n"));
        }
        // Nowhere to report that standard error is gone.
        let _ = io::stderr().write_all(text.as_bytes());
        ExitCode::from(self.code)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self {
            quiet: error.kind() == io::ErrorKind::BrokenPipe,
            ..Self::new(error.to_string())
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let message = error.to_string();
        match error {
            ClientError::Missing { .. } => Self::unreachable(message).next(
                "Does the agent run? Start it with: mesh-agent run --config DIR. Agents of this machine: \
                 ls /run/mesh-agent; choose one with --node.",
            ),
            ClientError::Refused { .. } => Self::unreachable(message).next(
                "Start it again with: mesh-agent run --config DIR. What it captured is refused or passed by the fail \
                 policy meanwhile; mesh-agent release ends that.",
            ),
            ClientError::Forbidden { .. } => Self::unreachable(message).next("Try again with sudo."),
            ClientError::Timeout { .. } => Self::unreachable(message)
                .next("Its log says what it does; kill -QUIT is not needed, a restart loses no configuration."),
            ClientError::Protocol { .. } => Self::unreachable(message)
                .next("Are agent and command line of the same version? mesh-agent version shows this one."),
            ClientError::Answer { .. } => Self::new(message),
        }
    }
}
