//! When a certificate is renewed and how long a failure is waited out. Pure: times and draws are arguments.
//!
//! Validity is wall time and may jump; waiting is monotonic and may not. So the moment of renewal is compared with the wall clock
//! each time anew, and back-off is a moment of the monotonic clock: a clock that jumps back a year does not put the next
//! attempt off by a year.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::answer::SKEW;

/// Renewal is drawn from the third quarter of a certificate's life (of 24 h: 12 to 18 h), so that nodes which started together do not
/// renew together, and the last quarter is left for trying again.
const EARLIEST: f64 = 0.5;
const LATEST: f64 = 0.75;

const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

/// The moment to renew a certificate that was received at `now`. Its life is counted from then, not from when it claims to
/// begin, which is earlier. `draw` is uniform in 0..1.
pub(super) fn renew_at(now: SystemTime, not_after: SystemTime, draw: f64) -> SystemTime {
    let life = not_after.duration_since(now).unwrap_or_default();
    let part = EARLIEST + (LATEST - EARLIEST) * draw.clamp(0.0, 1.0);
    now + life.mul_f64(part)
}

/// How long to wait after so many failures in a row (from 1): 0.5 s, doubled up to a minute, and of that a random part between half and all.
pub(super) fn backoff(failures: u32, draw: f64) -> Duration {
    let doubled = FIRST_BACKOFF.saturating_mul(1 << failures.saturating_sub(1).min(16));
    let ceiling = doubled.min(LONGEST_BACKOFF);
    ceiling.mul_f64(0.5 + 0.5 * draw.clamp(0.0, 1.0))
}

/// What is held.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
    pub(super) renew_at: SystemTime,
    /// Our own trust refuses it: its root left the bundle, or it is revoked.
    pub(super) refused: bool,
}

/// How much a new certificate is needed; the most needed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Need {
    /// There is none that works: connections fail.
    Urgent,
    /// The one there is is not good for peers, or will not be for long.
    Soon,
    Routine,
}

/// Whether to ask for a certificate now.
pub(super) fn need(
    held: Option<&Held>,
    retry_at: Option<Instant>,
    wall: SystemTime,
    now: Instant,
) -> Option<Need> {
    if retry_at.is_some_and(|at| now < at) {
        return None;
    }
    let Some(held) = held else {
        return Some(Need::Urgent);
    };
    if wall >= held.not_after {
        Some(Need::Urgent)
    } else if held.refused || wall + SKEW < held.not_before {
        Some(Need::Soon)
    } else if wall >= held.renew_at {
        Some(Need::Routine)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: u64 = 24 * 60 * 60;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn held(begin: u64, renew: u64, end: u64) -> Held {
        Held {
            not_before: at(begin),
            not_after: at(end),
            renew_at: at(renew),
            refused: false,
        }
    }

    #[test]
    fn what_is_needed_when() {
        let now = Instant::now();
        let cert = held(10_000, 20_000, 30_000);
        let ask = |wall| need(Some(&cert), None, at(wall), now);
        assert_eq!(need(None, None, at(0), now), Some(Need::Urgent));
        assert_eq!(ask(15_000), None);
        assert_eq!(ask(20_000), Some(Need::Routine));
        assert_eq!(ask(30_000), Some(Need::Urgent));
        // The clock jumped back, by a little and by much.
        assert_eq!(ask(9_900), None);
        assert_eq!(ask(1_000), Some(Need::Soon));
        let refused = Held {
            refused: true,
            ..cert
        };
        assert_eq!(
            need(Some(&refused), None, at(15_000), now),
            Some(Need::Soon)
        );
        let later = Some(now + Duration::from_secs(1));
        assert_eq!(need(None, later, at(0), now), None);
        assert_eq!(
            need(None, later, at(0), now + Duration::from_secs(1)),
            Some(Need::Urgent)
        );
    }

    proptest! {
        #[test]
        fn renewal_falls_into_the_last_half(life in 1..DAY * 400, draw in 0.0..1.0) {
            let (now, end) = (at(DAY), at(DAY + life));
            let renew = renew_at(now, end, draw);
            prop_assert!(renew >= now + Duration::from_secs(life) / 2 - Duration::from_millis(1));
            prop_assert!(renew < end);
            // A quarter of the life is left for trying again.
            prop_assert!(end.duration_since(renew).unwrap() >= Duration::from_secs(life).mul_f64(0.2499));
        }

        #[test]
        fn back_off_grows_is_bounded_and_spread(failures in 1u32..u32::MAX, draw in 0.0..1.0) {
            let wait = backoff(failures, draw);
            prop_assert!(wait >= FIRST_BACKOFF / 2 && wait <= LONGEST_BACKOFF);
            prop_assert!(wait <= backoff(failures, 1.0) && wait >= backoff(failures, 1.0) / 2);
            prop_assert!(backoff(failures.saturating_add(1), draw) >= wait);
        }

        #[test]
        fn after_the_longest_back_off_there_is_always_an_attempt(
            failures in 1u32..100, draw in 0.0..1.0, wall in 0..u64::from(u32::MAX), end in 0..u64::from(u32::MAX),
        ) {
            let now = Instant::now();
            let retry = now + backoff(failures, draw);
            let cert = held(0, end / 2, end);
            // However the wall clock jumps.
            let need = need(Some(&cert), Some(retry), at(wall), now + LONGEST_BACKOFF);
            prop_assert_eq!(need.is_some(), wall >= end / 2);
        }
    }
}
