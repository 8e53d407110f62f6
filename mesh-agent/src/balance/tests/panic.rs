//! Leaving out what is not usable, and panic.

use std::cell::Cell;

use super::*;

fn host(usable: Usability) -> Host {
    Host {
        usable,
        ..hosts(&[1]).remove(0)
    }
}

fn usability() -> impl proptest::strategy::Strategy<Value = Usability> {
    prop::sample::select(&[Usability::Ready, Usability::Ejected, Usability::Unhealthy][..])
}

fn bench(strategy: Strategy, usable: &[Usability], threshold: u32) -> Bench {
    let mut hosts = hosts(&vec![1; usable.len()]);
    for (host, usable) in hosts.iter_mut().zip(usable) {
        host.usable = *usable;
    }
    let policy = LoadBalancer {
        strategy,
        panic_threshold: threshold,
        ..LoadBalancer::default()
    };
    Bench::new(&policy, hosts, 1)
}

proptest! {
    /// Who comes is who may be used: the ready; in panic the ejected as well, and the unreachable only if that is too
    /// few still.
    #[test]
    fn panic_takes_in_as_few_as_needed(
        strategy in prop::sample::select(&STRATEGIES[..]),
        usable in prop::collection::vec(usability(), 1..50),
        threshold in 0u32..=100,
        may_panic: bool,
        hash in prop::option::of(any::<u64>()),
        affinity in prop::option::of(any::<u64>()),
    ) {
        let mut bench = bench(strategy, &usable, threshold);
        let enough = |worst: Usability| {
            let count = usable.iter().filter(|&&u| u <= worst).count();
            count * 100 >= threshold as usize * usable.len()
        };
        let worst = if !may_panic || enough(Usability::Ready) {
            Usability::Ready
        } else if enough(Usability::Ejected) {
            Usability::Ejected
        } else {
            Usability::Unhealthy
        };
        let expected: Vec<_> = (0..usable.len()).filter(|&i| usable[i] <= worst).collect();
        let pick = Pick { hash, affinity, may_panic, ..Pick::at(bench.now) };
        let mut candidates = bench.ask(pick);
        let mut found = Vec::new();
        while let Some(index) = candidates.next() {
            // The caller must know that it may pass a breaker.
            prop_assert!(usable[index] == Usability::Ready || candidates.in_panic());
            found.push(index);
        }
        prop_assert!(!candidates.in_panic() || worst > Usability::Ready);
        let left_out = usable.iter().filter(|&&u| u > worst).min();
        prop_assert_eq!(candidates.skipped(), left_out.copied());
        found.sort_unstable();
        prop_assert_eq!(found, expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// What is left out leaves its share to all others alike, whatever the strategy and however many they are.
    #[test]
    fn the_share_of_the_left_out_falls_to_all(
        strategy in prop::sample::select(&STRATEGIES[..]),
        (before, after) in (0usize..20, 0usize..20),
        seed: u64,
    ) {
        let mut usable = vec![Usability::Ejected; before];
        usable.extend(vec![Usability::Ready; 6]);
        usable.extend(vec![Usability::Ejected; after]);
        let mut bench = bench(strategy, &usable, 0);
        bench.rng = StdRng::seed_from_u64(seed);
        let counts = bench.counts(3_000, |_| true);
        for count in &counts[before..before + 6] {
            prop_assert!(count.abs_diff(500) < 120, "{strategy:?}: {counts:?}");
        }
    }
}

/// The figures of the default: half.
#[test]
fn half_of_them_usable_is_no_panic() {
    use Usability::{Ejected as E, Ready as R, Unhealthy as U};
    for (usable, candidates) in [
        (&[R, R, E, E][..], 2),
        (&[R, E, E], 3),
        (&[R, U, U], 3),
        (&[R, E, U, U], 2),
        (&[E], 1),
        (&[R, R, R, E, E], 3),
    ] {
        let mut bench = bench(Strategy::RoundRobin, usable, 50);
        assert_eq!(bench.all(None).len(), candidates, "{usable:?}");
    }
}

/// Told once at each turn, its end also after endpoints changed and by a choice that meets nobody unusable.
#[test]
fn the_turns_of_panic_are_told_once() {
    use Usability::{Ejected, Ready};
    let mut bench = bench(Strategy::RoundRobin, &[Ready, Ejected, Ejected], 50);
    let turns = |bench: &mut Bench| {
        let turn = |_| {
            let mut candidates = bench.ask(Pick::at(bench.now));
            candidates.by_ref().count();
            candidates.panic_turned()
        };
        (0..3).map(turn).collect::<Vec<_>>()
    };
    assert_eq!(turns(&mut bench), [Some(true), None, None]);
    bench.hosts = hosts(&[1; 4]);
    let balancer = Balancer::new(&policy(Strategy::RoundRobin), &bench.hosts, 2);
    bench.balancer = balancer.follow(&bench.balancer);
    assert_eq!(turns(&mut bench), [Some(false), None, None]);
}

/// A target that counts how often it is asked.
struct Asked<'a>(Host, &'a Cell<usize>);

impl Target for Asked<'_> {
    fn weight(&self) -> u32 {
        1
    }
    fn in_flight(&self) -> u32 {
        self.1.set(self.1.get() + 1);
        0
    }
    fn key(&self) -> u64 {
        self.0.key
    }
    fn usable(&self, _now: Instant) -> Usability {
        self.0.usable
    }
}

/// Whether to panic is known without a pass over all for each choice, also while the clock stands still; and what has
/// changed is seen after 2 microseconds for each target, or an eighth as many choices.
#[test]
fn counting_is_shared_between_choices() {
    let asked = Cell::new(0);
    let count = 1_000;
    let mut targets: Vec<_> = (0..count)
        .map(|i| {
            Asked(
                host(if i % 2 == 0 {
                    Usability::Ready
                } else {
                    Usability::Ejected
                }),
                &asked,
            )
        })
        .collect();
    let balancer = Balancer::new(&policy(Strategy::RoundRobin), &targets, 1);
    let mut rng = StdRng::seed_from_u64(1);
    let now = Instant::now();
    let mut panics = |targets: &[Asked<'_>], now| {
        let mut candidates = balancer.candidates(targets, Pick::at(now), &mut rng);
        candidates.nth(1);
        candidates.in_panic()
    };
    for _ in 0..count {
        assert!(!panics(&targets, now));
    }
    assert!(asked.get() <= 9 * count, "{}", asked.get());
    targets[0].0.usable = Usability::Ejected;
    assert!(panics(&targets, now + Duration::from_millis(2)));
    targets[0].0.usable = Usability::Ready;
    let seen = (0..count / 8 + 1).position(|_| !panics(&targets, now + Duration::from_millis(2)));
    assert!(seen.is_some());
}
