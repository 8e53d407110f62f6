//! Slow start, in every strategy.

use super::*;

const WINDOW: Duration = Duration::from_secs(10);

fn ramping(strategy: Strategy, hosts: Vec<Host>) -> Bench {
    let policy = LoadBalancer {
        strategy,
        slow_start: Some(WINDOW),
        ..LoadBalancer::default()
    };
    Bench::new(&policy, hosts, 5)
}

#[test]
fn slow_start_grows_by_time() {
    let seconds = Duration::from_secs_f64;
    for (elapsed, aggression, expected) in [
        (0.0, 1.0, 0.1),
        (0.5, 1.0, 0.1),
        (5.0, 1.0, 0.5),
        (2.5, 2.0, 0.5),
        (5.0, 0.5, 0.25),
        (10.0, 1.0, 1.0),
        (99.0, 3.0, 1.0),
    ] {
        let share = slow_start_share(seconds(elapsed), seconds(10.0), aggression);
        assert!((share - expected).abs() < 1e-9, "{elapsed} s: {share}");
    }
    assert_eq!(slow_start_share(Duration::ZERO, Duration::ZERO, 1.0), 1.0);
}

/// An endpoint of weight 1 that has had a part of the window shares with one of weight 1 as if it had that weight.
#[test]
fn every_strategy_gives_the_ramping_its_part_of_the_weight() {
    for strategy in STRATEGIES {
        for (after, part) in [(0.0, 0.1), (0.5, 0.5), (0.8, 0.8), (1.0, 1.0)] {
            let mut bench = ramping(strategy, hosts(&[1, 1]));
            bench.hosts[0].ramping_since = Some(bench.now);
            bench.now += WINDOW.mul_f64(after);
            let count = bench.counts(8_000, |_| true)[0] as f64;
            let expected = 8_000.0 * part / (part + 1.0);
            assert!(
                (count - expected).abs() < 200.0,
                "{strategy:?} after {after}: {count} instead of {expected}"
            );
        }
    }
}

/// With loads: the ramping one is as full as the others with as much of their load.
#[test]
fn least_connections_fills_the_ramping_by_its_part() {
    let mut bench = ramping(Strategy::LeastConnections, hosts(&[1, 1, 1]));
    bench.hosts[0].ramping_since = Some(bench.now);
    bench.now += WINDOW / 2;
    for _ in 0..100 {
        let chosen = bench.choose(|_| true);
        bench.hosts[chosen].in_flight += 1;
    }
    let loads: Vec<_> = bench.hosts.iter().map(|h| h.in_flight).collect();
    assert!((19..=21).contains(&loads[0]), "{loads:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A key moves to the one that ramps up once and stays; meanwhile it is where it would be without it.
    #[test]
    fn a_key_moves_over_once(key: u64, weights in prop::collection::vec(1u32..5, 2..12)) {
        let mut bench = ramping(Strategy::ConsistentHash, hosts(&weights));
        let joined = bench.now;
        let at_last = bench.of_key(key)[0];
        bench.hosts[at_last].ramping_since = Some(joined);
        let without = bench.of_key(key).into_iter().find(|&i| i != at_last);
        let mut moved = false;
        for step in 0..=20 {
            bench.now = joined + WINDOW * step / 20;
            let chosen = bench.of_key(key)[0];
            prop_assert!(chosen == at_last || (!moved && Some(chosen) == without));
            moved = chosen == at_last;
        }
        prop_assert!(moved);
    }

    /// Whoever is ramping, the caller gets somebody, and everybody in the end.
    #[test]
    fn nobody_is_lost(
        strategy in prop::sample::select(&STRATEGIES[..]),
        ramping in prop::collection::vec(any::<bool>(), 1..40),
        hash in prop::option::of(any::<u64>()),
    ) {
        let mut bench = self::ramping(strategy, hosts(&vec![1; ramping.len()]));
        for (host, ramping) in bench.hosts.iter_mut().zip(&ramping) {
            host.ramping_since = ramping.then_some(bench.now);
        }
        let pick = Pick { hash, ..Pick::at(bench.now) };
        let mut found: Vec<_> = bench.ask(pick).collect();
        found.sort_unstable();
        prop_assert_eq!(found, (0..ramping.len()).collect::<Vec<_>>());
    }
}
