//! Headers of gRPC: its content type and its deadline.

use std::time::Duration;

use ::http::{HeaderMap, HeaderName, HeaderValue, header::CONTENT_TYPE};

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Whether a message is gRPC: `application/grpc`, also with `+proto` and the like or parameters. gRPC-Web is not: it
/// carries its trailers in the body.
pub(in crate::proxy) fn is_grpc(headers: &HeaderMap) -> bool {
    const NAME: &[u8] = b"application/grpc";
    headers.get(CONTENT_TYPE).is_some_and(|value| {
        let value = value.as_bytes();
        value.len() >= NAME.len()
            && value[..NAME.len()].eq_ignore_ascii_case(NAME)
            && matches!(value.get(NAME.len()), None | Some(b'+' | b';' | b' '))
    })
}

/// `grpc-timeout`: at most 8 digits and a unit.
pub(in crate::proxy) fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    parse_grpc_timeout(headers.get(GRPC_TIMEOUT)?.as_bytes())
}

pub(super) fn parse_grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0, |number: u64, digit| {
        number * 10 + u64::from(digit - b'0')
    });
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// The finest unit in which the time has 8 digits; rounded down, so that it never grows on its way.
pub(in crate::proxy) fn format_grpc_timeout(timeout: Duration) -> HeaderValue {
    const MOST: u128 = 99_999_999;
    let nanos = timeout.as_nanos();
    let (number, unit) = [
        (1, 'n'),
        (1_000, 'u'),
        (1_000_000, 'm'),
        (1_000_000_000, 'S'),
        (60_000_000_000, 'M'),
    ]
    .into_iter()
    .map(|(size, unit)| (nanos / size, unit))
    .find(|(number, _)| *number <= MOST)
    .unwrap_or_else(|| ((nanos / 3_600_000_000_000).min(MOST), 'H'));
    let text = format!("{number}{unit}");
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("0n"))
}

/// Passes the client's deadline on as what is left of it. Without one nothing is set.
pub(in crate::proxy) fn reduce_grpc_timeout(headers: &mut HeaderMap, left: Duration) {
    if let Some(value) = headers.get_mut(GRPC_TIMEOUT) {
        let given = parse_grpc_timeout(value.as_bytes());
        *value = format_grpc_timeout(given.map_or(left, |given| given.min(left)));
    }
}
