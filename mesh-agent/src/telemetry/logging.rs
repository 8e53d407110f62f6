//! The log: text or JSON, a level that changes at run time, and a writer that never makes the agent wait.

use std::{
    io::{self, Write},
    str::FromStr,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::Ordering,
        mpsc::{SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use tracing_subscriber::{
    EnvFilter, Layer, Registry, fmt::MakeWriter, layer::SubscriberExt, reload,
    util::SubscriberInitExt,
};

use super::{Telemetry, access::RequestLog, lock, metrics::Counts};

/// Bytes that wait for the writer; what is above is dropped line by line and counted (`mesh_log_lines_dropped_total`).
const QUEUE: usize = 8 * 1024 * 1024;
/// Room that the queue begins with, and that it goes back to after a burst.
const ROOM: usize = 256 * 1024;
/// How long the writer lets lines gather: to be woken for each of them costs the threads that carry connections more
/// than the writing (8 % of a connection's CPU, measured with docs/benchmarks.md's connect-warm).
const GATHER: Duration = Duration::from_millis(10);

/// `--log-format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error(
        "log filter {filter:?} is not understood: {detail}; expected a level (info) or target=level pairs (info,access=off)"
    )]
    Filter { filter: String, detail: String },
    #[error("the log was already set up in this process")]
    AlreadySet,
    #[error("the log's writer could not be started: {0}")]
    Writer(#[from] io::Error),
}

/// Changes the level while the agent runs.
#[derive(Clone)]
pub struct LogControl {
    current: Arc<Mutex<String>>,
    reload: Arc<dyn Fn(EnvFilter) -> bool + Send + Sync>,
}

impl std::fmt::Debug for LogControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("LogControl").field(&self.filter()).finish()
    }
}

impl LogControl {
    /// The filter in effect.
    pub fn filter(&self) -> String {
        lock(&self.current).clone()
    }

    /// Puts another filter in effect.
    pub fn set_filter(&self, filter: &str) -> Result<(), LogError> {
        let parsed = parse(filter)?;
        if !(self.reload)(parsed) {
            return Err(LogError::AlreadySet);
        }
        *lock(&self.current) = filter.to_owned();
        Ok(())
    }

    /// One that changes nothing but what it says; for tests and for programs with a log of their own.
    pub fn detached(filter: &str) -> Self {
        Self {
            current: Arc::new(Mutex::new(filter.to_owned())),
            reload: Arc::new(|_| true),
        }
    }
}

/// Says whether a filter is understood.
pub fn check_filter(filter: &str) -> Result<(), LogError> {
    parse(filter).map(drop)
}

fn parse(filter: &str) -> Result<EnvFilter, LogError> {
    let refused = |detail: String| LogError::Filter {
        filter: filter.to_owned(),
        detail,
    };
    let directives: Vec<&str> = filter.split(',').map(str::trim).collect();
    for directive in &directives {
        check_directive(directive).map_err(refused)?;
    }
    // The library knows no spaces.
    EnvFilter::try_new(directives.join(",")).map_err(|e| refused(e.to_string()))
}

/// A level, or TARGET=LEVEL. The library takes more: a bare word as the name of a target, so that "debgu" would silence
/// everything else, and spans with patterns, whose parser panics on a target that is not ASCII (found by fuzzing).
fn check_directive(part: &str) -> Result<(), String> {
    let (target, level) = match part.split_once('=') {
        Some((target, level)) => (Some(target), level),
        None => (None, part),
    };
    let is_path = |t: &str| {
        !t.is_empty()
            && t.chars()
                .all(|c| c.is_ascii_alphanumeric() || "_:-.".contains(c))
    };
    if target.is_some_and(|t| !is_path(t)) {
        return Err(format!("{part:?} names no target"));
    }
    if level.is_empty() || tracing::level_filters::LevelFilter::from_str(level).is_err() {
        return Err(format!("{level:?} is no level"));
    }
    Ok(())
}

/// Sets up the process's log on standard output. Hold the [`LogFlush`] until the end.
pub fn init(
    format: LogFormat,
    filter: &str,
    telemetry: &Telemetry,
) -> Result<(LogControl, LogFlush), LogError> {
    let queue = start_writer(io::stdout(), telemetry.counts())?;
    let flush = LogFlush(queue.clone());
    telemetry.log_requests(RequestLog::new(
        queue.clone(),
        format == LogFormat::Json,
        telemetry.options().log_query,
    ));
    let writer = Lines(queue);
    let (filter_layer, handle) = reload::Layer::new(parse(filter)?);
    let ansi = matches!(format, LogFormat::Text)
        && io::IsTerminal::is_terminal(&io::stdout())
        && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let lines = tracing_subscriber::fmt::layer::<Registry>()
        .with_ansi(ansi)
        .with_writer(writer);
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    Registry::default()
        .with(lines.with_filter(filter_layer))
        .try_init()
        .map_err(|_| LogError::AlreadySet)?;
    let control = LogControl {
        current: Arc::new(Mutex::new(filter.to_owned())),
        reload: Arc::new(move |filter| handle.reload(filter).is_ok()),
    };
    Ok((control, flush))
}

