//! Tests of the breaker as a state machine.

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn policy() -> CircuitBreaker {
    CircuitBreaker {
        failure_threshold: 3,
        failure_ratio: None,
        window: 10 * SECOND,
        min_volume: 10,
        recovery_timeout: 5 * SECOND,
        max_recovery_timeout: 60 * SECOND,
        success_threshold: 2,
        max_ejection_percent: 50,
    }
}

fn verdict(ok: bool) -> Verdict {
    match ok {
        true => Verdict::Success,
        false => Verdict::Failure,
    }
}

/// A breaker on its own: it may always open.
struct Alone {
    breaker: Breaker,
    policy: CircuitBreaker,
    start: Instant,
}

impl Alone {
    fn new(policy: CircuitBreaker) -> Self {
        Self {
            breaker: Breaker::default(),
            policy,
            start: Instant::now(),
        }
    }

    fn at(&self, second: u64) -> Instant {
        self.start + Duration::from_secs(second)
    }

    fn admit(&mut self, second: u64) -> Admit {
        let now = self.at(second);
        self.breaker.admit(&self.policy, now).0
    }

    /// One admitted attempt with its result.
    fn run(&mut self, second: u64, ok: bool, random: f64) -> Option<Transition> {
        let probe = match self.admit(second) {
            Admit::Pass => None,
            Admit::Probe(number) => Some(number),
            Admit::Refuse => panic!("refused at {second} s"),
        };
        let now = self.at(second);
        self.result(probe, ok, now, random)
    }

    /// The result of a request.
    fn result(
        &mut self,
        probe: Option<u64>,
        ok: bool,
        now: Instant,
        random: f64,
    ) -> Option<Transition> {
        let verdict = verdict(ok);
        self.breaker.on_result(
            &self.policy,
            Kind::Request,
            verdict,
            probe,
            now,
            random,
            || true,
        )
    }

    fn open_until(&mut self, second: u64, random: f64) -> u64 {
        match self.run(second, false, random) {
            Some(Transition::Opened { until, .. }) => (until - self.start).as_secs(),
            other => panic!("{other:?} instead of opening"),
        }
    }
}

#[test]
fn opens_on_consecutive_failures_only() {
    let mut alone = Alone::new(policy());
    for ok in [false, false, true, false, false] {
        assert_eq!(alone.run(0, ok, 0.0), None);
    }
    assert_eq!(alone.open_until(0, 0.9), 5, "the first time is exact");
    assert_eq!(alone.admit(4), Admit::Refuse);
    assert_eq!(
        alone.breaker.state(alone.at(4)),
        BreakerState::Open { until: alone.at(5) }
    );
    assert_eq!(alone.breaker.state(alone.at(5)), BreakerState::HalfOpen);
}

#[test]
fn half_open_admits_one_probe_at_a_time_and_closes_after_its_successes() {
    let mut alone = Alone::new(policy());
    alone.run(0, false, 0.0);
    alone.run(0, false, 0.0);
    alone.run(0, false, 0.0);
    let Admit::Probe(first) = alone.admit(5) else {
        panic!("no probe")
    };
    assert_eq!(alone.admit(5), Admit::Refuse);
    // Its task died.
    alone.breaker.give_back(first);
    assert_eq!(alone.run(5, true, 0.0), None);
    assert_eq!(alone.breaker.state(alone.at(5)), BreakerState::HalfOpen);
    assert_eq!(alone.run(5, true, 0.0), Some(Transition::Closed));
    assert_eq!(alone.admit(5), Admit::Pass);
}

#[test]
fn only_the_current_probe_decides() {
    let mut alone = Alone::new(policy());
    for _ in 0..3 {
        alone.run(0, false, 0.0);
    }
    let now = alone.at(5);
    let Admit::Probe(old) = alone.admit(5) else {
        panic!("no probe")
    };
    alone.breaker.give_back(old);
    let Admit::Probe(current) = alone.admit(5) else {
        panic!("no probe")
    };
    // A straggler from before the opening, and a probe that was given back: neither opens nor closes.
    for probe in [None, Some(old)] {
        let changed = alone.result(probe, false, now, 0.0);
        assert_eq!(changed, None);
    }
    assert_eq!(alone.admit(5), Admit::Refuse, "the probe is still out");
    let changed = alone.result(Some(current), false, now, 0.0);
    assert!(matches!(changed, Some(Transition::Opened { .. })));
}

