//! When an upstream says that it makes sense to ask again.

use std::time::{Duration, SystemTime};

use ::http::{HeaderMap, header::RETRY_AFTER};

/// `Retry-After`: seconds, or a date (the form of today, RFC 9110 section 5.6.7; the two obsolete ones are ignored).
pub(in crate::proxy) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    parse_retry_after(headers.get(RETRY_AFTER)?.as_bytes(), now)
}

pub(super) fn parse_retry_after(value: &[u8], now: SystemTime) -> Option<Duration> {
    let value = value.trim_ascii();
    if let Some(seconds) = number(value) {
        return Some(Duration::from_secs(seconds));
    }
    let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(date(value)?))?;
    // What lies in the past is now.
    Some(at.duration_since(now).unwrap_or_default())
}

/// `grpc-retry-pushback-ms` (gRFC A6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Pushback {
    /// Not before this.
    After(Duration),
    /// Not at all: a negative number, or what is none.
    Never,
}

pub(in crate::proxy) fn pushback(headers: &HeaderMap) -> Option<Pushback> {
    let value = headers.get("grpc-retry-pushback-ms")?.as_bytes();
    Some(match number(value.trim_ascii()) {
        // An i32 in gRPC's own libraries.
        Some(millis) if millis <= i32::MAX as u64 => Pushback::After(Duration::from_millis(millis)),
        _ => Pushback::Never,
    })
}

/// Up to ten digits: 317 years of seconds are enough.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 10 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    str::from_utf8(digits).ok()?.parse().ok()
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` as seconds after 1970.
fn date(text: &[u8]) -> Option<u64> {
    const MONTHS: &[u8] = b"JanFebMarAprMayJunJulAugSepOctNovDec";
    let text: &[u8; 29] = text.try_into().ok()?;
    let at = |from: usize, to: usize| number(&text[from..to]);
    let blanks = [4, 7, 11, 16, 25].iter().all(|i| text[*i] == b' ');
    if !blanks || text[3] != b',' || text[19] != b':' || text[22] != b':' || &text[26..] != b"GMT" {
        return None;
    }
    let month = MONTHS
        .chunks(3)
        .position(|name| name.eq_ignore_ascii_case(&text[8..11]))? as u64;
    let (day, year) = (at(5, 7)?, at(12, 16)?);
    let (hour, minute, second) = (at(17, 19)?, at(20, 22)?, at(23, 25)?);
    if !(1..=31).contains(&day) || year < 1970 || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days from civil, with the year beginning in March.
    let (year, month) = if month < 2 {
        (year - 1, month + 10)
    } else {
        (year, month - 2)
    };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    let days = days.checked_sub(719_468)?;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}
