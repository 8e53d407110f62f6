//! What changed between two versions of a list of resources, by identity: unchanged resources keep their `Arc`.

use std::{collections::HashSet, sync::Arc};

#[derive(Debug)]
pub struct Diff<'a, T> {
    pub removed: Vec<&'a Arc<T>>,
    pub added: Vec<&'a Arc<T>>,
}

impl<'a, T> Diff<'a, T> {
    /// A changed resource is both removed and added. Lists mostly agree but for a short stretch, which is all that is
    /// looked at closely.
    pub fn between(old: &'a [Arc<T>], new: &'a [Arc<T>]) -> Self {
        let same_head = old
            .iter()
            .zip(new)
            .take_while(|(a, b)| Arc::ptr_eq(a, b))
            .count();
        let (old, new) = (&old[same_head..], &new[same_head..]);
        let same_tail = old
            .iter()
            .rev()
            .zip(new.iter().rev())
            .take_while(|(a, b)| Arc::ptr_eq(a, b))
            .count();
        let (old, new) = (&old[..old.len() - same_tail], &new[..new.len() - same_tail]);
        let identities = |list: &[Arc<T>]| list.iter().map(Arc::as_ptr).collect::<HashSet<_>>();
        let (in_old, in_new) = (identities(old), identities(new));
        Self {
            removed: old
                .iter()
                .filter(|item| !in_new.contains(&Arc::as_ptr(item)))
                .collect(),
            added: new
                .iter()
                .filter(|item| !in_old.contains(&Arc::as_ptr(item)))
                .collect(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.added.is_empty()
    }

    /// Removed, then added.
    pub fn all(&self) -> impl Iterator<Item = &'a Arc<T>> + '_ {
        self.removed.iter().chain(&self.added).copied()
    }
}
