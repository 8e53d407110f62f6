//! `--watch`: asks again and again, and draws what came; for connections with what moved meanwhile.

use std::{
    collections::HashMap,
    fmt::Write as _,
    process::ExitCode,
    time::{Duration, Instant},
};

use serde::{Serialize, de::DeserializeOwned};

use super::{
    connections::{Rate, table},
    failure::Failure,
    output::{Format, Screen},
    units,
};
use crate::admin::{api::Connection, client::Client};

/// Alternate screen and hidden cursor, and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// To the corner; what is below the new lines is erased after them, so that nothing flickers.
const HOME: &str = "\x1b[H";
const ERASE_LINE: &str = "\x1b[K";
const ERASE_BELOW: &str = "\x1b[J";

/// What is drawn of the answers.
pub(super) trait Drawing {
    /// Of the list that the agent answers with.
    type Row: Serialize + DeserializeOwned;

    /// The text of one drawing.
    fn frame(&mut self, rows: Vec<Self::Row>, wide: bool, screen: &Screen) -> String;
}

/// Until Ctrl-C, SIGTERM or `count` drawings.
pub(super) async fn run<D: Drawing>(
    client: &Client,
    path: &str,
    format: Format,
    screen: &Screen,
    pace: Duration,
    count: Option<u64>,
    drawing: &mut D,
) -> Result<ExitCode, Failure> {
    let drawn = matches!(format, Format::Table | Format::Wide) && screen.terminal;
    if drawn {
        screen.print(ENTER)?;
    }
    let ended = tokio::select! {
        ended = draw(client, path, format, pace, count, drawing) => ended,
        _ = tokio::signal::ctrl_c() => Ok(()),
        () = terminated() => Ok(()),
    };
    if drawn {
        screen.print(LEAVE)?;
    }
    ended.map(|()| ExitCode::SUCCESS)
}

pub(super) async fn terminated() {
    match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        Ok(mut signal) => {
            signal.recv().await;
        }
        Err(_) => std::future::pending().await,
    }
}

async fn draw<D: Drawing>(
    client: &Client,
    path: &str,
    format: Format,
    pace: Duration,
    count: Option<u64>,
    drawing: &mut D,
) -> Result<(), Failure> {
    let mut tick = tokio::time::interval(pace);
    for nth in 1.. {
        tick.tick().await;
        let rows: Vec<D::Row> = client.get(path).await?;
        // The terminal may have been resized.
        let screen = Screen::detect();
        match format {
            // One document a line and moment: what a program reads.
            Format::Json => {
                let line = serde_json::to_string(&rows).map_err(|e| Failure::new(e.to_string()))?;
                screen.print(&(line + "\n"))?;
            }
            Format::Yaml => {
                let text = super::output::serialize(format, &rows)?;
                screen.print(&format!("---\n{text}"))?;
            }
            Format::Table | Format::Wide => {
                let text = drawing.frame(rows, format == Format::Wide, &screen);
                screen.print(&placed(&text, &screen))?;
            }
        }
        if count.is_some_and(|count| nth >= count) {
            break;
        }
    }
    Ok(())
}

/// A drawing over the one before, cut to the screen; where there is none, below it.
pub(super) fn placed(text: &str, screen: &Screen) -> String {
    if !screen.terminal {
        return format!("{text}\n");
    }
    let height = screen.height.unwrap_or(usize::MAX);
    let lines: Vec<&str> = text.lines().collect();
    let mut out = String::from(HOME);
    let hidden = lines.len().saturating_sub(height.saturating_sub(1));
    for line in lines.iter().take(lines.len() - hidden) {
        let _ = write!(out, "{line}{ERASE_LINE}\r\n");
    }
    if hidden > 0 {
        let _ = write!(out, "... {hidden} more{ERASE_LINE}");
    }
    out.push_str(ERASE_BELOW);
    out
}

impl Drawing for Rates {
    type Row = Connection;

    fn frame(&mut self, rows: Vec<Connection>, wide: bool, screen: &Screen) -> String {
        let (rows, moved) = self.measure(rows, Instant::now());
        frame(&rows, &moved, wide, screen)
    }
}

/// Connections, with what they move.
pub(super) fn frame(rows: &[Connection], rates: &[Rate], wide: bool, screen: &Screen) -> String {
    let (sent, received) = rates
        .iter()
        .fold((0, 0), |(s, r), (more_s, more_r)| (s + more_s, r + more_r));
    let mut text = String::new();
    // Writing to a String does not fail.
    let _ = writeln!(
        text,
        "{} connections, {}/s sent, {}/s received\n",
        rows.len(),
        units::bytes(sent),
        units::bytes(received)
    );
    text.push_str(&table(rows, wide, Some(rates)).render(screen.width, screen.colour));
    text
}

/// Remembers the bytes of the last drawing.
#[derive(Debug, Default)]
pub(super) struct Rates {
    last: HashMap<Key, (u64, u64)>,
    at: Option<Instant>,
}

/// What stays of a connection from one drawing to the next; cookies may still be unknown at the first.
type Key = (String, String, String, u64);

fn key(c: &Connection) -> Key {
    (
        c.direction.clone(),
        c.source.clone(),
        c.original_dst.clone(),
        if c.direction == "inbound" && c.agent_cookie != 0 {
            c.agent_cookie
        } else {
            c.app_cookie
        },
    )
}

impl Rates {
    /// The rows, busiest first, and the rates of each since the last time; 0 at the first sight of one.
    pub(super) fn measure(
        &mut self,
        mut rows: Vec<Connection>,
        now: Instant,
    ) -> (Vec<Connection>, Vec<Rate>) {
        let seconds = self
            .at
            .map_or(1.0, |at| now.saturating_duration_since(at).as_secs_f64())
            .max(1e-3);
        let rate = |now: u64, before: u64| (now.saturating_sub(before) as f64 / seconds) as u64;
        let mut measured: Vec<(Connection, Rate)> = rows
            .drain(..)
            .map(|c| {
                let before = self
                    .last
                    .get(&key(&c))
                    .copied()
                    .unwrap_or((c.bytes_sent, c.bytes_received));
                let moved = (
                    rate(c.bytes_sent, before.0),
                    rate(c.bytes_received, before.1),
                );
                (c, moved)
            })
            .collect();
        self.last = measured
            .iter()
            .map(|(c, _)| (key(c), (c.bytes_sent, c.bytes_received)))
            .collect();
        self.at = Some(now);
        measured.sort_by_key(|(_, (sent, received))| std::cmp::Reverse(sent + received));
        measured.into_iter().unzip()
    }
}
