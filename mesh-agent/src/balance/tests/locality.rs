//! Near endpoints first, overflow.

use super::{
    super::{health::Health, locality},
    *,
};
use crate::model::{Locality, Prefer};

const HERE: Place<'static> = Place {
    node: Some("n1"),
    zone: Some("a"),
};

/// Hosts on the node, in the zone, elsewhere; of each ring the given number, and how many of them are usable.
fn around(rings: [(usize, usize); 3]) -> Vec<Host> {
    let places = [
        HERE,
        Place {
            node: Some("n2"),
            ..HERE
        },
        Place {
            node: Some("n3"),
            zone: Some("b"),
        },
    ];
    let all: usize = rings.iter().map(|r| r.0).sum();
    let mut hosts = hosts(&vec![1; all]);
    let mut next = hosts.iter_mut();
    for ((count, usable), place) in rings.into_iter().zip(places) {
        for i in 0..count {
            let host = next.next().unwrap();
            host.place = place;
            host.usable = if i < usable {
                Usability::Ready
            } else {
                Usability::Ejected
            };
        }
    }
    hosts
}

fn bench(strategy: Strategy, prefer: Prefer, threshold: u32, hosts: Vec<Host>) -> Bench {
    let policy = LoadBalancer {
        strategy,
        locality: Locality { prefer, threshold },
        ..LoadBalancer::default()
    };
    Bench::new(&policy, hosts, 3)
}

fn near(bench: &Bench) -> Pick<'static> {
    Pick {
        client: HERE,
        may_panic: false,
        ..Pick::at(bench.now)
    }
}

/// Shares of the three rings among `choices`; each with another key.
fn shares(bench: &mut Bench, choices: u64) -> [f64; 3] {
    let mut counts = [0.0; 3];
    for key in 0..choices {
        let pick = Pick {
            hash: Some(key::mix(key)),
            ..near(bench)
        };
        let chosen = bench.ask(pick).next().unwrap();
        counts[ring(&bench.hosts[chosen])] += 1.0 / choices as f64;
    }
    counts
}

fn ring(host: &Host) -> usize {
    match host.place.node {
        Some("n1") => 0,
        Some("n2") => 1,
        _ => 2,
    }
}

