//! A directory of YAML as a source. The whole directory is one transaction: what does not load as a whole changes
//! nothing, and the last good configuration stays.

use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

use super::{
    settle::Settle,
    status::{SourceState, SourceStatus},
    watch::{DirWatch, Message},
};
use crate::{
    api::{Environment, Loader, is_yaml},
    catalog::{Catalog, SourceId},
};

/// Events that may wait; more only set a flag, since what changed is found by file stamps anyway.
const QUEUE: usize = 1024;
/// A second look after each change, for what happened while folders were not watched yet. A directory that loses all
/// of its files at once is believed to be empty only at the second look: it is probably about to get new ones.
const SECOND_LOOK: Duration = Duration::from_millis(250);
/// How long a change that only polling found is left to complete.
const POLLED: Duration = Duration::from_millis(100);

#[derive(Clone, Debug)]
pub struct FileOptions {
    pub dir: PathBuf,
    pub environment: Environment,
    /// How often file stamps are compared, whatever the watch says.
    pub poll: Duration,
}

impl FileOptions {
    pub fn new(dir: impl Into<PathBuf>, node: &str) -> Self {
        Self {
            dir: dir.into(),
            environment: Environment::of_this_machine(Some(node)),
            poll: Duration::from_secs(2),
        }
    }
}

/// A directory being followed. Dropping it ends that; what was applied stays in the catalog.
#[derive(Debug)]
pub struct FileSource {
    state: SourceState,
    queue: SyncSender<Message>,
    thread: Option<JoinHandle<()>>,
}

impl FileSource {
    /// Loads the directory and follows it from then on. When this returns the first load is done: its outcome is in
    /// `status`, and in the catalog if it was good. Blocks for as long as the first load takes.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn spawn(options: FileOptions, catalog: Arc<Catalog>) -> io::Result<Self> {
        let state = SourceState::new(format!("file:{}", options.dir.display()));
        let (queue, messages) = mpsc::sync_channel(QUEUE);
        let mut follower = Follower {
            source: catalog.register(),
            catalog,
            // Watching begins before reading, so that nothing falls between.
            watch: DirWatch::new(&options.dir, queue.clone()),
            loader: Loader::new(&options.dir, options.environment),
            state: state.clone(),
            poll: options.poll,
            files: 0,
            emptied: false,
            awaits_netns: false,
            changed: Changed::default(),
            incomplete: false,
            dir: options.dir,
        };
        follower.load(&Changed::everything());
        let thread = std::thread::Builder::new()
            .name("mesh-config".to_owned())
            .spawn(move || follower.run(&messages))?;
        Ok(Self {
            state,
            queue,
            thread: Some(thread),
        })
    }

    pub fn status(&self) -> Arc<SourceStatus> {
        self.state.get()
    }

    /// For those that show the status without owning the source.
    pub fn state(&self) -> SourceState {
        self.state.clone()
    }

    /// Looks at the directory now.
    pub fn reload(&self) {
        // A full queue means that a look is due anyway.
        let _ = self.queue.try_send(Message::Reload);
    }
}

