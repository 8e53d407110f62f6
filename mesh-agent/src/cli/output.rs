//! Printing: formats, colour, the width of the terminal.

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

use serde::Serialize;

use super::{failure::Failure, table::Table};

/// `-o`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    #[default]
    Table,
    Wide,
    Json,
    Yaml,
}

/// Where output goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Screen {
    pub(super) terminal: bool,
    pub(super) colour: bool,
    /// Columns; `None` where nothing limits a line.
    pub(super) width: Option<usize>,
    pub(super) height: Option<usize>,
}

impl Screen {
    pub(super) fn detect() -> Self {
        let stdout = io::stdout();
        let terminal = stdout.is_terminal();
        let size = terminal
            .then(|| rustix::termios::tcgetwinsize(&stdout).ok())
            .flatten()
            .filter(|size| size.ws_col > 0);
        let columns = std::env::var("COLUMNS")
            .ok()
            .and_then(|c| c.parse().ok())
            .filter(|c| *c > 0);
        Self {
            terminal,
            colour: terminal
                && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
                && std::env::var_os("TERM").is_none_or(|v| v != "dumb"),
            width: columns.or(size.map(|s| usize::from(s.ws_col))),
            height: size.map(|s| usize::from(s.ws_row)),
        }
    }

    /// Writes to standard output. A reader that went away (`| head`) ends the command quietly.
    pub(super) fn print(&self, text: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        Ok(out.flush()?)
    }

    /// A remark that is no output: standard error.
    pub(super) fn remark(&self, text: &str) {
        // Nowhere to report that standard error is gone.
        let _ = writeln!(io::stderr(), "{text}");
    }

    pub(super) fn serialized(&self, format: Format, value: &impl Serialize) -> Result<(), Failure> {
        self.print(&serialize(format, value)?)
    }

    /// Prints a list: `make` builds the table, wide or not.
    pub(super) fn list<T: Serialize>(
        &self,
        format: Format,
        rows: &[T],
        what: &str,
        make: impl FnOnce(&[T], bool) -> Table,
    ) -> Result<ExitCode, Failure> {
        match format {
            Format::Json | Format::Yaml => self.serialized(format, &rows)?,
            Format::Table | Format::Wide if rows.is_empty() => self.remark(&format!("no {what}")),
            Format::Table | Format::Wide => {
                let table = make(rows, format == Format::Wide);
                self.print(&table.render(self.width, self.colour))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// JSON unless the format is YAML.
pub(super) fn serialize(format: Format, value: &impl Serialize) -> Result<String, Failure> {
    if format == Format::Yaml {
        let text = serde_saphyr::to_string(value).map_err(|e| Failure::new(e.to_string()))?;
        Ok(if text.ends_with('\n') {
            text
        } else {
            text + "\n"
        })
    } else {
        serde_json::to_string_pretty(value)
            .map(|text| text + "\n")
            .map_err(|e| Failure::new(e.to_string()))
    }
}
