//! Query parameters, compared without decoding them into memory.

use std::borrow::Cow;

/// The value of the first parameter of this name, as it was written. Names and values are percent-encoded, with `+` for
/// a space.
pub(super) fn first<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        equals(key, name).then_some(value)
    })
}

/// Whether an encoded text stands for `plain`.
pub(super) fn equals(encoded: &str, plain: &str) -> bool {
    encoded.len() >= plain.len() && Decoded(encoded.as_bytes()).eq(plain.bytes())
}

/// The bytes that an encoded text stands for.
pub(super) fn decode(encoded: &str) -> Cow<'_, [u8]> {
    if encoded.contains(['%', '+']) {
        Cow::Owned(Decoded(encoded.as_bytes()).collect())
    } else {
        Cow::Borrowed(encoded.as_bytes())
    }
}

/// What is not an escape stands for itself: `%zz` too.
struct Decoded<'e>(&'e [u8]);

impl Iterator for Decoded<'_> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        let (byte, rest) = match self.0 {
            [b'%', high, low, rest @ ..] => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => (high << 4 | low, rest),
                _ => (b'%', &self.0[1..]),
            },
            [b'+', rest @ ..] => (b' ', rest),
            [byte, rest @ ..] => (*byte, rest),
            [] => return None,
        };
        self.0 = rest;
        Some(byte)
    }
}

fn hex(digit: u8) -> Option<u8> {
    (digit as char).to_digit(16).map(|value| value as u8)
}
