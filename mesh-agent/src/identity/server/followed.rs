//! What is read from files and read again when they change. What cannot be read keeps the last good one and is logged.

use std::sync::{Arc, Mutex, PoisonError};

type Look<S> = Box<dyn Fn() -> S + Send + Sync>;
type Read<T> = Box<dyn Fn() -> Result<T, String> + Send + Sync>;

/// `S` tells one version of the files from the next; getting it must be cheap.
pub(super) struct Followed<T, S> {
    what: String,
    look: Look<S>,
    read: Read<T>,
    seen: Mutex<(S, Arc<T>)>,
}

impl<T, S: PartialEq> Followed<T, S> {
    /// # Errors
    /// The first reading fails: there is no last good one.
    pub(super) fn new(
        what: impl Into<String>,
        look: impl Fn() -> S + Send + Sync + 'static,
        read: impl Fn() -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        // Looked at first: a change while it is read is then seen as one.
        let stamp = look();
        let value = Arc::new(read()?);
        Ok(Self {
            what: what.into(),
            look: Box::new(look),
            read: Box::new(read),
            seen: Mutex::new((stamp, value)),
        })
    }

    /// The newest that is good. Looks at the files, so it may block as long as a disk does.
    pub(super) fn get(&self) -> Arc<T> {
        let stamp = (self.look)();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.0 != stamp {
            match (self.read)() {
                Ok(value) => {
                    tracing::info!("{} changed and is in effect", self.what);
                    seen.1 = Arc::new(value);
                }
                Err(error) => {
                    tracing::error!(
                        "{} changed and is not used, what it said before stays in effect: {error}",
                        self.what
                    );
                }
            }
            seen.0 = stamp;
        }
        Arc::clone(&seen.1)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    use super::*;

    #[test]
    fn a_bad_version_keeps_the_last_good_one() {
        static VERSION: AtomicU32 = AtomicU32::new(1);
        static READ: AtomicU32 = AtomicU32::new(0);
        let followed = Followed::new(
            "a number",
            || VERSION.load(Relaxed),
            || {
                READ.fetch_add(1, Relaxed);
                let version = VERSION.load(Relaxed);
                (version != 2).then_some(version).ok_or("two".into())
            },
        )
        .unwrap();
        for (version, value, read) in [(1, 1, 1), (2, 1, 2), (2, 1, 2), (3, 3, 3), (3, 3, 3)] {
            VERSION.store(version, Relaxed);
            assert_eq!(*followed.get(), value);
            assert_eq!(READ.load(Relaxed), read);
        }
        VERSION.store(2, Relaxed);
        assert!(Followed::<u32, u32>::new("x", || 2, || Err("bad".into())).is_err());
    }
}
