//! Tables of consistent hashing: Maglev (Eisenbud et al., NSDI 2016), with weights.
//!
//! Each member has its own permutation of the slots, from its key, and the members take turns: whose turn it is takes
//! the next slot of its permutation that is free. With weights, the k-th turn of a member comes at the time
//! `(k + 1/2) / weight`, its first at 0: so everybody has at least one slot, and shares are rounded as Webster's method
//! rounds seats. The table depends on nothing but the members: not on their order, not on the agent, not on time.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use super::key::mix;

/// A prime, or permutations would not reach every slot. The small one of the paper: fewer than 1 % imbalance to some
/// 600 members, 128 KiB.
pub(super) const SLOTS: usize = 65_537;

/// Two hashes of one key. Another value moves every key of every mesh.
const OFFSET: u64 = 0x6d61_676c_6576_2d31;
const SKIP: u64 = 0x6d61_676c_6576_2d32;

const FREE: u16 = u16::MAX;

/// A table, shared by all groups of the same members.
#[derive(Debug)]
pub(super) struct Table {
    /// Key and weight, ascending.
    members: Box<[(u64, u32)]>,
    /// For each slot a place in `members`. There are not more slots than u16 has values: of more than 65,535 members
    /// those with the greatest keys have none, as some would have to go without whatever the type.
    slots: Box<[u16]>,
}

/// A table as one group reads it.
#[derive(Debug)]
pub(super) struct Lookup {
    table: Arc<Table>,
    /// For each place in the table's members the position in the group.
    positions: Box<[u32]>,
}

impl Lookup {
    /// The position in the group that has a slot; slots beyond the last begin again.
    pub(super) fn at(&self, slot: usize) -> Option<usize> {
        let place = *self.table.slots.get(slot % SLOTS)?;
        self.positions.get(place as usize).map(|&p| p as usize)
    }
}

/// The slot where a key begins.
pub(super) fn slot(key: u64) -> usize {
    ((u128::from(mix(key)) * SLOTS as u128) >> 64) as usize
}

/// The lookup for members (key and weight, none 0), in the order of their positions.
pub(super) fn lookup(members: impl Iterator<Item = (u64, u32)>) -> Lookup {
    let mut sorted: Vec<_> = members.zip(0u32..).collect();
    sorted.sort_unstable();
    let positions = sorted.iter().map(|&(_, position)| position).collect();
    let members = sorted.into_iter().map(|(member, _)| member).collect();
    Lookup {
        table: TABLES.get(members),
        positions,
    }
}

impl Table {
    fn new(members: Box<[(u64, u32)]>) -> Self {
        Self {
            slots: fill(&members),
            members,
        }
    }
}

fn fill(members: &[(u64, u32)]) -> Box<[u16]> {
    let slots = SLOTS as u64;
    let mut table = vec![FREE; SLOTS].into_boxed_slice();
    let mut turns: Vec<_> = members
        .iter()
        .take(FREE as usize)
        .map(|&(key, weight)| Turn {
            weight: u64::from(weight.max(1)),
            taken: 0,
            slot: mix(key ^ OFFSET) % slots,
            skip: mix(key ^ SKIP) % (slots - 1) + 1,
        })
        .collect();
    let mut order: BinaryHeap<_> = (0..turns.len())
        .map(|place| Reverse((0u64, place as u16)))
        .collect();
    let mut free = SLOTS;
    while free > 0
        && let Some(mut next) = order.peek_mut()
        && let Some(turn) = turns.get_mut(usize::from(next.0.1))
    {
        // Ends: a permutation visits every slot, and one is free.
        while let Some(slot) = table.get_mut(turn.slot as usize) {
            turn.slot = (turn.slot + turn.skip) % slots;
            if *slot == FREE {
                *slot = next.0.1;
                break;
            }
        }
        free -= 1;
        turn.taken += 1;
        next.0.0 = ((2 * turn.taken + 1) << 40) / turn.weight;
    }
    table
}

/// Where a member stands in its permutation.
struct Turn {
    weight: u64,
    taken: u64,
    slot: u64,
    skip: u64,
}

/// Tables that exist, so that equal members share one and what comes back soon need not be built again (3 to 25 ms).
struct Tables {
    inner: Mutex<Inner>,
}

struct Inner {
    all: Vec<Weak<Table>>,
    recent: VecDeque<Arc<Table>>,
}

/// So many of the tables last asked for are kept though nobody uses them: 2 MiB.
const RECENT: usize = 16;

static TABLES: Tables = Tables {
    inner: Mutex::new(Inner {
        all: Vec::new(),
        recent: VecDeque::new(),
    }),
};

impl Tables {
    fn get(&self, members: Box<[(u64, u32)]>) -> Arc<Table> {
        let known = self.with(|inner| inner.find(&members));
        known.unwrap_or_else(|| {
            // Built outside the lock; of two at once one stays.
            let table = Arc::new(Table::new(members));
            self.with(|inner| {
                inner.find(&table.members).unwrap_or_else(|| {
                    inner.add(&table);
                    table
                })
            })
        })
    }

    fn with<R>(&self, f: impl FnOnce(&mut Inner) -> R) -> R {
        f(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Inner {
    fn find(&mut self, members: &[(u64, u32)]) -> Option<Arc<Table>> {
        self.all
            .iter()
            .filter_map(Weak::upgrade)
            .find(|table| *table.members == *members)
    }

    fn add(&mut self, table: &Arc<Table>) {
        self.all.retain(|old| old.strong_count() > 0);
        self.all.push(Arc::downgrade(table));
        self.recent.push_front(Arc::clone(table));
        self.recent.truncate(RECENT);
    }
}

#[cfg(test)]
mod tests;
