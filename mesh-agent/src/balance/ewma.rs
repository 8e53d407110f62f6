//! Estimate of an endpoint's latency for `peak_ewma`: sensitive to peaks, careful in recovering from them.
//!
//! An exponentially weighted moving average of samples that come at irregular times. A sample that follows the last one
//! after `dt` replaces the part
//!
//! ```text
//! alpha = 1 - exp(-dt / decay)
//! ```
//!
//! of the average, so that what was seen `decay` ago counts 1/e (37 %) of what is seen now, whatever the rate of
//! requests: the weights of all samples and of what came before them always add up to one, because
//! `exp(-a / decay) * exp(-b / decay) = exp(-(a + b) / decay)`.
//!
//! Two things make it a *peak* average (the idea is Finagle's). A sample above the average becomes the average at once:
//! an endpoint that turns slow is avoided after one answer, not after `decay`. And the estimate falls while nothing is
//! heard, as if answers of no latency came in: who is avoided is tried again, after the logarithm of how much slower it
//! was (10 times: 2.3 `decay`; 1,000 times: 6.9 `decay`).

use std::time::{Duration, Instant};

/// Time in which a sample loses 63 % of its weight. Finagle's and Linkerd's default: long enough to remember a pause of
/// a garbage collector over the next requests, short enough to forget it before the next.
pub const DECAY: Duration = Duration::from_secs(10);

/// Resolution, in seconds: a smaller estimate counts as this. Otherwise requests in flight would not count any more
/// once the estimates have decayed to nothing.
const FLOOR: f64 = 10e-6;

/// A failure counts as an answer this many times slower than what was expected of the endpoint, so that one failure
/// costs an endpoint most of its traffic for 2.3 [`DECAY`], and each further one ten times as much.
const FAILURE_FACTOR: f64 = 10.0;

/// Seconds that the first failures count as, at least and at most. At least: of an endpoint that was fast or unknown.
/// At most: with 60 s and others at 1 ms it is tried again after 110 s.
const FAILURE_LEAST: f64 = 0.1;
const FAILURE_MOST: f64 = 60.0;

/// Decayed peak latency of one endpoint. Pure: time is an argument, and a time before the last one counts as that.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PeakEwma {
    last: Option<Sample>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Sample {
    /// The average at `at`, in seconds.
    average: f64,
    at: Instant,
}

impl PeakEwma {
    /// An answer came after `latency`. One that is a failure (`ok` is false: by its status, a reset, a timeout, a refused
    /// connection) counts as a slow one, however fast it came.
    pub fn observe(&mut self, latency: Duration, ok: bool, now: Instant) {
        let mut seen = latency.as_secs_f64();
        if !ok {
            let expected = self.load(now).unwrap_or(0.0);
            seen = seen.max((expected * FAILURE_FACTOR).clamp(FAILURE_LEAST, FAILURE_MOST));
        }
        let (average, at) = match self.last {
            Some(last) if seen < last.average => {
                let keep = last.remains(now);
                (last.average * keep + seen * (1.0 - keep), last.at.max(now))
            }
            Some(last) => (seen, last.at.max(now)),
            None => (seen, now),
        };
        self.last = Some(Sample { average, at });
    }

    /// Seconds that an answer is expected to take; `None` before the first sample. Never 0.
    pub fn load(&self, now: Instant) -> Option<f64> {
        let last = self.last.as_ref()?;
        Some((last.average * last.remains(now)).max(FLOOR))
    }
}

/// What an endpoint's answers really took, for people to read: the mean of the first samples, then an average that forgets
/// with [`DECAY`]. Neither failures nor silence change it by what they might mean.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measured {
    last: Option<Sample>,
    samples: u32,
}

impl Measured {
    pub fn observe(&mut self, latency: Duration, now: Instant) {
        let seen = latency.as_secs_f64();
        self.samples = self.samples.saturating_add(1);
        let (average, at) = match self.last {
            Some(last) => {
                // The first ones often come within moments, when no time has passed that could make the older ones fade.
                let weight = (1.0 - last.remains(now)).max(1.0 / f64::from(self.samples));
                let average = last.average + weight * (seen - last.average);
                (average, last.at.max(now))
            }
            None => (seen, now),
        };
        self.last = Some(Sample { average, at });
    }

    /// Seconds; `None` before the first sample.
    pub fn seconds(&self) -> Option<f64> {
        self.last.map(|last| last.average)
    }
}

impl Sample {
    /// The part of its weight that it still has: 1 - alpha.
    fn remains(&self, now: Instant) -> f64 {
        let age = now.saturating_duration_since(self.at);
        (-age.as_secs_f64() / DECAY.as_secs_f64()).exp()
    }
}

#[cfg(test)]
mod tests;