impl Drop for FileSource {
    fn drop(&mut self) {
        if self.queue.send(Message::Stop).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

/// What is known of the changes that were not taken up yet.
#[derive(Debug, Default)]
struct Changed {
    paths: HashSet<PathBuf>,
    /// Something may have changed that is not among `paths`.
    unsure: bool,
}

impl Changed {
    fn everything() -> Self {
        Self {
            unsure: true,
            ..Self::default()
        }
    }

    fn note(&mut self, dir: &Path, path: PathBuf) {
        let hidden = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(b".");
        let below = path.strip_prefix(dir).unwrap_or(&path);
        let in_hidden = below.iter().any(hidden);
        if is_yaml(&path) && !in_hidden {
            self.paths.insert(path);
        } else if !std::fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_file()) {
            // A folder, a link to one, or what was one and is gone. Any other file is none of ours.
            self.unsure = true;
        }
    }
}

struct Follower {
    dir: PathBuf,
    catalog: Arc<Catalog>,
    source: SourceId,
    watch: DirWatch,
    loader: Loader,
    state: SourceState,
    poll: Duration,
    /// Files of the last good load.
    files: usize,
    /// The directory was found without files, which is not believed until it is found so again.
    emptied: bool,
    /// A warning says that a network namespace does not exist yet, which no file event will take back.
    awaits_netns: bool,
    changed: Changed,
    /// What is applied was judged by itself; the full check is due at the second look.
    incomplete: bool,
}

impl Follower {
    fn run(&mut self, messages: &Receiver<Message>) {
        let mut settle = Settle::default();
        let mut look_at = Instant::now() + SECOND_LOOK;
        loop {
            let due = settle
                .ready_at()
                .map_or(look_at, |ready| ready.min(look_at));
            match messages.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(Message::Changed(path, change)) => {
                    settle.event(&path, change, Instant::now());
                    self.changed.note(&self.dir, path);
                }
                Ok(Message::Reload) => {
                    self.changed.unsure = true;
                    settle.touch(Duration::ZERO, Instant::now());
                }
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
            let now = Instant::now();
            if self.watch.take_overflow() {
                self.changed.unsure = true;
                settle.touch(Duration::ZERO, now);
            }
            if settle.ready_at().is_some_and(|ready| ready <= now) {
                settle.clear();
                self.changed.unsure |= self.watch.arm() || self.emptied;
                let changed = std::mem::take(&mut self.changed);
                self.load(&changed);
                look_at = Instant::now() + SECOND_LOOK;
            } else if look_at <= now {
                look_at = now + self.poll;
                if self.emptied || self.incomplete {
                    self.load(&Changed::everything());
                } else if self.watch.arm() || self.loader.has_changed() {
                    self.changed.unsure = true;
                    settle.touch(POLLED, now);
                } else if self.awaits_netns {
                    self.load(&Changed::everything());
                }
            }
        }
    }

    fn load(&mut self, changed: &Changed) {
        let started = Instant::now();
        let outcome = if changed.unsure {
            self.loader.load()
        } else {
            self.loader.load_changed(&changed.paths)
        };
        match outcome {
            Ok(outcome) if outcome.files == 0 && self.files > 0 && !self.emptied => {
                self.emptied = true;
            }
            Ok(outcome) => {
                self.emptied = false;
                self.files = outcome.files;
                self.incomplete = !outcome.complete;
                if outcome.complete {
                    self.awaits_netns = outcome.warnings.iter().any(|w| w.field.ends_with("netns"));
                }
                let resources = outcome.config.resources();
                let mut warnings: Vec<String> =
                    outcome.warnings.iter().map(ToString::to_string).collect();
                if self.incomplete {
                    // Those of the version before, until the second look.
                    warnings.clone_from(&self.state.get().warnings);
                }
                let before = self.catalog.load().version;
                let yielded = self.catalog.apply(self.source, outcome.config);
                warnings.extend(yielded.into_iter().filter(|_| !self.incomplete));
                let changed = self.catalog.load().version != before;
                self.applied(resources, warnings, changed, outcome.files_read, started);
            }
            Err(errors) => {
                self.emptied = false;
                self.incomplete = false;
                self.refused(errors.iter().map(ToString::to_string).collect());
            }
        }
    }

    fn applied(
        &self,
        resources: usize,
        warnings: Vec<String>,
        changed: bool,
        files_read: usize,
        started: Instant,
    ) {
        let old = self.state.get();
        let known: HashSet<&String> = old.warnings.iter().collect();
        for warning in warnings.iter().filter(|warning| !known.contains(warning)) {
            tracing::warn!(source = %old.name, "{warning}");
        }
        let news = changed || old.error.is_some() || old.version == 0;
        if news {
            let took = started.elapsed();
            tracing::info!(source = %old.name, resources, files_read, ?took, "configuration applied");
        }
        self.state.update(|status| {
            if news {
                status.version += 1;
                status.last_applied = Some(SystemTime::now());
            }
            status.error = None;
            status.error_since = None;
            status.warnings = warnings;
            status.resources = resources;
        });
    }

    fn refused(&self, errors: Vec<String>) {
        let old = self.state.get();
        if old.error.as_ref() == Some(&errors) {
            return;
        }
        for error in &errors {
            tracing::warn!(source = %old.name, "configuration refused: {error}");
        }
        let stays = if old.version > 0 {
            "the last good configuration stays in effect"
        } else {
            "there is no configuration yet"
        };
        tracing::warn!(source = %old.name, errors = errors.len(), "{stays}");
        self.state.update(|status| {
            status.error = Some(errors);
            status.error_since.get_or_insert_with(SystemTime::now);
        });
    }
}
