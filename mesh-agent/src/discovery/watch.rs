//! Watches a directory, through removal and return of it, and says which files changed.
//!
//! The parent is watched as well, without its other children: when the directory is a link that is swapped, or is
//! removed and made again, only the parent tells. Nothing here is relied on alone: a slow poll of file stamps stands
//! behind it.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{SyncSender, TrySendError},
    },
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, CreateKind, ModifyKind},
};

use super::settle::Change;

/// What the owner's queue gets.
#[derive(Debug)]
pub(super) enum Message {
    Changed(PathBuf, Change),
    Reload,
    Stop,
}

#[derive(Debug)]
pub(super) struct DirWatch {
    dir: PathBuf,
    watcher: Option<RecommendedWatcher>,
    /// Device and inode of the directory that is watched.
    armed: Option<(u64, u64)>,
    overflowed: Arc<AtomicBool>,
}

impl DirWatch {
    pub(super) fn new(dir: &Path, queue: SyncSender<Message>) -> Self {
        let overflowed = Arc::new(AtomicBool::new(false));
        let (flag, watched) = (Arc::clone(&overflowed), dir.to_owned());
        let deliver = move |event: notify::Result<Event>| {
            for message in messages(event, &watched) {
                if let Err(TrySendError::Full(_)) = queue.try_send(message) {
                    flag.store(true, Ordering::Release);
                }
            }
        };
        let watcher = notify::recommended_watcher(deliver)
            .inspect_err(|error| {
                tracing::warn!(dir = %dir.display(), %error, "cannot watch the configuration, polling it only");
            })
            .ok();
        let mut watch = Self {
            dir: dir.to_owned(),
            watcher,
            armed: None,
            overflowed,
        };
        if let (Some(watcher), Some(parent)) = (&mut watch.watcher, parent(dir)) {
            // Without it a returning directory is found by the poll.
            let _ = watcher.watch(&parent, RecursiveMode::NonRecursive);
        }
        watch.arm();
        watch
    }

    /// Watches the directory that the path leads to now. Returns whether that is another one than before.
    pub(super) fn arm(&mut self) -> bool {
        let found = std::fs::metadata(&self.dir)
            .ok()
            .map(|metadata| (metadata.dev(), metadata.ino()));
        if found == self.armed {
            return false;
        }
        self.armed = found;
        let Some(watcher) = &mut self.watcher else {
            return true;
        };
        // Fails when the old directory is gone, which is why we are here.
        let _ = watcher.unwatch(&self.dir);
        if found.is_some()
            && let Err(error) = watcher.watch(&self.dir, RecursiveMode::Recursive)
        {
            tracing::warn!(dir = %self.dir.display(), %error, "cannot watch the configuration, polling it only");
        }
        true
    }

    /// Whether events were lost since the last call.
    pub(super) fn take_overflow(&self) -> bool {
        self.overflowed.swap(false, Ordering::AcqRel)
    }
}

fn parent(dir: &Path) -> Option<PathBuf> {
    match dir.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Some(PathBuf::from(".")),
        Some(parent) => Some(parent.to_owned()),
        None => None,
    }
}

/// What an event means for files of the directory. Reading is no change, or our own reads would wake us.
fn messages(event: notify::Result<Event>, dir: &Path) -> Vec<Message> {
    let Ok(event) = event else {
        return vec![Message::Changed(dir.to_owned(), Change::Done)];
    };
    if event.need_rescan() {
        return vec![Message::Changed(dir.to_owned(), Change::Done)];
    }
    let change = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => Change::Done,
        EventKind::Access(_) => return Vec::new(),
        EventKind::Create(CreateKind::File) => Change::Created,
        EventKind::Modify(ModifyKind::Data(_)) => Change::Written,
        _ => Change::Done,
    };
    event
        .paths
        .into_iter()
        .filter(|path| path.starts_with(dir))
        .map(|path| Message::Changed(path, change))
        .collect()
}
