//! The targets of one ring, and what the strategies remember of them.

use std::sync::{
    Mutex, MutexGuard, OnceLock, PoisonError,
    atomic::{AtomicU32, AtomicUsize, Ordering},
};

use super::{
    Target,
    key::mix,
    maglev::{self, Lookup},
    random::Shares,
    weighted::Schedule,
};

/// Strategies speak of positions in the group, callers of indices in the slice of all targets.
#[derive(Debug)]
pub(super) struct Group {
    /// Indices of its targets, ascending; `None` when it has all of them.
    members: Option<Box<[u32]>>,
    len: usize,
    seed: u64,
    /// Round robin: the next position.
    cursor: AtomicUsize,
    /// These are made when first used.
    weighted: OnceLock<Mutex<Schedule>>,
    random: OnceLock<Shares>,
    maglev: OnceLock<Lookup>,
    /// Targets whose effective weight is below the declared one; lets [`Group::report`] return early.
    degraded: AtomicU32,
}

impl Group {
    /// `members` are the indices, ascending, of some of `targets` targets.
    pub(super) fn new(members: Vec<u32>, targets: usize, seed: u64) -> Self {
        Self {
            len: members.len(),
            members: (members.len() < targets).then(|| members.into_boxed_slice()),
            seed,
            cursor: AtomicUsize::new(mix(seed) as usize >> 1),
            weighted: OnceLock::new(),
            random: OnceLock::new(),
            maglev: OnceLock::new(),
            degraded: AtomicU32::new(0),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Index of the target at a position.
    pub(super) fn index(&self, position: usize) -> usize {
        match &self.members {
            None => position,
            Some(list) => list.get(position).map_or(usize::MAX, |&i| i as usize),
        }
    }

    fn position(&self, index: usize) -> Option<usize> {
        match &self.members {
            None => (index < self.len).then_some(index),
            Some(list) => list.binary_search(&(index as u32)).ok(),
        }
    }

    /// Its targets, in order of position.
    pub(super) fn targets<'a, T>(&'a self, targets: &'a [T]) -> impl Iterator<Item = &'a T> {
        (0..self.len).filter_map(|position| targets.get(self.index(position)))
    }

    /// Round robin: takes a turn.
    pub(super) fn turn(&self) -> usize {
        self.cursor.fetch_add(1, Ordering::Relaxed) % self.len.max(1)
    }

    pub(super) fn schedule<T: Target>(&self, targets: &[T]) -> MutexGuard<'_, Schedule> {
        lock(self.weighted.get_or_init(|| {
            let weights: Vec<_> = self.targets(targets).map(Target::weight).collect();
            Mutex::new(Schedule::new(weights.into_iter(), self.seed))
        }))
    }

    pub(super) fn shares<T: Target>(&self, targets: &[T]) -> &Shares {
        self.random
            .get_or_init(|| Shares::new(self.targets(targets).map(Target::weight)))
    }

    pub(super) fn maglev<T: Target>(&self, targets: &[T]) -> &Lookup {
        self.maglev.get_or_init(|| {
            let members = self.targets(targets).map(|t| (t.key(), t.weight()));
            maglev::lookup(members)
        })
    }

    /// Weighted round robin: how an attempt on a target of the slice went.
    pub(super) fn report(&self, index: usize, ok: bool) {
        if ok && self.degraded.load(Ordering::Relaxed) == 0 {
            return;
        }
        if let (Some(schedule), Some(position)) = (self.weighted.get(), self.position(index)) {
            let degraded = lock(schedule).report(position, ok);
            self.degraded.store(degraded, Ordering::Relaxed);
        }
    }
}

/// A panic elsewhere leaves the schedule usable: at worst one slot is lost.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
