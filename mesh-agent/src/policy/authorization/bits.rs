//! Sets of clauses, one bit each.
//!
//! A decision works on a stretch of them at a time, which lives on the stack.

/// Words of a stretch: 4,096 clauses in 512 bytes.
pub(super) const STRETCH: usize = 64;

/// Some of the clauses of a layer.
#[derive(Debug, Default)]
pub(super) enum Set {
    #[default]
    Empty,
    /// In ascending order.
    Few(Box<[u32]>),
    /// One bit for each clause of the layer: smaller and faster than `Few` from one in 64 on.
    Many(Box<[u64]>),
}

impl Set {
    /// `ids` ascend and may repeat; `words` is the size of the layer.
    pub(super) fn new(mut ids: Vec<u32>, words: usize) -> Self {
        ids.dedup();
        if ids.is_empty() {
            Self::Empty
        } else if ids.len() <= words {
            Self::Few(ids.into())
        } else {
            let mut bits = vec![0; words].into_boxed_slice();
            for id in ids {
                bits[id as usize / 64] |= 1 << (id % 64);
            }
            Self::Many(bits)
        }
    }

    /// Adds these clauses to a stretch that begins at word `first`.
    pub(super) fn add_to(&self, stretch: &mut [u64], first: usize) {
        self.each_word(stretch, first, |word, bits| *word |= bits);
    }

    /// Takes these clauses out of a stretch that begins at word `first`.
    pub(super) fn take_from(&self, stretch: &mut [u64], first: usize) {
        self.each_word(stretch, first, |word, bits| *word &= !bits);
    }

    fn each_word(&self, stretch: &mut [u64], first: usize, apply: impl Fn(&mut u64, u64)) {
        match self {
            Self::Empty => {}
            Self::Few(ids) => {
                let begin = first as u32 * 64;
                let end = begin + stretch.len() as u32 * 64;
                let from = ids.partition_point(|id| *id < begin);
                for id in ids[from..].iter().take_while(|id| **id < end) {
                    apply(&mut stretch[(id - begin) as usize / 64], 1 << (id % 64));
                }
            }
            Self::Many(bits) => {
                for (word, bits) in stretch.iter_mut().zip(&bits[first..]) {
                    apply(word, *bits);
                }
            }
        }
    }
}

/// Adds one clause to a set of as many as `bits` has room for.
pub(super) fn insert(bits: &mut [u64], id: u32) {
    bits[id as usize / 64] |= 1 << (id % 64);
}

/// The clauses of a word that come before a clause.
pub(super) fn before(word: usize, clause: u32) -> u64 {
    match (clause as usize).saturating_sub(word * 64) {
        0 => 0,
        n @ 1..64 => (1 << n) - 1,
        _ => u64::MAX,
    }
}

/// The clauses that one value satisfies, and those that it rules out.
#[derive(Debug, Default)]
pub(super) struct Hit {
    pub(super) satisfies: Set,
    pub(super) rules_out: Set,
}

/// A hit while clauses are still being added.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) satisfies: Vec<u32>,
    pub(super) rules_out: Vec<u32>,
}

impl Draft {
    pub(super) fn finish(self, words: usize) -> Hit {
        Hit {
            satisfies: Set::new(self.satisfies, words),
            rules_out: Set::new(self.rules_out, words),
        }
    }

    pub(super) fn add(&mut self, clause: u32, positive: bool) {
        match positive {
            true => self.satisfies.push(clause),
            false => self.rules_out.push(clause),
        }
    }
}
