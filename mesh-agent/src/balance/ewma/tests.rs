//! Tests of the average.

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs())
}

/// The average as its definition has it: over all samples, each by what remains of its weight.
fn naive(samples: &[(Duration, f64)], now: Duration) -> f64 {
    let remains = |since: Duration| (-(now - since).as_secs_f64() / DECAY.as_secs_f64()).exp();
    let mut average = 0.0;
    let mut last = Duration::ZERO;
    for &(at, seen) in samples {
        let alpha = 1.0 - (-(at - last).as_secs_f64() / DECAY.as_secs_f64()).exp();
        let blended = average + alpha * (seen - average);
        average = if seen >= average { seen } else { blended };
        last = at;
    }
    average * remains(last)
}

proptest! {
    #[test]
    fn follows_its_definition(
        steps in prop::collection::vec((0u64..20_000, 0u64..5_000), 1..40),
        wait in 0u64..60_000,
    ) {
        let start = Instant::now();
        let mut ewma = PeakEwma::default();
        let mut at = Duration::ZERO;
        let mut samples = Vec::new();
        for (after, latency) in steps {
            at += MS * after as u32;
            samples.push((at, (MS * latency as u32).as_secs_f64()));
            ewma.observe(MS * latency as u32, true, start + at);
        }
        let end = at + MS * wait as u32;
        let expected = naive(&samples, end).max(FLOOR);
        let load = ewma.load(start + end).unwrap();
        prop_assert!(near(load, expected), "{load} instead of {expected}");
    }

    /// Never above the highest sample, never below the latest one just after it.
    #[test]
    fn stays_between_the_latest_and_the_highest(
        steps in prop::collection::vec((0u64..20_000, 1u64..5_000), 1..40),
    ) {
        let mut now = Instant::now();
        let mut ewma = PeakEwma::default();
        let mut highest = Duration::ZERO;
        for (after, latency) in steps {
            now += MS * after as u32;
            let latency = MS * latency as u32;
            highest = highest.max(latency);
            ewma.observe(latency, true, now);
            let load = ewma.load(now).unwrap();
            prop_assert!(load <= highest.as_secs_f64() * (1.0 + 1e-9));
            prop_assert!(load >= latency.as_secs_f64() * (1.0 - 1e-9));
        }
    }

    /// However fast it fails, who fails is never taken for faster than before, and soon for slower than anybody.
    #[test]
    fn failures_only_add_up(before in 0u64..10_000, failures in 1u32..8, took in 0u64..50) {
        let now = Instant::now();
        let mut ewma = PeakEwma::default();
        ewma.observe(MS * before as u32, true, now);
        let mut load = ewma.load(now).unwrap();
        for _ in 0..failures {
            ewma.observe(MS * took as u32, false, now);
            let next = ewma.load(now).unwrap();
            prop_assert!(next >= load && next >= FAILURE_LEAST);
            load = next;
        }
        let least = FAILURE_LEAST * FAILURE_FACTOR.powi(failures as i32 - 1);
        prop_assert!(load >= least.min(FAILURE_MOST) * (1.0 - 1e-9), "{load}");
        prop_assert!(load <= FAILURE_MOST.max((MS * before as u32).as_secs_f64()));
    }

    #[test]
    fn a_clock_that_goes_back_does_no_harm(back in 0u64..100_000, latency in 1u64..1_000) {
        let now = Instant::now() + Duration::from_secs(1_000);
        let mut ewma = PeakEwma::default();
        ewma.observe(MS * latency as u32, true, now);
        let earlier = now - MS * back as u32;
        prop_assert_eq!(ewma.load(earlier), ewma.load(now));
        ewma.observe(Duration::ZERO, true, earlier);
        prop_assert_eq!(ewma.load(now), Some((MS * latency as u32).as_secs_f64()));
    }
}

#[test]
fn nothing_is_known_at_first() {
    assert_eq!(PeakEwma::default().load(Instant::now()), None);
}

#[test]
fn a_peak_counts_at_once_and_is_forgotten_in_time() {
    let start = Instant::now();
    let mut ewma = PeakEwma::default();
    ewma.observe(MS, true, start);
    ewma.observe(MS * 100, true, start + MS);
    let peak = start + MS;
    assert_eq!(ewma.load(peak), Some(0.1));
    let load = |after: f64| ewma.load(peak + DECAY.mul_f64(after)).unwrap();
    assert!(near(load(1.0), 0.1 / std::f64::consts::E));
    assert!(load(4.6) > 0.001 && load(4.7) < 0.001);
    assert_eq!(load(1_000.0), FLOOR, "never nothing");
}

/// The example of the field: an endpoint that refuses with 429 in no time must not draw what others answer in 5 s.
#[test]
fn a_fast_refusal_is_slower_than_a_slow_answer() {
    let now = Instant::now();
    let mut slow = PeakEwma::default();
    slow.observe(MS * 5_000, true, now);
    let mut refusing = PeakEwma::default();
    let mut failures = 0;
    while refusing.load(now) <= slow.load(now) {
        refusing.observe(Duration::from_micros(50), false, now);
        failures += 1;
    }
    assert_eq!(failures, 3);
}

/// A failing endpoint's penalty grows to a minute; what is shown stays what was measured.
#[test]
fn failures_do_not_change_what_was_measured() {
    let mut now = Instant::now();
    let (mut peak, mut measured) = (PeakEwma::default(), Measured::default());
    assert_eq!(measured.seconds(), None);
    for n in 0..50u32 {
        now += MS;
        let took = MS * (1 + n % 3);
        peak.observe(took, false, now);
        measured.observe(took, now);
    }
    assert!(peak.load(now).unwrap() > 59.0);
    let shown = measured.seconds().unwrap();
    assert!((0.0015..0.0025).contains(&shown), "{shown}");
    // It does not fade while nothing is heard, and follows what comes then.
    assert_eq!(measured.seconds(), Some(shown));
    measured.observe(MS * 500, now + 10 * DECAY);
    assert!(measured.seconds().unwrap() > 0.49);
}
