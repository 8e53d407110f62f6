//! What is wrong with configuration, said so that an operator can go to the line and mend it.

use std::{fmt, path::PathBuf};

use super::{path::Path, yaml::Position};

/// One error. All errors of a directory are reported together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, serde::Serialize)]
pub struct ConfigError {
    pub file: PathBuf,
    /// From 1; 0 when the error is about the file as a whole.
    pub line: u32,
    /// From 1, in characters; 0 when the error is about the file as a whole.
    pub column: u32,
    /// `spec.ports[0].port`; empty when no field is concerned.
    pub field: String,
    pub message: String,
    /// What would have been accepted, where that can be said briefly.
    pub expected: Option<String>,
}

/// Something legal but odd.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Warning {
    pub file: PathBuf,
    pub line: u32,
    pub column: u32,
    pub field: String,
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_located(
            f,
            &self.file,
            self.line,
            self.column,
            &self.field,
            &self.message,
        )
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_located(
            f,
            &self.file,
            self.line,
            self.column,
            &self.field,
            &self.message,
        )
    }
}

fn write_located(
    f: &mut fmt::Formatter<'_>,
    file: &std::path::Path,
    line: u32,
    column: u32,
    field: &str,
    message: &str,
) -> fmt::Result {
    write!(f, "{}:", file.display())?;
    if line > 0 {
        write!(f, "{line}:{column}:")?;
    }
    if !field.is_empty() {
        write!(f, " {field}:")?;
    }
    write!(f, " {message}")
}

/// An error or warning inside one document, whose place in a file is not known yet.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Problem {
    pub(crate) path: Path,
    /// In the document; `None` until it is looked up by path.
    pub(crate) at: Option<Position>,
    pub(crate) message: String,
    pub(crate) expected: Option<String>,
    pub(crate) severity: Severity,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Severity {
    Error,
    Warning,
}

impl Problem {
    pub(crate) fn new(path: Path, message: impl Into<String>) -> Self {
        Self {
            path,
            at: None,
            message: message.into(),
            expected: None,
            severity: Severity::Error,
        }
    }

    pub(crate) fn at(path: Path, at: Position, message: impl Into<String>) -> Self {
        Self {
            at: Some(at),
            ..Self::new(path, message)
        }
    }

    /// "expected E, got G"
    pub(crate) fn expected(
        path: Path,
        expected: impl Into<String>,
        got: impl fmt::Display,
    ) -> Self {
        let expected = expected.into();
        Self {
            message: format!("expected {expected}, got {got}"),
            expected: Some(expected),
            ..Self::new(path, String::new())
        }
    }

    pub(crate) fn warning(path: Path, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::new(path, message)
        }
    }

    /// Adds what would have been accepted to a message that does not lend itself to "expected E, got G".
    #[must_use]
    pub(crate) fn wanted(mut self, expected: impl Into<String>) -> Self {
        self.expected = Some(expected.into());
        self
    }

    #[must_use]
    pub(crate) fn placed(mut self, at: Position) -> Self {
        self.at = Some(at);
        self
    }
}
