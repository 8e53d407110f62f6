//! Consistent hashing through the iterator: agreement, stability, bounded load.

use std::collections::HashMap;

use rand::seq::SliceRandom;

use super::*;

fn bench(hosts: Vec<Host>, seed: u64) -> Bench {
    Bench::new(&policy(Strategy::ConsistentHash), hosts, seed)
}

/// The bound of each host, as its definition has it.
fn bound(hosts: &[Host], of: &Host) -> u32 {
    let usable = || hosts.iter().filter(|h| h.usable == Usability::Ready);
    let in_flight: u32 = usable().map(|h| h.in_flight).sum();
    let weight: u32 = usable().map(|h| h.weight).sum();
    let share = f64::from(of.weight) / f64::from(weight);
    (1.5 * f64::from(in_flight + 1) * share - 1e-9).ceil() as u32
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Two agents that know the endpoints in different orders ask the same ones, for retries too.
    #[test]
    fn every_agent_agrees(
        weights in prop::collection::vec(1u32..9, 1..40),
        keys in prop::collection::vec(any::<u64>(), 1..20),
        seed: u64,
    ) {
        let here = hosts(&weights);
        let mut there = here.clone();
        there.shuffle(&mut StdRng::seed_from_u64(seed));
        let (mut one, mut other) = (bench(here.clone(), 1), bench(there.clone(), seed));
        for key in keys {
            let of_one: Vec<_> = one.of_key(key).iter().map(|&i| here[i].key).collect();
            let of_other: Vec<_> = other.of_key(key).iter().map(|&i| there[i].key).collect();
            prop_assert_eq!(of_one, of_other);
        }
    }

    /// The keys of healthy endpoints stay while others are ejected, and come back when those do.
    #[test]
    fn an_ejection_moves_only_the_keys_of_the_ejected(
        weights in prop::collection::vec(1u32..9, 3..40),
        ejected in prop::collection::vec(any::<prop::sample::Index>(), 1..4),
        keys in prop::collection::vec(any::<u64>(), 1..40),
    ) {
        let mut bench = bench(hosts(&weights), 1);
        let before: Vec<_> = keys.iter().map(|&key| bench.of_key(key)).collect();
        for index in &ejected {
            let count = bench.hosts.len();
            bench.hosts[index.index(count)].usable = Usability::Ejected;
        }
        for (&key, before) in keys.iter().zip(&before) {
            let pick = Pick { hash: Some(key), may_panic: false, ..Pick::at(bench.now) };
            let after: Vec<_> = bench.ask(pick).collect();
            let ready = |&&i: &&usize| bench.hosts[i].usable == Usability::Ready;
            let expected: Vec<_> = before.iter().filter(ready).copied().collect();
            prop_assert_eq!(after, expected);
        }
    }

    /// Whatever is in flight, the one chosen has room for one more within the bound.
    #[test]
    fn never_more_than_half_above_the_average(
        of in prop::collection::vec((1u32..5, 0u32..50, any::<bool>()), 1..32),
        key: u64,
    ) {
        prop_assume!(of.iter().any(|o| o.2));
        let weights: Vec<_> = of.iter().map(|o| o.0).collect();
        let mut bench = bench(hosts(&weights), 1);
        for (host, o) in bench.hosts.iter_mut().zip(&of) {
            host.in_flight = o.1;
            host.usable = if o.2 { Usability::Ready } else { Usability::Ejected };
        }
        let pick = Pick { hash: Some(key), may_panic: false, ..Pick::at(bench.now) };
        let chosen = bench.ask(pick).next().unwrap();
        let host = &bench.hosts[chosen];
        prop_assert!(host.in_flight < bound(&bench.hosts, host));
        // And the keys of one with room are not sent on.
        bench.hosts.iter_mut().for_each(|h| h.in_flight = 0);
        let home = bench.ask(pick).next().unwrap();
        for (host, o) in bench.hosts.iter_mut().zip(&of) {
            host.in_flight = o.1;
        }
        let host = &bench.hosts[home];
        prop_assert!(home == chosen || host.in_flight >= bound(&bench.hosts, host));
    }
}

/// One key only, and nothing ends: the worst case. With more endpoints than are counted for each choice as well.
#[test]
fn a_hot_key_spreads_over_all() {
    for count in [2, 10, 32, 200] {
        let mut bench = bench(hosts(&vec![1; count]), 1);
        for _ in 0..20 * count {
            let chosen = bench.of_key(42)[0];
            bench.hosts[chosen].in_flight += 1;
        }
        for host in &bench.hosts {
            assert!(host.in_flight <= 30, "{} of {count}", host.in_flight);
        }
        let used = bench.hosts.iter().filter(|h| h.in_flight > 0).count();
        assert!(used * 3 >= count * 2, "{used} of {count}");
    }
}

#[test]
fn keys_follow_the_weights() {
    let weights = [1, 0, 5, 10, 4];
    let mut bench = bench(hosts(&weights), 1);
    let mut counts = [0usize; 5];
    for key in 0..20_000u64 {
        counts[bench.of_key(key)[0]] += 1;
    }
    for (count, weight) in counts.iter().zip(weights) {
        let expected = f64::from(weight) * 1_000.0;
        assert!(
            (*count as f64 - expected).abs() <= expected * 0.12,
            "{counts:?}"
        );
    }
}

/// A request without the key is balanced by weight, and does not stick.
#[test]
fn without_a_key_at_random() {
    let mut bench = bench(hosts(&[1, 3]), 1);
    let counts = bench.counts(8_000, |_| true);
    assert!((5_700..6_300).contains(&counts[1]), "{counts:?}");
}

/// Another value would move keys at an upgrade of the mesh.
#[test]
fn golden() {
    let mut bench = bench(hosts(&[1, 2, 3, 4, 5]), 1);
    let firsts: HashMap<_, _> = ["", "a", "session-1", "session-2", "user-4711"]
        .into_iter()
        .map(|key| (key, bench.of_key(hash_key(key.as_bytes()))))
        .collect();
    let expected = [
        ("", vec![3, 4, 1, 2, 0]),
        ("a", vec![4, 0, 1, 2, 3]),
        ("session-1", vec![3, 2, 4, 1, 0]),
        ("session-2", vec![1, 2, 0, 4, 3]),
        ("user-4711", vec![0, 1, 4, 3, 2]),
    ];
    assert_eq!(firsts, HashMap::from(expected));
}
