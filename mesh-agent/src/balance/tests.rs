//! Tests of the strategies through the iterator that the proxy uses.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use proptest::prelude::{
    Just, ProptestConfig, any, prop, prop_assert, prop_assert_eq, prop_assume, prop_oneof, proptest,
};
use rand::{SeedableRng, rngs::StdRng};

use super::*;

mod consistent_hash;
mod locality;
mod panic;
mod peak_ewma;
mod slow_start;

#[derive(Clone, Debug)]
struct Host {
    weight: u32,
    in_flight: u32,
    key: u64,
    ramping_since: Option<Instant>,
    latency: Option<f64>,
    place: Place<'static>,
    usable: Usability,
}

impl Target for Host {
    fn weight(&self) -> u32 {
        self.weight
    }
    fn in_flight(&self) -> u32 {
        self.in_flight
    }
    fn key(&self) -> u64 {
        self.key
    }
    fn ramping_since(&self) -> Option<Instant> {
        self.ramping_since
    }
    fn latency_load(&self, _now: Instant) -> Option<f64> {
        self.latency
    }
    fn place(&self) -> Place<'_> {
        self.place
    }
    fn usable(&self, _now: Instant) -> Usability {
        self.usable
    }
}

fn hosts(weights: &[u32]) -> Vec<Host> {
    let host = |(i, &weight): (usize, &u32)| Host {
        weight,
        in_flight: 0,
        key: endpoint_key(SocketAddr::from((
            [10, 0, (i / 250) as u8, (i % 250) as u8],
            80,
        ))),
        ramping_since: None,
        latency: None,
        place: Place::default(),
        usable: Usability::Ready,
    };
    weights.iter().enumerate().map(host).collect()
}

fn policy(strategy: Strategy) -> LoadBalancer {
    LoadBalancer {
        strategy,
        ..LoadBalancer::default()
    }
}

const STRATEGIES: [Strategy; 6] = [
    Strategy::RoundRobin,
    Strategy::WeightedRoundRobin,
    Strategy::Random,
    Strategy::LeastConnections,
    Strategy::ConsistentHash,
    Strategy::PeakEwma,
];

/// A balancer with what a test calls it with.
struct Bench {
    hosts: Vec<Host>,
    balancer: Balancer,
    rng: StdRng,
    now: Instant,
}

impl Bench {
    fn new(policy: &LoadBalancer, hosts: Vec<Host>, seed: u64) -> Self {
        Self {
            balancer: Balancer::new(policy, &hosts, seed),
            rng: StdRng::seed_from_u64(seed),
            now: Instant::now(),
            hosts,
        }
    }

    fn all(&mut self, affinity: Option<u64>) -> Vec<usize> {
        let pick = Pick {
            affinity,
            ..Pick::at(self.now)
        };
        self.ask(pick).collect()
    }

