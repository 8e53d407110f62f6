//! Points in time as people read them.

use std::time::SystemTime;

/// `2026-11-24T08:00:00Z`
pub(crate) fn moment(time: SystemTime) -> String {
    let t = time::OffsetDateTime::from(time);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        t.year(),
        u8::from(t.month()),
        t.day(),
        t.hour(),
        t.minute(),
        t.second()
    )
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn moments_are_utc_to_the_second() {
        let time = UNIX_EPOCH + Duration::from_millis(1_795_507_205_999);
        assert_eq!(super::moment(time), "2026-11-24T08:00:05Z");
        assert_eq!(super::moment(UNIX_EPOCH), "1970-01-01T00:00:00Z");
    }
}
