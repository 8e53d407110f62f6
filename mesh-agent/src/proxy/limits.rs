//! How many connections the agent carries, and how the workloads of the node share them.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors kept for the agent itself: maps, admin, files, and the sockets that pods take beyond those below.
const RESERVE_MIN: u64 = 128;
const RESERVE_SHARE: u64 = 32;
/// A pod at rest: six listeners (three roles, two families), capture's and the proxy's; its namespace; three netlink
/// sockets; two sockets kept ready for each family.
const POD_DESCRIPTORS: usize = 20;
/// One of so many descriptors may be an end of a pipe.
const PIPES_SHARE: u64 = 32;
/// More pipes would not be faster, and each may hold 256 KiB for a reader that has paused.
const PIPES_MAX: u64 = 512;

/// A workload may hold this many times what is still free. 4 lets one workload alone take 80 %, two at most 44 % each,
/// n of them 4/(4n+1): there is always room for one more, and nobody has to know how many there are.
pub(super) const FREE_FACTOR: usize = 4;

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
    /// Pods that the reserve has room for; each one more takes the place of connections.
    pub pods: usize,
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
            pods: reserve as usize / 2 / POD_DESCRIPTORS,
        }
    }

    /// Connections at once with so many pods. Half are left whatever their number: they would not help otherwise.
    fn connections_with(&self, pods: usize) -> usize {
        let taken = pods.saturating_sub(self.pods) * POD_DESCRIPTORS / 2;
        self.connections - taken.min(self.connections / 2)
    }
}

/// The agent's connection limit.
#[derive(Debug)]
pub(super) struct Limits {
    capacity: Capacity,
    max: AtomicUsize,
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
    /// A limit that nothing changes.
    pub(super) fn new(max: usize) -> Arc<Self> {
        Self::of(Capacity {
            connections: max,
            pipes: 0,
            pods: usize::MAX,
        })
    }

    /// The connections of an agent that serves pods.
    pub(super) fn of(capacity: Capacity) -> Arc<Self> {
        Arc::new(Self {
            max: AtomicUsize::new(capacity.connections),
            capacity,
            used: AtomicUsize::new(0),
        })
    }

    /// To be told when pods come and go. Connections that are above the new limit live on.
    pub(super) fn set_pods(&self, pods: usize) {
        self.max
            .store(self.capacity.connections_with(pods), Ordering::Release);
    }

    /// What one workload can take while no other takes any.
    pub(super) fn max_alone(&self) -> usize {
        (self.max() * FREE_FACTOR).div_ceil(FREE_FACTOR + 1)
    }

    pub(super) fn max(&self) -> usize {
        self.max.load(Ordering::Acquire)
    }

    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Acquire)
    }

    /// Takes a place for one connection of the workload; `None` when the agent, or the workload's share, is full.
    pub(super) fn admit(&self, share: &Share) -> bool {
        let total = self.used.fetch_add(1, Ordering::AcqRel);
        let own = share.used.fetch_add(1, Ordering::AcqRel);
        let free = self.max().saturating_sub(total);
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
                pipes: 312,
                pods: 15,
            }
        );
        assert!(2 * (c.connections + c.pipes) < 20_000 - 600);
        assert_eq!(Capacity::of(100).connections, 0);
        assert!(Capacity::of(u64::MAX).connections > 1_000_000);
    }

    #[test]
    fn pods_take_the_place_of_connections() {
        let c = Capacity::of(20_000);
        assert_eq!(c.connections_with(15), 9_375);
        assert_eq!(c.connections_with(16), 9_365);
        let all = |pods: usize| 2 * (c.connections_with(pods) + c.pipes) + pods * POD_DESCRIPTORS;
        assert!((0..400).all(|pods| all(pods) < 20_000 - 300));
        assert_eq!(c.connections_with(100_000), 4_688);
        assert_eq!(Capacity::of(100).connections_with(10), 0);
    }

    #[test]
    fn fewer_connections_when_pods_come() {
        let limits = Limits::of(Capacity {
            connections: 900,
            pipes: 0,
            pods: 1,
        });
        let hog = Share::default();
        assert_eq!(fill(&limits, &hog), 720);
        limits.set_pods(31);
        assert_eq!(limits.max(), 600);
        assert!(!limits.admit(&Share::default()), "above the new limit");
        limits.set_pods(1);
        assert!(limits.admit(&Share::default()));
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
