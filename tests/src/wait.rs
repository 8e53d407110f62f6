//! Waiting for a state by polling with a deadline. No test sleeps a fixed time to let something happen.

use std::time::{Duration, Instant};

const STEP: Duration = Duration::from_millis(10);

/// Polls until `check` gives a value; panics with `what` and the last complaint after `deadline`.
pub fn eventually_some<T>(
    what: &str,
    deadline: Duration,
    mut check: impl FnMut() -> Result<T, String>,
) -> T {
    let end = Instant::now() + deadline;
    let mut step = STEP;
    loop {
        match check() {
            Ok(value) => return value,
            Err(last) if Instant::now() >= end => {
                panic!("{what}: not within {deadline:?}; last seen: {last}")
            }
            Err(_) => std::thread::sleep(step),
        }
        step = (step * 3 / 2).min(Duration::from_millis(100));
    }
}

/// Polls until `check` holds; panics with `what` after `deadline`.
pub fn eventually(what: &str, deadline: Duration, mut check: impl FnMut() -> bool) {
    eventually_some(what, deadline, || {
        if check() { Ok(()) } else { Err("no".into()) }
    });
}

/// Watches for `span` that `check` stays false: for what must not happen. The only wait that takes its full time.
pub fn never(what: &str, span: Duration, mut check: impl FnMut() -> bool) {
    let end = Instant::now() + span;
    while Instant::now() < end {
        assert!(!check(), "{what}: happened");
        std::thread::sleep(STEP);
    }
}
