//! Near endpoints first: same node, then same zone, then others.
//!
//! A ring takes all traffic while at least `threshold` percent of its endpoints are usable. Below that it takes
//! `usable share / threshold`, and the rest overflows to the next ring. When all rings together cannot take everything
//! by this rule, each takes in proportion to what it could.

use std::sync::OnceLock;

use super::{
    Balancer, Place, Target, Usability,
    group::Group,
    health::{Cache, Health},
    key::mix,
};
use crate::model::{Locality, Prefer};

/// Same node, same zone, others.
pub(super) const RINGS: usize = 3;

/// The rings around the clients of one place. Those for another place hang from the first: an agent serves the workloads
/// of its node, so on a real node the chain has one link.
#[derive(Debug)]
pub(super) struct Rings {
    node: Option<Box<str>>,
    zone: Option<Box<str>>,
    /// Nearest first, none empty; at most [`RINGS`].
    groups: Vec<Group>,
    pub(super) health: Cache,
    next: OnceLock<Box<Rings>>,
}

/// The rings for a client, made if there are none yet.
pub(super) fn find<'a, T: Target>(
    first: &'a OnceLock<Box<Rings>>,
    balancer: &Balancer,
    targets: &[T],
    client: Place<'_>,
) -> &'a Rings {
    let client = visible(client, balancer.locality.prefer);
    let mut place = first;
    loop {
        let rings = place.get_or_init(|| Box::new(Rings::new(targets, client, balancer.seed)));
        if rings.node.as_deref() == client.node && rings.zone.as_deref() == client.zone {
            return rings;
        }
        place = &rings.next;
    }
}

/// Calls `f` with every group there is.
pub(super) fn each(first: &OnceLock<Box<Rings>>, f: impl Fn(&Group)) {
    let mut place = first;
    while let Some(rings) = place.get() {
        rings.groups.iter().for_each(&f);
        place = &rings.next;
    }
}

/// What of a client's place matters.
fn visible(client: Place<'_>, prefer: Prefer) -> Place<'_> {
    match prefer {
        Prefer::None => Place::default(),
        Prefer::Zone => Place {
            node: None,
            ..client
        },
        Prefer::Node => client,
    }
}

impl Rings {
    fn new<T: Target>(targets: &[T], client: Place<'_>, seed: u64) -> Self {
        let mut members: [Vec<u32>; RINGS] = Default::default();
        for (index, target) in (0u32..).zip(targets).filter(|(_, t)| t.weight() > 0) {
            members[ring(client, target.place())].push(index);
        }
        Self {
            node: client.node.map(Into::into),
            zone: client.zone.map(Into::into),
            groups: members
                .into_iter()
                .filter(|m| !m.is_empty())
                .map(|m| Group::new(m, targets.len(), seed))
                .collect(),
            health: Cache::default(),
            next: OnceLock::new(),
        }
    }

    /// At least one; nearest first.
    pub(super) fn groups(&self) -> &[Group] {
        &self.groups
    }
}

/// Where an endpoint stands from a client.
fn ring(client: Place<'_>, endpoint: Place<'_>) -> usize {
    let same = |a: Option<&str>, b| a.is_some() && a == b;
    if same(client.node, endpoint.node) {
        0
    } else if same(client.zone, endpoint.zone) {
        1
    } else {
        2
    }
}

/// The ring that takes a choice whose place in the traffic is `unit` (0.0..1.0).
pub(super) fn choose(
    health: &Health,
    rings: usize,
    worst: Usability,
    locality: &Locality,
    unit: f64,
) -> usize {
    let takes = shares(health, rings, worst, locality.threshold);
    let mut left = unit;
    let all = || takes.iter().take(rings).enumerate();
    for (ring, share) in all() {
        if left < *share {
            return ring;
        }
        left -= share;
    }
    // Rounding, or nobody is usable.
    all()
        .filter(|(_, share)| **share > 0.0)
        .map(|(ring, _)| ring)
        .next_back()
        .unwrap_or(0)
}

/// What part of the traffic each ring takes; all 0 when nobody is usable.
pub(super) fn shares(
    health: &Health,
    rings: usize,
    worst: Usability,
    threshold: u32,
) -> [f64; RINGS] {
    let mut takes = [0.0; RINGS];
    let mut left = 1.0;
    for (take, tally) in takes.iter_mut().zip(&health.rings).take(rings) {
        *take = tally.fill(worst, threshold).min(left);
        left -= *take;
    }
    let total = 1.0 - left;
    if total > 0.0 {
        takes.iter_mut().for_each(|take| *take /= total);
    }
    takes
}

/// Place in the traffic of a key, so that the requests of one key stay in one ring.
pub(super) fn unit_of(key: u64) -> f64 {
    const SALT: u64 = 0x6c6f_6361_6c69_7479;
    (mix(key ^ SALT) >> 11) as f64 / (1u64 << 53) as f64
}