#[test]
fn recovery_time_doubles_to_its_maximum_with_full_jitter() {
    // Each row: the draw, and the milliseconds open at the 1st, 2nd, ... time.
    for (random, expected) in [
        (0.0, [5_000, 5_000, 5_000, 5_000, 5_000, 5_000]),
        (0.5, [5_000, 7_500, 12_500, 22_500, 32_500, 32_500]),
        (1.0, [5_000, 10_000, 20_000, 40_000, 60_000, 60_000]),
    ] {
        for (openings, millis) in (0..).zip(expected) {
            let open = open_for(&policy(), openings, random);
            assert_eq!(open, Duration::from_millis(millis), "{openings}, {random}");
        }
    }
    assert_eq!(open_for(&policy(), u32::MAX, 1.0), 60 * SECOND);
}

#[test]
fn recovery_time_starts_anew_after_closing() {
    let mut alone = Alone::new(policy());
    for _ in 0..3 {
        alone.run(0, false, 1.0);
    }
    assert_eq!(alone.open_until(5, 1.0), 15);
    alone.run(15, true, 1.0);
    assert_eq!(alone.run(15, true, 1.0), Some(Transition::Closed));
    alone.run(15, false, 1.0);
    alone.run(15, false, 1.0);
    assert_eq!(alone.open_until(15, 1.0), 20);
}

#[test]
fn opens_on_the_ratio_with_its_minimum_volume() {
    let mut alone = Alone::new(CircuitBreaker {
        failure_threshold: 100,
        failure_ratio: Some(0.5),
        ..policy()
    });
    // Nine results, all bad: too few.
    for _ in 0..9 {
        assert_eq!(alone.run(0, false, 0.0), None);
    }
    // They are out of the window: the volume starts again.
    for second in 10..15 {
        assert_eq!(alone.run(second, true, 0.0), None);
        let opened = alone.run(second, false, 0.0).is_some();
        assert_eq!(opened, second == 14, "5 of 10");
    }
}

#[test]
fn a_success_never_opens() {
    let mut alone = Alone::new(CircuitBreaker {
        failure_threshold: 100,
        failure_ratio: Some(0.1),
        min_volume: 5,
        ..policy()
    });
    for ok in [false, false, false, false] {
        alone.run(0, ok, 0.0);
    }
    assert_eq!(alone.run(0, true, 0.0), None);
    assert!(alone.run(0, false, 0.0).is_some());
}

#[test]
fn stays_closed_when_nothing_more_may_be_ejected() {
    let mut alone = Alone::new(policy());
    let (policy, now) = (alone.policy, alone.at(0));
    let told: Vec<_> = (0..10)
        .filter_map(|_| {
            let failed = Verdict::Failure;
            alone
                .breaker
                .on_result(&policy, Kind::Request, failed, None, now, 0.0, || false)
        })
        .collect();
    let refused = Transition::Refused {
        kind: Kind::Request,
        cause: Cause::Consecutive,
    };
    assert_eq!(told, [refused], "told once");
    assert_eq!(alone.admit(0), Admit::Pass);
    // As soon as there is room, the next failure opens it.
    assert!(alone.run(0, false, 0.0).is_some());
}

proptest! {
    /// Whatever happens, no more than one probe is out, an open breaker admits nothing before its time, and no time is
    /// shorter than the first or longer than the maximum.
    #[test]
    fn invariants(steps in prop::collection::vec((0u64..20, 0u8..4, any::<bool>(), 0.0f64..1.0), 1..120)) {
        let mut alone = Alone::new(policy());
        let mut second = 0;
        let mut out: Vec<(Option<u64>, Instant)> = Vec::new();
        for (gap, action, ok, random) in steps {
            second += gap;
            let now = alone.at(second);
            let before = alone.breaker.state(now);
            match action {
                0 | 1 => match alone.breaker.admit(&alone.policy, now).0 {
                    Admit::Pass => {
                        prop_assert_eq!(before, BreakerState::Closed);
                        out.push((None, now));
                    }
                    Admit::Probe(n) => {
                        prop_assert_eq!(before, BreakerState::HalfOpen);
                        prop_assert!(out.iter().all(|(probe, _)| *probe != Some(n)));
                        out.push((Some(n), now));
                    }
                    Admit::Refuse => prop_assert_ne!(before, BreakerState::Closed),
                },
                2 if !out.is_empty() => {
                    let (probe, _) = out.remove(0);
                    let changed = alone.result(probe, ok, now, random);
                    if let Some(Transition::Opened { until, .. }) = changed {
                        prop_assert!(!ok);
                        prop_assert!((5 * SECOND..=60 * SECOND).contains(&(until - now)));
                    }
                }
                3 if !out.is_empty() => {
                    if let (Some(n), _) = out.remove(0) {
                        alone.breaker.give_back(n);
                    }
                }
                _ => {}
            }
            let current = |(probe, at): &&(Option<u64>, Instant)| probe.is_some() && now < *at + PROBE_PATIENCE;
            prop_assert!(out.iter().filter(current).count() <= 1);
        }
    }
}
