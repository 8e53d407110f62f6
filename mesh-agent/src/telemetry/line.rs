//! Writes one line of the log, in text or JSON as tracing-subscriber writes them, into a buffer that is used again.
//!
//! Requests are many and their lines wide: through tracing each would cost more than all other telemetry of a request
//! together. Nothing here allocates once the buffer has grown.

use std::{
    fmt::Display,
    io::Write as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Bytes of a value that a client chose; the rest is cut off.
const MAX_VALUE: usize = 2_048;

pub(super) struct Line<'b> {
    out: &'b mut Vec<u8>,
    json: bool,
}

/// Writing to a vector does not fail.
macro_rules! put {
    ($out:expr, $($format:tt)*) => {{ let _ = write!($out, $($format)*); }};
}

impl<'b> Line<'b> {
    pub(super) fn new(
        out: &'b mut Vec<u8>,
        json: bool,
        at: SystemTime,
        target: &str,
        message: &str,
    ) -> Self {
        out.clear();
        let line = Self { out, json };
        if json {
            line.out.extend_from_slice(b"{\"timestamp\":\"");
            timestamp(line.out, at);
            put!(
                line.out,
                "\",\"level\":\"INFO\",\"message\":\"{message}\",\"target\":\"{target}\""
            );
        } else {
            timestamp(line.out, at);
            put!(line.out, "  INFO {target}: {message}");
        }
        line
    }

    fn key(&mut self, key: &str) {
        if self.json {
            put!(self.out, ",\"{key}\":");
        } else {
            put!(self.out, " {key}=");
        }
    }

    /// Words of ours: nothing in them needs an escape.
    pub(super) fn word(&mut self, key: &str, value: &str) {
        self.key(key);
        put!(self.out, "\"{value}\"");
    }

    /// Names and addresses, which the mesh has checked.
    pub(super) fn name(&mut self, key: &str, value: Option<&dyn Display>) {
        let Some(value) = value else { return };
        self.key(key);
        if self.json {
            put!(self.out, "\"{value}\"");
        } else {
            put!(self.out, "{value}");
        }
    }

    pub(super) fn number(&mut self, key: &str, value: u64) {
        self.key(key);
        put!(self.out, "{value}");
    }

    /// In milliseconds.
    pub(super) fn millis(&mut self, key: &str, value: Option<Duration>) {
        let Some(value) = value else { return };
        self.key(key);
        let micros = value.as_micros();
        put!(self.out, "{}.{:03}", micros / 1000, micros % 1000);
    }

    /// What a peer sent: escaped, and cut where it is long.
    pub(super) fn foreign(&mut self, key: &str, value: Option<&[u8]>) {
        let Some(value) = value else { return };
        self.key(key);
        let cut = value.len() > MAX_VALUE;
        let value = &value[..value.len().min(MAX_VALUE)];
        self.out.push(b'"');
        let mut text = Escaped(self.out);
        for chunk in value.utf8_chunks() {
            for c in chunk.valid().chars() {
                text.put(c, self.json);
            }
            for byte in chunk.invalid() {
                // The backslash is escaped in turn where that is due.
                let digit = |n: u8| char::from_digit(u32::from(n), 16).unwrap_or('0');
                for c in ['\\', 'x', digit(byte >> 4), digit(byte & 15)] {
                    text.put(c, self.json);
                }
            }
        }
        if cut {
            put!(self.out, "...");
        }
        self.out.push(b'"');
    }

    pub(super) fn end(self) -> &'b [u8] {
        self.out
            .extend_from_slice(if self.json { b"}\n" } else { b"\n" });
        self.out
    }
}

struct Escaped<'a>(&'a mut Vec<u8>);