/// Node, zone, others; the preference; the threshold; what each ring must get.
#[test]
fn rings_overflow_by_their_health() {
    use Prefer::{Node, Zone};
    let table = [
        // All well: the nearest takes all.
        ([(2, 2), (4, 4), (4, 4)], Node, 70, [1.0, 0.0, 0.0]),
        ([(2, 2), (4, 4), (4, 4)], Prefer::None, 70, [0.2, 0.4, 0.4]),
        // The zone includes the node.
        (
            [(2, 2), (4, 4), (4, 4)],
            Zone,
            70,
            [1.0 / 3.0, 2.0 / 3.0, 0.0],
        ),
        // Above the threshold still all, below it what is left of it.
        ([(4, 3), (4, 4), (4, 4)], Node, 70, [1.0, 0.0, 0.0]),
        ([(4, 2), (4, 4), (4, 4)], Node, 80, [0.625, 0.375, 0.0]),
        ([(4, 1), (4, 1), (4, 4)], Node, 50, [0.5, 0.5, 0.0]),
        ([(4, 1), (4, 1), (4, 4)], Node, 100, [0.25, 0.25, 0.5]),
        // Nobody there: the next.
        ([(2, 0), (4, 4), (4, 4)], Node, 70, [0.0, 1.0, 0.0]),
        ([(0, 0), (0, 0), (4, 4)], Node, 70, [0.0, 0.0, 1.0]),
        // Threshold 0: all while one is left.
        ([(4, 1), (4, 4), (4, 4)], Node, 0, [1.0, 0.0, 0.0]),
        // All together too ill: by what they can take.
        ([(4, 1), (4, 1), (0, 0)], Node, 100, [0.5, 0.5, 0.0]),
        ([(4, 2), (4, 1), (4, 1)], Node, 100, [0.5, 0.25, 0.25]),
    ];
    for (rings, prefer, threshold, expected) in table {
        for strategy in STRATEGIES {
            let mut bench = bench(strategy, prefer, threshold, around(rings));
            let found = shares(&mut bench, 4_000);
            for (found, expected) in found.iter().zip(expected) {
                assert!(
                    (found - expected).abs() < 0.03,
                    "{strategy:?} {rings:?} {prefer:?} {threshold}: {found} instead of {expected}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// All traffic goes somewhere, nothing to where nobody is usable, and a nearer ring that is well leaves nothing.
    #[test]
    fn shares_are_whole(
        rings in prop::array::uniform3((0usize..6, 0usize..6)),
        threshold in 0u32..=100,
    ) {
        let rings = rings.map(|(count, usable)| (count, usable.min(count)));
        let hosts = around(rings);
        prop_assume!(rings.iter().any(|r| r.1 > 0));
        let bench = bench(Strategy::Random, Prefer::Node, threshold, hosts);
        let found = locality::find(&bench.balancer.rings, &bench.balancer, &bench.hosts, HERE);
        let health = Health::count(found.groups(), &bench.hosts, bench.now);
        let shares = locality::shares(&health, found.groups().len(), Usability::Ready, threshold);
        prop_assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        let there: Vec<_> = rings.iter().filter(|r| r.0 > 0).collect();
        for (i, (count, usable)) in there.iter().enumerate() {
            prop_assert!(*usable > 0 || shares[i] == 0.0);
            if *usable > 0 && usable * 100 >= count * threshold as usize {
                prop_assert!(shares[i + 1..].iter().all(|&s| s == 0.0));
            }
        }
        for step in 0..50 {
            let unit = f64::from(step) / 50.0;
            let locality = &bench.balancer.locality;
            let chosen = locality::choose(&health, there.len(), Usability::Ready, locality, unit);
            prop_assert!(there[chosen].1 > 0);
        }
    }

    /// Everybody who may be used comes once; after the ring of the first candidate the nearest come first.
    #[test]
    fn retries_stay_near(
        strategy in prop::sample::select(&STRATEGIES[..]),
        rings in prop::array::uniform3((0usize..12, 0usize..12)),
        threshold in 0u32..=100,
        hash in prop::option::of(any::<u64>()),
        affinity in prop::option::of(any::<u64>()),
    ) {
        let rings = rings.map(|(count, usable)| (count, usable.min(count)));
        let mut bench = bench(strategy, Prefer::Node, threshold, around(rings));
        let pick = Pick { hash, affinity, ..near(&bench) };
        let found: Vec<_> = bench.ask(pick).collect();
        let mut sorted = found.clone();
        sorted.sort_unstable();
        let usable: Vec<_> = (0..bench.hosts.len())
            .filter(|&i| bench.hosts[i].usable == Usability::Ready)
            .collect();
        prop_assert_eq!(sorted, usable);
        let order: Vec<_> = found.iter().map(|&i| ring(&bench.hosts[i])).collect();
        let mut later: Vec<_> = order.iter().filter(|&&r| r != order[0]).copied().collect();
        prop_assert!(later.is_sorted());
        later.dedup();
        let changes = order.windows(2).filter(|w| w[0] != w[1]).count();
        prop_assert_eq!(changes, later.len());
    }
}

/// A key stays in its ring, or overflow would scatter it.
#[test]
fn a_key_stays_in_its_ring() {
    for affinity in [false, true] {
        let mut bench = bench(
            Strategy::ConsistentHash,
            Prefer::Node,
            100,
            around([(4, 2), (4, 4), (0, 0)]),
        );
        for key in 0..200 {
            let pick = Pick {
                hash: Some(key),
                affinity: affinity.then_some(key),
                ..near(&bench)
            };
            let firsts: HashSet<_> = (0..10).map(|_| bench.ask(pick).next()).collect();
            assert_eq!(firsts.len(), 1, "key {key}");
        }
    }
}

/// Clients of several places share a balancer; each has its own rings.
#[test]
fn each_client_has_its_own_rings() {
    let mut bench = bench(
        Strategy::RoundRobin,
        Prefer::Node,
        70,
        around([(2, 2), (2, 2), (2, 2)]),
    );
    let unknown = Place::default();
    for _ in 0..3 {
        for (client, allowed) in [
            (HERE, &[0][..]),
            (
                Place {
                    node: Some("n3"),
                    zone: Some("b"),
                },
                &[2],
            ),
            (
                Place {
                    node: Some("n9"),
                    zone: Some("a"),
                },
                &[0, 1],
            ),
            (unknown, &[0, 1, 2]),
        ] {
            for _ in 0..6 {
                let pick = Pick {
                    client,
                    ..near(&bench)
                };
                let chosen = bench.ask(pick).next().unwrap();
                assert!(allowed.contains(&ring(&bench.hosts[chosen])), "{client:?}");
            }
        }
    }
}

/// In panic the ejected of a near ring count as usable: traffic does not leave for a place that is no better.
#[test]
fn panic_keeps_traffic_near() {
    let mut bench = bench(
        Strategy::RoundRobin,
        Prefer::Node,
        70,
        around([(4, 1), (4, 1), (4, 1)]),
    );
    let pick = Pick {
        may_panic: true,
        ..near(&bench)
    };
    let chosen: HashSet<_> = (0..20).map(|_| bench.ask(pick).next().unwrap()).collect();
    assert_eq!(chosen, HashSet::from([0, 1, 2, 3]));
}
