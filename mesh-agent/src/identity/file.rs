//! Files that are read again when they change.
//!
//! Polled, not watched: a poll is a `stat`, it sees through symbolic links (Kubernetes swaps them), and it works on every filesystem.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// Longest file that is read; a list of 100,000 revoked certificates has about 4 MiB.
const MAX_FILE: u64 = 32 * 1024 * 1024;
/// Timestamps of filesystems are coarse: a file that changed this shortly before it was read may have changed again
/// since, without a new timestamp.
const SETTLED: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
    modified: (i64, i64),
}

impl Stamp {
    fn of(meta: &fs::Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            changed: (meta.ctime(), meta.ctime_nsec()),
            modified: (meta.mtime(), meta.mtime_nsec()),
        }
    }

    fn settled(&self, at: SystemTime) -> bool {
        let seconds = self.changed.0.max(self.modified.0);
        let changed =
            SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        at.duration_since(changed).is_ok_and(|age| age > SETTLED)
    }
}

/// One file.
#[derive(Debug)]
pub(super) struct Watched {
    path: PathBuf,
    /// What was read, and whether it had settled by then.
    last: Option<(Stamp, bool)>,
}

impl Watched {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, last: None }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The contents, if they may have changed since the last call that returned some. Blocks.
    ///
    /// # Errors
    /// It cannot be read; asked again, it is read again.
    pub(super) fn poll(&mut self) -> io::Result<Option<Vec<u8>>> {
        let result = self.look();
        if result.is_err() {
            self.last = None;
        }
        result
    }

    fn look(&mut self) -> io::Result<Option<Vec<u8>>> {
        let meta = fs::metadata(&self.path)?;
        let stamp = Stamp::of(&meta);
        if self.last == Some((stamp, true)) {
            return Ok(None);
        }
        if stamp.size > MAX_FILE {
            return Err(io::Error::other("it is larger than 32 MiB"));
        }
        let settled = stamp.settled(SystemTime::now());
        let contents = fs::read(&self.path)?;
        self.last = Some((stamp, settled));
        Ok(Some(contents))
    }
}
