//! How many events were in the last stretch of time: counters by parts of it, without a lock.

use std::sync::atomic::{AtomicU64, Ordering};

/// Parts of a window. More than these and one are never asked for, so that a slot is used again only when it is out.
pub(super) const PARTS: u64 = 40;
const SLOTS: u64 = 64;
const COUNT_BITS: u32 = 24;
const COUNT: u64 = (1 << COUNT_BITS) - 1;

/// Parts are numbered by the caller: time divided by the width of a part.
#[derive(Debug)]
pub(super) struct Window {
    /// Number of the part, and the events in it.
    slots: [AtomicU64; SLOTS as usize],
}

impl Default for Window {
    fn default() -> Self {
        Self {
            slots: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl Window {
    pub(super) fn add(&self, part: u64) {
        let slot = &self.slots[(part % SLOTS) as usize];
        let counted = |old: u64| {
            let (there, count) = (old >> COUNT_BITS, old & COUNT);
            match there == part {
                true => Some(part << COUNT_BITS | (count + 1).min(COUNT)),
                // An event that is told a whole window late is not counted.
                false if there > part => None,
                false => Some(part << COUNT_BITS | 1),
            }
        };
        let _ = slot.try_update(Ordering::Relaxed, Ordering::Relaxed, counted);
    }

    /// Events of the newest `parts` parts up to and with `part`.
    pub(super) fn sum(&self, part: u64, parts: u64) -> u64 {
        self.slots
            .iter()
            .map(|slot| slot.load(Ordering::Relaxed))
            .filter(|slot| {
                let there = slot >> COUNT_BITS;
                there <= part && part - there < parts
            })
            .map(|slot| slot & COUNT)
            .sum()
    }

    pub(super) fn clear(&self) {
        for slot in &self.slots {
            slot.store(0, Ordering::Relaxed);
        }
    }
}
