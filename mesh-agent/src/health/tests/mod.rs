//! Tests of active health checks: probes against real servers, the plan by properties, the whole against a catalog.

mod plan;
mod probes;
mod running;
mod servers;

use std::time::Duration;

use crate::model::{HealthCheck, HealthProbe};

/// A check with thresholds of 2 (good) and 3 (bad).
fn check(probe: HealthProbe, interval: Duration, timeout: Duration) -> HealthCheck {
    HealthCheck {
        probe,
        interval,
        timeout,
        healthy_threshold: 2,
        unhealthy_threshold: 3,
        port: None,
    }
}