    fn ask(&mut self, pick: Pick<'_>) -> Candidates<'_, Host> {
        self.balancer.candidates(&self.hosts, pick, &mut self.rng)
    }

    /// All candidates for a key of consistent hashing.
    fn of_key(&mut self, key: u64) -> Vec<usize> {
        let pick = Pick {
            hash: Some(key),
            ..Pick::at(self.now)
        };
        self.ask(pick).collect()
    }

    /// The first candidate that `usable` lets through.
    fn choose(&mut self, usable: impl Fn(usize) -> bool) -> usize {
        self.ask(Pick::at(self.now)).find(|&i| usable(i)).unwrap()
    }

    fn repeat(&mut self, choices: usize) {
        for _ in 0..choices {
            self.choose(|_| true);
        }
    }

    fn counts(&mut self, choices: usize, usable: impl Fn(usize) -> bool) -> Vec<usize> {
        let mut counts = vec![0; self.hosts.len()];
        for _ in 0..choices {
            counts[self.choose(&usable)] += 1;
        }
        counts
    }
}

proptest! {
    #[test]
    fn every_target_with_weight_comes_exactly_once(
        strategy in prop::sample::select(&STRATEGIES[..]),
        weights in prop::collection::vec(prop_oneof![Just(0u32), 1u32..9, 1u32..2_000_000], 0..40),
        affinity in prop::option::of(any::<u64>()),
        hash in prop::option::of(any::<u64>()),
        in_flight in prop::collection::vec(0u32..4, 40),
        slow_start in prop::option::of(Just(Duration::from_secs(10))),
        seed: u64,
    ) {
        let now = Instant::now();
        let mut hosts = hosts(&weights);
        for (i, host) in hosts.iter_mut().enumerate() {
            host.ramping_since = (i % 2 == 0).then_some(now);
            host.in_flight = in_flight[i];
        }
        let policy = LoadBalancer { strategy, slow_start, ..LoadBalancer::default() };
        let mut bench = Bench::new(&policy, hosts, seed);
        bench.now = now;
        let expected: Vec<_> = (0..weights.len()).filter(|&i| weights[i] > 0).collect();
        for _ in 0..4 {
            let mut found: Vec<_> = bench.ask(Pick { affinity, hash, ..Pick::at(now) }).collect();
            found.sort_unstable();
            prop_assert_eq!(&found, &expected);
        }
    }

    #[test]
    fn round_robin_gives_each_its_turn(
        weights in prop::collection::vec(0u32..3, 1..20),
        rounds in 1usize..5,
        seed: u64,
    ) {
        prop_assume!(weights.iter().any(|&w| w > 0));
        let mut bench = Bench::new(&policy(Strategy::RoundRobin), hosts(&weights), seed);
        let active = weights.iter().filter(|&&w| w > 0).count();
        let counts = bench.counts(rounds * active, |_| true);
        for (count, weight) in counts.iter().zip(&weights) {
            prop_assert_eq!(*count, if *weight > 0 { rounds } else { 0 });
        }
    }

    /// The share of an ejected endpoint falls to the others in the proportion of their weights.
    #[test]
    fn an_ejected_endpoint_leaves_its_share_to_all(
        weights in prop::collection::vec(1u32..6, 3..7),
        ejected in 0usize..3,
        seed: u64,
    ) {
        for strategy in [Strategy::RoundRobin, Strategy::WeightedRoundRobin] {
            let mut bench = Bench::new(&policy(strategy), hosts(&weights), seed);
            let counts = bench.counts(3_000, |i| i != ejected);
            let weight = |i: usize| match strategy {
                Strategy::RoundRobin => 1.0,
                _ => f64::from(weights[i]),
            };
            let total: f64 = (0..weights.len()).filter(|&i| i != ejected).map(weight).sum();
            for i in (0..weights.len()).filter(|&i| i != ejected) {
                let expected = 3_000.0 * weight(i) / total;
                prop_assert!(
                    (counts[i] as f64 - expected).abs() <= 3.0 + expected * 0.02,
                    "{strategy:?} {weights:?} without {ejected}: {counts:?}",
                );
            }
        }
    }

    /// Whatever fails and is tried again: no first attempt comes sooner or later for it.
    #[test]
    fn retries_take_no_turns(
        weights in prop::collection::vec(1u32..6, 2..7),
        retries in prop::collection::vec(0usize..8, 60),
        failing in 0usize..2,
        seed: u64,
    ) {
        for strategy in [Strategy::RoundRobin, Strategy::WeightedRoundRobin] {
            let mut undisturbed = Bench::new(&policy(strategy), hosts(&weights), seed);
            let mut bench = Bench::new(&policy(strategy), hosts(&weights), seed);
            for retries in &retries {
                let expected = undisturbed.choose(|_| true);
                let mut candidates = bench.ask(Pick::at(bench.now));
                let first = candidates.next();
                prop_assert_eq!(first, Some(expected), "{:?} {:?}", strategy, &weights);
                candidates.tried();
                let wanted = if expected == failing { *retries } else { 0 };
                let mut others: Vec<_> = candidates.take(wanted).collect();
                let all = others.len();
                prop_assert_eq!(all, wanted.min(weights.len() - 1));
                others.retain(|other| *other != expected);
                others.sort_unstable();
                others.dedup();
                prop_assert_eq!(others.len(), all, "each comes once");
            }
        }
    }

    #[test]
    fn who_comes_back_gets_no_burst(weights in prop::collection::vec(1u32..6, 2..7), seed: u64) {
        let mut bench = Bench::new(&policy(Strategy::WeightedRoundRobin), hosts(&weights), seed);
        bench.counts(500, |i| i != 0);
        let total: u32 = weights.iter().sum();
        let share = (20 * weights[0]).div_ceil(total) as usize;
        let counts = bench.counts(20, |_| true);
        prop_assert!(counts[0] <= share + 2, "{counts:?} for {weights:?}");
    }

    #[test]
    fn least_connections_never_takes_the_fuller_of_its_two(
        loads in prop::collection::vec((1u32..5, 0u32..20), 2..30),
        seed: u64,
    ) {
        let weights: Vec<_> = loads.iter().map(|l| l.0).collect();
        let mut hosts = hosts(&weights);
        for (host, load) in hosts.iter_mut().zip(&loads) {
            host.in_flight = load.1;
        }
        let load = |i: usize| f64::from(loads[i].1) / f64::from(loads[i].0);
        let mut order: Vec<_> = (0..loads.len()).collect();
        order.sort_by(|&a, &b| load(a).total_cmp(&load(b)));
        let worst = load(order[order.len() - 1]);
        let strictly_worst = load(order[order.len() - 2]) < worst;
        let mut bench = Bench::new(&policy(Strategy::LeastConnections), hosts, seed);
        for _ in 0..50 {
            let chosen = load(bench.choose(|_| true));
            if loads.len() <= 4 {
                prop_assert_eq!(chosen, load(order[0]));
            } else {
                prop_assert!(!strictly_worst || chosen < worst);
            }
        }
    }

    /// Rendezvous: the endpoint of a client stays when others go, and nobody but its own clients moves when one goes.
    #[test]
    fn affinity_moves_only_the_clients_of_who_left(
        weights in prop::collection::vec(1u32..9, 2..30),
        gone in any::<prop::sample::Index>(),
        clients in prop::collection::vec(any::<u32>(), 1..40),
    ) {
        let all = hosts(&weights);
        let gone = gone.index(all.len());
        let mut fewer = all.clone();
        let gone_key = fewer.remove(gone).key;
        for client in clients {
            let client = client_key(IpAddr::from(client.to_be_bytes()));
            let mut before = Bench::new(&policy(Strategy::RoundRobin), all.clone(), 1);
            let mut after = Bench::new(&policy(Strategy::Random), fewer.clone(), 2);
            let order: Vec<_> = before.all(Some(client)).iter().map(|&i| all[i].key).collect();
            let after: Vec<_> = after.all(Some(client)).iter().map(|&i| fewer[i].key).collect();
            let expected: Vec<_> = order.into_iter().filter(|&k| k != gone_key).collect();
            prop_assert_eq!(after, expected);
        }
    }
}

/// One of four always fails, and every failure is tried again: the other three share that alike, whoever stands next to it.
#[test]
fn retries_are_spread_over_the_others() {
    for strategy in [Strategy::RoundRobin, Strategy::WeightedRoundRobin] {
        let mut bench = Bench::new(&policy(strategy), hosts(&[1; 4]), 3);
        let mut counts = [0usize; 4];
        let mut again = [0usize; 4];
        for _ in 0..12_000 {
            let mut candidates = bench.ask(Pick::at(bench.now));
            let first = candidates.next().unwrap();
            candidates.tried();
            counts[first] += 1;
            if first == 1 {
                again[candidates.next().unwrap()] += 1;
            }
        }
        assert_eq!(counts, [3_000; 4], "{strategy:?}");
        assert!(
            again[1] == 0 && [0, 2, 3].iter().all(|i| again[*i].abs_diff(1_000) < 120),
            "{strategy:?}: {again:?}"
        );
    }
}

#[test]
fn round_robin_starts_anywhere() {
    let starts: HashSet<_> = (0..200)
        .map(|seed| {
            Bench::new(&policy(Strategy::RoundRobin), hosts(&[1; 5]), seed).choose(|_| true)
        })
        .collect();
    assert_eq!(starts.len(), 5);
    let starts: HashSet<_> = (0..200)
        .map(|seed| {
            let policy = policy(Strategy::WeightedRoundRobin);
            Bench::new(&policy, hosts(&[3, 1, 1, 1, 1]), seed).choose(|_| true)
        })
        .collect();
    assert_eq!(starts.len(), 5);
}

#[test]
fn random_and_affinity_follow_the_weights() {
    let weights = [1, 0, 5, 10, 4];
    for affinity in [false, true] {
        let mut bench = Bench::new(&policy(Strategy::Random), hosts(&weights), 7);
        let mut counts = [0usize; 5];
        for client in 0u64..20_000 {
            counts[bench.all(affinity.then(|| super::key::mix(client)))[0]] += 1;
        }
        for (count, weight) in counts.iter().zip(weights) {
            let expected = f64::from(weight) * 1_000.0;
            assert!(
                (*count as f64 - expected).abs() <= expected * 0.12,
                "affinity {affinity}: {counts:?}"
            );
        }
    }
}

#[test]
fn least_connections_balances_by_weight_when_idle() {
    let mut bench = Bench::new(&policy(Strategy::LeastConnections), hosts(&[1, 3]), 7);
    let counts = bench.counts(8_000, |_| true);
    assert!((5_700..6_300).contains(&counts[1]), "{counts:?}");
}

/// Balls into bins: with two choices the fullest of 100 endpoints stays within a few of the mean, where a random choice
/// would not (sqrt of the mean, and more).
#[test]
fn two_choices_keep_the_fullest_near_the_mean() {
    let spread = |strategy| {
        let mut bench = Bench::new(&policy(strategy), hosts(&[1; 100]), 3);
        for _ in 0..10_000 {
            let chosen = bench.choose(|_| true);
            bench.hosts[chosen].in_flight += 1;
        }
        let loads = bench.hosts.iter().map(|h| h.in_flight);
        loads.max().unwrap_or(0) - 100
    };
    assert!(spread(Strategy::LeastConnections) <= 5);
    assert!(spread(Strategy::Random) > 10);
}

#[test]
fn a_failing_endpoint_loses_its_share_and_wins_it_back() {
    let mut bench = Bench::new(&policy(Strategy::WeightedRoundRobin), hosts(&[4, 4]), 0);
    let run = |bench: &mut Bench, ok: bool| {
        let mut counts = [0; 2];
        for _ in 0..200 {
            let chosen = bench.choose(|_| true);
            counts[chosen] += 1;
            bench.balancer.report(chosen, ok || chosen != 0);
        }
        counts
    };
    assert_eq!(run(&mut bench, true), [100, 100]);
    let failing = run(&mut bench, false);
    assert!(failing[0] < 25 && failing[0] > 5, "{failing:?}");
    run(&mut bench, true);
    assert_eq!(
        run(&mut bench, true),
        [100, 100],
        "never above the declared weight"
    );
}

#[test]
fn keys_do_not_depend_on_the_form_of_the_address() {
    let v4: IpAddr = "192.0.2.7".parse().unwrap();
    let mapped: IpAddr = "::ffff:192.0.2.7".parse().unwrap();
    assert_eq!(client_key(v4), client_key(mapped));
    // Golden: another value would move every client at an upgrade of the mesh.
    assert_eq!(client_key(v4), 9_820_144_185_899_929_481);
    assert_eq!(
        endpoint_key(SocketAddr::new(v4, 80)),
        15_524_814_671_313_608_096
    );
    // FNV-1a's own test vectors ("", "a", "foobar"), finished.
    for (bytes, fnv) in [
        ("", 0xcbf2_9ce4_8422_2325),
        ("a", 0xaf63_dc4c_8601_ec8c),
        ("foobar", 0x8594_4171_f739_67e8),
    ] {
        assert_eq!(hash_key(bytes.as_bytes()), key::mix(fnv));
    }
}

/// The common case must not depend on how many endpoints there are. The quickest of 20 batches counts: on a busy machine
/// the others measure the machine.
#[test]
fn the_first_candidate_costs_no_pass_over_all() {
    for strategy in STRATEGIES {
        let mut bench = Bench::new(&policy(strategy), hosts(&vec![1; 50_000]), 9);
        bench.choose(|_| true);
        let batch = |_| {
            let started = Instant::now();
            bench.repeat(50);
            started.elapsed()
        };
        let quickest = (0..20).map(batch).min().unwrap_or_default();
        // 100 us each in a debug build; a pass over 50,000 targets takes several times that there.
        assert!(
            quickest < Duration::from_millis(5),
            "{strategy:?}: {quickest:?}"
        );
    }
}

/// Even when every endpoint is ejected, finding that out stays near linear.
#[test]
fn exhausting_ten_thousand_candidates_is_quick() {
    for strategy in STRATEGIES {
        for affinity in [None, Some(1)] {
            let mut bench = Bench::new(&policy(strategy), hosts(&[1; 10_000]), 9);
            let started = Instant::now();
            assert_eq!(bench.all(affinity).len(), 10_000);
            let took = started.elapsed();
            assert!(took < Duration::from_secs(1), "{strategy:?}: {took:?}");
        }
    }
}
