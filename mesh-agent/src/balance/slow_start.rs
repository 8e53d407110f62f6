//! Slow start: an endpoint that joined or recovered gets its share of traffic little by little.

use std::time::Duration;

/// Default exponent: linear growth.
pub const AGGRESSION: f64 = 1.0;

/// A new endpoint never gets less than this part of its share, or it would stay cold.
const FLOOR: f64 = 0.1;

/// Part of its weight (0.1..=1.0) that an endpoint has `elapsed` after it joined: `max(10 %, (t/window)^(1/aggression))`.
/// Aggression above 1 grows fast at first, below 1 late.
pub fn slow_start_share(elapsed: Duration, window: Duration, aggression: f64) -> f64 {
    if elapsed >= window {
        return 1.0;
    }
    let progress = elapsed.as_secs_f64() / window.as_secs_f64();
    progress.powf(1.0 / aggression).clamp(FLOOR, 1.0)
}
