//! When a directory that changes has come to rest. Pure: time is an argument.
//!
//! An edit shows as a burst of events, and a file that is being written is not to be read: one caught between
//! truncation and the first write is valid YAML without any resources. So a file counts as busy from its first
//! modification until it is closed, or for a grace time if nobody says that it was.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Quiet time after the last event.
const QUIET: Duration = Duration::from_millis(5);
/// How long a created file that nobody writes to is waited for: it may be a link.
const CREATED: Duration = Duration::from_millis(50);
/// How long a written file is waited for after its last write.
const WRITTEN: Duration = Duration::from_millis(300);
/// Whatever happens, changes are taken up after this time.
const LONGEST: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Created,
    Written,
    /// Closed after writing, renamed, removed or anything else that is complete.
    Done,
}

#[derive(Debug, Default)]
pub(super) struct Settle {
    /// First event that was not taken up yet.
    since: Option<Instant>,
    quiet_at: Option<Instant>,
    busy: HashMap<PathBuf, Instant>,
}

impl Settle {
    pub(super) fn event(&mut self, path: &Path, change: Change, now: Instant) {
        self.touch(QUIET, now);
        let grace = match change {
            Change::Created => CREATED,
            Change::Written => WRITTEN,
            Change::Done => {
                self.busy.remove(path);
                return;
            }
        };
        let until = self.busy.entry(path.to_owned()).or_insert(now + grace);
        *until = (*until).max(now + grace);
    }

    /// Something changed, no one knows what; wait for `quiet`.
    pub(super) fn touch(&mut self, quiet: Duration, now: Instant) {
        self.since.get_or_insert(now);
        let at = self.quiet_at.get_or_insert(now + quiet);
        *at = (*at).max(now + quiet);
    }

    /// When it will be at rest as far as is known; `None` if nothing is pending.
    pub(super) fn ready_at(&self) -> Option<Instant> {
        let since = self.since?;
        let quiet = self.quiet_at.unwrap_or(since);
        let rest = self.busy.values().copied().fold(quiet, Instant::max);
        Some(rest.min(since + LONGEST))
    }

    /// The pending changes are taken up.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn a_rename_is_taken_up_after_a_short_quiet_time() {
        let start = Instant::now();
        let mut settle = Settle::default();
        assert_eq!(settle.ready_at(), None);
        settle.event(Path::new("a"), Change::Done, start);
        settle.event(Path::new("a"), Change::Done, start + ms(3));
        assert_eq!(settle.ready_at(), Some(start + ms(3) + QUIET));
        settle.clear();
        assert_eq!(settle.ready_at(), None);
    }

    #[test]
    fn a_file_being_written_is_waited_for_until_it_is_closed() {
        let start = Instant::now();
        let mut settle = Settle::default();
        settle.event(Path::new("a"), Change::Created, start);
        assert_eq!(settle.ready_at(), Some(start + CREATED));
        settle.event(Path::new("a"), Change::Written, start + ms(1));
        assert_eq!(settle.ready_at(), Some(start + ms(1) + WRITTEN));
        settle.event(Path::new("b"), Change::Done, start + ms(2));
        assert_eq!(settle.ready_at(), Some(start + ms(1) + WRITTEN));
        settle.event(Path::new("a"), Change::Done, start + ms(9));
        assert_eq!(settle.ready_at(), Some(start + ms(9) + QUIET));
    }

    #[test]
    fn a_writer_that_never_ends_does_not_hold_changes_up_for_ever() {
        let start = Instant::now();
        let mut settle = Settle::default();
        for n in 0..100 {
            settle.event(Path::new("log"), Change::Written, start + ms(n * 100));
        }
        assert_eq!(settle.ready_at(), Some(start + LONGEST));
    }
}
