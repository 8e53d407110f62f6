//! How many connections the agent carries, and how the workloads of the node share them.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors kept for the agent itself: listeners, maps, netlink, admin, and the sockets kept ready for pods.
const RESERVE_MIN: u64 = 128;
const RESERVE_SHARE: u64 = 32;
/// One of so many descriptors may be an end of a pipe.
const PIPES_SHARE: u64 = 32;
/// More pipes would not be faster, and each may hold 256 KiB for a reader that has paused.
const PIPES_MAX: u64 = 512;

/// A workload may hold this many times what is still free. 4 lets one workload alone take 80 %, two at most 44 % each,
/// n of them 4/(4n+1): there is always room for one more, and nobody has to know how many there are.
const FREE_FACTOR: usize = 4;

/// Raises RLIMIT_NOFILE to its hard limit and returns it.
pub fn raise_nofile() -> io::Result<u64> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        setrlimit(
            Resource::Nofile,
            Rlimit {
                current: limit.maximum,
                maximum: limit.maximum,
            },
        )?;
    }
    Ok(limit.maximum.unwrap_or(u64::MAX))
}

/// What follows from a number of descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Connections at once; each takes two descriptors.
    pub connections: usize,
    /// Pipes at once; each takes two descriptors.
    pub pipes: usize,
}

impl Capacity {
    /// Divides `nofile` descriptors.
    pub fn of(nofile: u64) -> Self {
        // More than this many connections would be limited by memory first.
        let nofile = nofile.min(8 << 20);
        let reserve = (nofile / RESERVE_SHARE).max(RESERVE_MIN);
        let pipes = (nofile / PIPES_SHARE / 2).min(PIPES_MAX);
        let connections = nofile.saturating_sub(reserve + 2 * pipes) / 2;
        Self {
            connections: connections as usize,
            pipes: pipes as usize,
        }
    }
}

/// The agent's connection limit.
#[derive(Debug)]
pub(super) struct Limits {
    max: usize,
    used: AtomicUsize,
}

/// Connections that one workload holds.
#[derive(Debug, Default)]
pub(super) struct Share {
    used: AtomicUsize,
}

impl Share {
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Acquire)
    }
}

impl Limits {
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            max,
            used: AtomicUsize::new(0),
        })
    }

    /// What one workload can take while no other takes any.
    pub(super) fn max_alone(&self) -> usize {
        (self.max * FREE_FACTOR).div_ceil(FREE_FACTOR + 1)
    }

    pub(super) fn max(&self) -> usize {
        self.max
    }

    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Acquire)
    }

    /// Takes a place for one connection of the workload; `None` when the agent, or the workload's share, is full.
    pub(super) fn admit(&self, share: &Share) -> bool {
        let total = self.used.fetch_add(1, Ordering::AcqRel);
        let own = share.used.fetch_add(1, Ordering::AcqRel);
        let free = self.max.saturating_sub(total);
        if own < free.saturating_mul(FREE_FACTOR) {
            return true;
        }
        self.release(share);
        false
    }

    /// Gives one place back.
    pub(super) fn release(&self, share: &Share) {
        share.used.fetch_sub(1, Ordering::AcqRel);
        self.used.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(limits: &Limits, share: &Share) -> usize {
        let mut n = 0;
        while limits.admit(share) {
            n += 1;
        }
        n
    }

    #[test]
    fn capacity_of_descriptors() {
        let c = Capacity::of(20_000);
        assert_eq!(
            c,
            Capacity {
                connections: 9_375,
                pipes: 312
            }
        );
        assert!(2 * (c.connections + c.pipes) < 20_000 - 600);
        assert_eq!(Capacity::of(100).connections, 0);
        assert!(Capacity::of(u64::MAX).connections > 1_000_000);
    }

    #[test]
    fn one_workload_leaves_room_for_others() {
        let limits = Limits::new(900);
        let (hog, second, third) = (Share::default(), Share::default(), Share::default());
        assert_eq!(fill(&limits, &hog), 720);
        assert_eq!(fill(&limits, &second), 144);
        assert!(fill(&limits, &third) >= 20);
        assert!(limits.used() < limits.max());
    }

    #[test]
    fn the_hog_shrinks_to_its_share() {
        let limits = Limits::new(900);
        let (hog, other) = (Share::default(), Share::default());
        fill(&limits, &hog);
        // The hog's connections end one by one, and whoever asks takes what is free.
        for _ in 0..2_000 {
            if hog.used() > 0 {
                limits.release(&hog);
            }
            fill(&limits, &other);
            fill(&limits, &hog);
        }
        assert!(
            hog.used().abs_diff(other.used()) < 20,
            "{} {}",
            hog.used(),
            other.used()
        );
        assert!(limits.used() < limits.max());
    }

    #[test]
    fn a_limit_of_zero_admits_nobody() {
        assert!(!Limits::new(0).admit(&Share::default()));
    }
}