/// Lines on their way to the writer's thread, one behind the other in one buffer: a line costs a lock and a copy, and
/// allocates nothing once the buffer has grown.
#[derive(Debug)]
pub(super) struct LogQueue {
    waiting: Mutex<Waiting>,
    filled: Condvar,
    counts: Arc<Counts>,
}

#[derive(Debug)]
struct Waiting {
    lines: Vec<u8>,
    /// Whom to tell when all that waits is written.
    flush: Vec<SyncSender<()>>,
    /// The writer sleeps until there is something.
    idle: bool,
}

impl LogQueue {
    /// Takes a line, with its end; or drops and counts it.
    pub(super) fn push(&self, line: &[u8]) {
        let mut waiting = lock(&self.waiting);
        if waiting.lines.len() + line.len() > QUEUE {
            drop(waiting);
            self.counts
                .log_lines_dropped
                .fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.lines.extend_from_slice(line);
        let wake = std::mem::take(&mut waiting.idle);
        drop(waiting);
        if wake {
            self.filled.notify_one();
        }
    }

    /// Swaps what waits for an empty buffer; waits until there is something.
    fn take(&self, buffer: &mut Vec<u8>) -> Vec<SyncSender<()>> {
        let mut waiting = lock(&self.waiting);
        while waiting.lines.is_empty() && waiting.flush.is_empty() {
            waiting.idle = true;
            waiting = self
                .filled
                .wait(waiting)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if waiting.flush.is_empty() {
            drop(waiting);
            // Lets lines gather, so that a burst costs few system calls.
            thread::sleep(GATHER);
            waiting = lock(&self.waiting);
        }
        std::mem::swap(&mut waiting.lines, buffer);
        std::mem::take(&mut waiting.flush)
    }
}

/// Writes out what is queued when dropped.
#[derive(Debug)]
pub struct LogFlush(pub(super) Arc<LogQueue>);

impl Drop for LogFlush {
    fn drop(&mut self) {
        let (done, wait) = sync_channel(1);
        lock(&self.0.waiting).flush.push(done);
        self.0.filled.notify_one();
        // A reader that has stopped must not keep the agent from ending.
        let _ = wait.recv_timeout(Duration::from_secs(2));
    }
}

pub(super) fn start_writer(
    out: impl Write + Send + 'static,
    counts: Arc<Counts>,
) -> Result<Arc<LogQueue>, LogError> {
    let queue = Arc::new(LogQueue {
        waiting: Mutex::new(Waiting {
            lines: Vec::with_capacity(ROOM),
            flush: Vec::new(),
            idle: false,
        }),
        filled: Condvar::new(),
        counts,
    });
    let lines = queue.clone();
    thread::Builder::new()
        .name("log".into())
        .spawn(move || write_lines(&lines, out))?;
    Ok(queue)
}

/// Until the process ends.
fn write_lines(queue: &LogQueue, mut out: impl Write) {
    let mut buffer = Vec::with_capacity(ROOM);
    loop {
        let flushed = queue.take(&mut buffer);
        // Nowhere to report that the log cannot be written to.
        let _ = out.write_all(&buffer);
        let _ = out.flush();
        buffer.clear();
        buffer.shrink_to(ROOM);
        for done in flushed {
            let _ = done.send(());
        }
    }
}

/// Hands the lines of tracing to the writer's thread.
#[derive(Clone)]
struct Lines(Arc<LogQueue>);

impl<'a> MakeWriter<'a> for Lines {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> LineWriter<'a> {
        LineWriter(&self.0)
    }
}

/// The subscriber writes a line by one call.
struct LineWriter<'a>(&'a LogQueue);

impl Write for LineWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod filter_tests {
    use super::check_filter;

    #[test]
    fn levels_and_targets_are_understood() {
        for filter in [
            "info",
            "DEBUG",
            "off",
            "info,access=off",
            "warn, mesh_agent::proxy=trace",
        ] {
            check_filter(filter).unwrap_or_else(|e| panic!("{filter}: {e}"));
        }
    }

    #[test]
    fn anything_else_is_refused_with_what_is_wrong() {
        for (filter, why) in [
            ("debgu", "\"debgu\" is no level"),
            ("", "\"\" is no level"),
            ("info,", "\"\" is no level"),
            ("access=loud", "\"loud\" is no level"),
            ("=info", "\"=info\" names no target"),
            // The library's parser cuts this inside a character.
            ("b\u{69a}=info,[\"\"", "\"b\u{69a}=info\" names no target"),
            ("[span]=info", "\"[span]=info\" names no target"),
        ] {
            let error = check_filter(filter).unwrap_err().to_string();
            assert!(error.contains(why), "{filter}: {error}");
        }
    }
}
