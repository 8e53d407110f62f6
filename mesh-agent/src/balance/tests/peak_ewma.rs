//! Peak EWMA as a strategy; the average itself has its own tests.

use super::*;

fn bench(latencies: &[Option<f64>], weights: &[u32]) -> Bench {
    let mut hosts = hosts(weights);
    for (host, latency) in hosts.iter_mut().zip(latencies) {
        host.latency = *latency;
    }
    Bench::new(&policy(Strategy::PeakEwma), hosts, 11)
}

proptest! {
    #[test]
    fn never_takes_the_slower_of_its_two(
        of in prop::collection::vec((1u32..5, 0u32..20, 1u32..1_000), 2..30),
        seed: u64,
    ) {
        let weights: Vec<_> = of.iter().map(|o| o.0).collect();
        let latencies: Vec<_> = of.iter().map(|o| Some(f64::from(o.2) / 1e3)).collect();
        let mut bench = bench(&latencies, &weights);
        bench.rng = StdRng::seed_from_u64(seed);
        for (host, o) in bench.hosts.iter_mut().zip(&of) {
            host.in_flight = o.1;
        }
        let cost = |i: usize| f64::from(of[i].2 * (of[i].1 + 1)) / f64::from(of[i].0);
        let mut costs: Vec<_> = (0..of.len()).map(cost).collect();
        costs.sort_by(f64::total_cmp);
        let worst = costs[costs.len() - 1];
        let strictly = costs[costs.len() - 2] < worst * (1.0 - 1e-9);
        for _ in 0..50 {
            let chosen = bench.choose(|_| true);
            prop_assert!(!strictly || cost(chosen) < worst);
            if of.len() == 2 {
                prop_assert!(cost(chosen) <= costs[0] * (1.0 + 1e-9));
            }
        }
    }
}

/// In steady state what is in flight settles so that latency x in flight is alike: the fast one carries more.
#[test]
fn the_slow_one_carries_less() {
    let mut bench = bench(&[Some(0.010), Some(0.010), Some(0.100)], &[1; 3]);
    for _ in 0..210 {
        let chosen = bench.choose(|_| true);
        bench.hosts[chosen].in_flight += 1;
    }
    let loads: Vec<_> = bench.hosts.iter().map(|h| h.in_flight).collect();
    assert!((8..=11).contains(&loads[2]), "{loads:?}");
    assert!(loads[0].abs_diff(loads[1]) <= 12, "{loads:?}");
}

/// Of a newcomer nothing is known: it gets as much as the others, neither all nor nothing.
#[test]
fn a_newcomer_is_neither_flooded_nor_starved() {
    for others in [0.001, 1.0] {
        let mut bench = bench(&[None, Some(others), Some(others), Some(others)], &[1; 4]);
        for _ in 0..400 {
            let chosen = bench.choose(|_| true);
            bench.hosts[chosen].in_flight += 1;
        }
        let loads: Vec<_> = bench.hosts.iter().map(|h| h.in_flight).collect();
        assert!((90..=110).contains(&loads[0]), "{loads:?}");
    }
}

/// Endpoints with real averages: one answers 429 at once, the others take 20 ms. One request at a time.
#[test]
fn a_fast_429_draws_no_load() {
    let mut bench = bench(&[None; 4], &[1; 4]);
    let mut averages = [PeakEwma::default(); 4];
    let mut failing = 0;
    for _ in 0..2_000 {
        let chosen = bench.choose(|_| true);
        failing += usize::from(chosen == 0);
        let took = Duration::from_micros(if chosen == 0 { 100 } else { 20_000 });
        bench.now += took;
        averages[chosen].observe(took, chosen != 0, bench.now);
        for (host, average) in bench.hosts.iter_mut().zip(&averages) {
            host.latency = average.load(bench.now);
        }
    }
    assert!((1..10).contains(&failing), "{failing} of 2,000");
}
