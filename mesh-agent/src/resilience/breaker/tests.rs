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

/// One result outside of half-open.
fn tell(alone: &mut Alone, second: u64, kind: Kind, verdict: Verdict) -> Option<Transition> {
    let now = alone.at(second);
    alone
        .breaker
        .on_result(&alone.policy, kind, verdict, None, now, 0.0, || true)
}

#[test]
fn connects_and_requests_are_counted_apart() {
    use Verdict::{Failure, Success};
    let mut alone = Alone::new(policy());
    // Two of each make no three of one, and a success of one does not help the other.
    for (kind, verdict) in [
        (Kind::Connect, Failure),
        (Kind::Request, Failure),
        (Kind::Connect, Failure),
        (Kind::Request, Failure),
        (Kind::Request, Success),
    ] {
        assert_eq!(tell(&mut alone, 0, kind, verdict), None);
    }
    let opened = tell(&mut alone, 0, Kind::Connect, Failure);
    let until = alone.at(5);
    let expected = Transition::Opened {
        until,
        kind: Kind::Connect,
        cause: Cause::Consecutive,
    };
    assert_eq!(opened, Some(expected));
}

#[test]
fn the_windows_are_apart_as_well() {
    let mut alone = Alone::new(CircuitBreaker {
        failure_threshold: 100,
        failure_ratio: Some(0.5),
        ..policy()
    });
    // Many good requests do not dilute connects that fail half of the time.
    for _ in 0..1_000 {
        tell(&mut alone, 0, Kind::Request, Verdict::Success);
    }
    for _ in 0..5 {
        assert_eq!(tell(&mut alone, 0, Kind::Connect, Verdict::Success), None);
    }
    for failure in 1..=5 {
        let changed = tell(&mut alone, 0, Kind::Connect, Verdict::Failure);
        assert_eq!(changed.is_some(), failure == 5, "{failure}");
    }
}

#[test]
fn a_429_counts_in_the_ratio_only() {
    let mut alone = Alone::new(policy());
    for _ in 0..100 {
        let changed = tell(&mut alone, 0, Kind::Request, Verdict::Limited);
        assert_eq!(changed, None, "without a ratio it counts nowhere");
    }
    // It does not end a row of failures either.
    for verdict in [Verdict::Failure, Verdict::Failure, Verdict::Limited] {
        assert_eq!(tell(&mut alone, 0, Kind::Request, verdict), None);
    }
    let changed = tell(&mut alone, 0, Kind::Request, Verdict::Failure);
    assert!(changed.is_some());

    let mut alone = Alone::new(CircuitBreaker {
        failure_ratio: Some(0.5),
        ..policy()
    });
    for _ in 0..9 {
        let changed = tell(&mut alone, 0, Kind::Request, Verdict::Limited);
        assert_eq!(changed, None);
    }
    let Some(Transition::Opened { cause, .. }) =
        tell(&mut alone, 0, Kind::Request, Verdict::Limited)
    else {
        panic!("ten of ten");
    };
    assert_eq!(cause, Cause::Ratio);
}

#[test]
fn a_429_for_the_probe() {
    for (ratio, closes) in [(None, true), (Some(0.5), false)] {
        let mut alone = Alone::new(CircuitBreaker {
            failure_ratio: ratio,
            success_threshold: 1,
            ..policy()
        });
        for _ in 0..3 {
            alone.run(0, false, 0.0);
        }
        let Admit::Probe(number) = alone.admit(5) else {
            panic!("no probe");
        };
        let now = alone.at(5);
        let limited = Verdict::Limited;
        let changed = alone.breaker.on_result(
            &alone.policy,
            Kind::Request,
            limited,
            Some(number),
            now,
            0.0,
            || true,
        );
        assert_eq!(changed, closes.then_some(Transition::Closed), "{ratio:?}");
        // Not decided: the next one is a probe, and at once.
        assert_eq!(matches!(alone.admit(5), Admit::Probe(_)), !closes);
    }
}

#[test]
fn transitions_are_told_once_each() {
    let mut alone = Alone::new(policy());
    alone.run(0, false, 0.0);
    alone.run(0, false, 0.0);
    alone.run(0, false, 0.0);
    let (first, told) = alone.breaker.admit(&alone.policy, alone.start + 5 * SECOND);
    assert_eq!(told, Some(Transition::HalfOpen));
    let Admit::Probe(number) = first else {
        panic!("no probe");
    };
    alone.breaker.give_back(number);
    let now = alone.at(5);
    let (_, told) = alone.breaker.admit(&alone.policy, now);
    assert_eq!(told, None, "it is half-open already");
    let failed = alone.breaker.probes;
    let changed = alone.result(Some(failed), false, now, 0.0);
    let expected = Transition::Opened {
        until: alone.at(10),
        kind: Kind::Request,
        cause: Cause::Probe,
    };
    assert_eq!(changed, Some(expected));
}

#[test]
fn a_probe_that_never_ends_is_given_up() {
    let mut alone = Alone::new(policy());
    for _ in 0..3 {
        alone.run(0, false, 0.0);
    }
    let Admit::Probe(lost) = alone.admit(5) else {
        panic!("no probe");
    };
    assert_eq!(alone.admit(34), Admit::Refuse);
    let Admit::Probe(next) = alone.admit(35) else {
        panic!("after half a minute another may go");
    };
    // The lost one comes back after all: it decides nothing any more.
    let now = alone.at(36);
    assert_eq!(alone.result(Some(lost), false, now, 0.0), None);
    assert_eq!(alone.admit(36), Admit::Refuse);
    assert_eq!(alone.result(Some(next), true, now, 0.0), None);
}

#[test]
fn a_long_stream_does_not_keep_it_half_open() {
    let mut alone = Alone::new(policy());
    for _ in 0..3 {
        alone.run(0, false, 0.0);
    }
    for second in [5, 7] {
        let Admit::Probe(stream) = alone.admit(second) else {
            panic!("no probe at {second} s");
        };
        let now = alone.at(second);
        alone.breaker.answered(stream, now);
        assert_eq!(
            alone.admit(second),
            Admit::Refuse,
            "its trailers may follow"
        );
    }
    // Two streams have begun well and gone on for a second each.
    let (admit, told) = alone.breaker.admit(&alone.policy, alone.start + 8 * SECOND);
    assert_eq!((admit, told), (Admit::Pass, Some(Transition::Closed)));
}

#[test]
fn a_refusal_to_open_is_told_again_after_a_while() {
    let mut alone = Alone::new(policy());
    let mut told = Vec::new();
    for second in 0..12 {
        let now = alone.at(second);
        let failed = Verdict::Failure;
        let changed =
            alone
                .breaker
                .on_result(&alone.policy, Kind::Request, failed, None, now, 0.0, || {
                    false
                });
        told.extend(changed.map(|_| second));
    }
    assert_eq!(told, [2, 7], "each recovery_timeout of 5 s");
}
