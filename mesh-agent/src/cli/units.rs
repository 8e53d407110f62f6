//! Numbers as people read them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// `512B`, `1.5KiB`, `2.0GiB`
pub(super) fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if n < 1024 {
        return format!("{n}B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would print as 1024.0.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1}{}", UNITS[unit])
}

/// `350ms`, `12s`, `4m10s`, `3h5m`, `2d4h`
pub(super) fn age(duration: Duration) -> String {
    let s = duration.as_secs();
    match s {
        0 => format!("{}ms", duration.as_millis()),
        1..60 => format!("{s}s"),
        60..3600 => format!("{}m{}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d{}h", s / 86_400, s % 86_400 / 3600),
    }
}

/// Microseconds: `80us`, `1.2ms`, `3.4s`
pub(super) fn micros(us: u32) -> String {
    match us {
        0..1000 => format!("{us}us"),
        1000..1_000_000 => format!("{:.1}ms", f64::from(us) / 1e3),
        _ => format!("{:.1}s", f64::from(us) / 1e6),
    }
}

/// `1 error`, `2 errors`
pub(super) fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// How long ago a moment was, milliseconds since the epoch.
pub(super) fn since(unix_ms: u64) -> Duration {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    now.saturating_sub(Duration::from_millis(unix_ms))
}

/// Milliseconds since the epoch.
pub(super) fn now_ms() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// A moment as seen from another, both milliseconds since the epoch: `in 3h5m`, `2d4h ago`.
pub(super) fn relative(at_ms: u64, now_ms: u64) -> String {
    if at_ms >= now_ms {
        format!("in {}", age(Duration::from_millis(at_ms - now_ms)))
    } else {
        format!("{} ago", age(Duration::from_millis(now_ms - at_ms)))
    }
}

/// `2026-08-01T12:00:00Z`, of milliseconds since the epoch.
pub(super) fn rfc3339(at_ms: u64) -> String {
    let seconds = i64::try_from(at_ms / 1000).unwrap_or(i64::MAX);
    time::OffsetDateTime::from_unix_timestamp(seconds).map_or_else(
        |_| format!("{seconds}s"),
        |t| {
            format!(
                "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
                t.year(),
                u8::from(t.month()),
                t.day(),
                t.hour(),
                t.minute(),
                t.second()
            )
        },
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    #[test]
    fn numbers_read_well_at_the_edges() {
        for (n, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1.0KiB"),
            (1536, "1.5KiB"),
            (1_048_575, "1.0MiB"),
            (u64::MAX, "16.0EiB"),
        ] {
            assert_eq!(super::bytes(n), text);
        }
        for (ms, text) in [
            (350, "350ms"),
            (59_999, "59s"),
            (60_000, "1m0s"),
            (11_100_000, "3h5m"),
            (187_200_000, "2d4h"),
        ] {
            assert_eq!(super::age(Duration::from_millis(ms)), text);
        }
        assert_eq!(super::relative(11_100_000, 0), "in 3h5m");
        assert_eq!(super::relative(0, 59_999), "59s ago");
        assert_eq!(super::rfc3339(1_785_585_600_999), "2026-08-01T12:00:00Z");
        assert!(!super::rfc3339(u64::MAX).is_empty());
        assert_eq!(super::micros(999), "999us");
        assert_eq!(super::micros(1200), "1.2ms");
        assert_eq!(super::micros(3_400_000), "3.4s");
    }
}