impl Escaped<'_> {
    fn put(&mut self, c: char, json: bool) {
        match c {
            '"' | '\\' => put!(self.0, "\\{c}"),
            ' '..='~' => self.0.push(c as u8),
            // Whatever moves the cursor, ends a line or turns the direction of writing.
            _ if c.is_control() || !printable(c) => {
                if json {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        put!(self.0, "\\u{unit:04x}");
                    }
                } else {
                    put!(self.0, "{}", c.escape_unicode());
                }
            }
            _ => put!(self.0, "{c}"),
        }
    }
}

/// As the standard library's `Debug` sees it.
fn printable(c: char) -> bool {
    c.escape_debug().len() == 1
}

/// RFC 3339 with microseconds, as tracing-subscriber writes it.
fn timestamp(out: &mut Vec<u8>, at: SystemTime) {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    put!(
        out,
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:06}Z",
        since.subsec_micros()
    );
}

/// Year, month and day of a number of days since the epoch (Howard Hinnant, "chrono-compatible low-level date
/// algorithms", `civil_from_days`, for days that are not negative).
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    (year, month, doy - (153 * mp + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;

    use super::*;

    fn line(json: bool, value: &[u8]) -> String {
        let mut out = Vec::new();
        let mut line = Line::new(&mut out, json, UNIX_EPOCH, "access", "request finished");
        line.foreign("user_agent", Some(value));
        String::from_utf8(line.end().to_vec()).unwrap()
    }

    #[test]
    fn a_line_looks_like_those_of_the_log() {
        let mut out = Vec::new();
        let at = UNIX_EPOCH + Duration::from_micros(1_709_210_096_000_042);
        let fields = |line: &mut Line<'_>| {
            line.word("direction", "outbound");
            line.name("service", Some(&"shop/web"));
            line.name("upstream", None);
            line.number("attempts", 2);
            line.millis("duration_ms", Some(Duration::from_micros(12_034)));
        };
        let mut text = Line::new(&mut out, false, at, "access", "request finished");
        fields(&mut text);
        assert_eq!(
            text.end(),
            b"2024-02-29T12:34:56.000042Z  INFO access: request finished direction=\"outbound\" service=shop/web attempts=2 duration_ms=12.034\n"
        );
        let mut json = Line::new(&mut out, true, at, "access", "request finished");
        fields(&mut json);
        let value: serde_json::Value = serde_json::from_slice(json.end()).unwrap();
        assert_eq!(value["timestamp"], "2024-02-29T12:34:56.000042Z");
        assert_eq!(value["service"], "shop/web");
        assert_eq!(value["duration_ms"], 12.034);
    }

    #[test]
    fn what_a_client_sends_cannot_forge_a_line() {
        let forged = "curl\"\r\n2026-01-01T00:00:00Z  INFO access: \u{1b}[31mred\u{202e}\u{2028}\\";
        for json in [false, true] {
            let line = line(json, forged.as_bytes());
            assert_eq!(line.matches('\n').count(), 1, "{line}");
            assert!(
                !line.contains(['\r', '\u{1b}', '\u{202e}', '\u{2028}']),
                "{line}"
            );
            if json {
                let value: serde_json::Value = serde_json::from_str(&line).unwrap();
                assert_eq!(value["user_agent"], forged);
            }
        }
        assert!(line(false, b"a\xffb").contains(r#"user_agent="a\\xffb""#));
        let long = line(false, &[b'x'; 10_000]);
        assert!(long.len() < 2_200 && long.contains("xxx...\""));
    }

    proptest! {
        #[test]
        fn any_bytes_are_one_line(value in proptest::collection::vec(any::<u8>(), 0..200)) {
            let text = line(false, &value);
            prop_assert_eq!(text.matches('\n').count(), 1);
            let json = line(true, &value);
            prop_assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok(), "{}", json);
        }

        #[test]
        fn days_are_those_of_the_calendar(days in 0_u64..100_000) {
            let date = time::Date::from_julian_day(2_440_588 + days as i32).unwrap();
            let wanted = (date.year() as u64, u8::from(date.month()).into(), date.day().into());
            prop_assert_eq!(civil(days), wanted);
        }
    }
}
