//! `traceparent` and `tracestate` (<https://www.w3.org/TR/trace-context/>).

use http::{HeaderMap, HeaderName, HeaderValue};

pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(super) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Bytes of a `traceparent` of the version that we write.
const LENGTH: usize = 55;
/// The bits of the flags that have a meaning: sampled, and (Level 2) that the ID is random.
const KNOWN_FLAGS: u8 = 0b11;
pub(super) const SAMPLED: u8 = 1;
/// Entries of a `tracestate` (section 3.3.1.1).
const MAX_ENTRIES: usize = 32;

/// A `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    pub trace: u128,
    pub parent: u64,
    pub flags: u8,
}

impl TraceParent {
    pub fn random() -> Self {
        Self {
            trace: random_trace(),
            parent: random_span(),
            flags: 0,
        }
    }

    /// Reads any version that the specification allows for: later ones may append fields behind a dash, the present one
    /// may not, and `ff` is none. Of the flags only those that are known today are kept.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (fixed, rest) = value.split_at_checked(LENGTH)?;
        let version = hex(&fixed[..2])? as u8;
        let well_formed = fixed[2] == b'-' && fixed[35] == b'-' && fixed[52] == b'-';
        let ends = match version {
            0 => rest.is_empty(),
            0xff => false,
            _ => rest.first().is_none_or(|b| *b == b'-'),
        };
        let (trace, parent) = (hex(&fixed[3..35])?, hex(&fixed[36..52])? as u64);
        let flags = hex(&fixed[53..])? as u8;
        (well_formed && ends && trace != 0 && parent != 0).then_some(Self {
            trace,
            parent,
            flags: flags & KNOWN_FLAGS,
        })
    }

    pub fn format(self) -> String {
        format!(
            "00-{:032x}-{:016x}-{:02x}",
            self.trace, self.parent, self.flags
        )
    }

    pub(super) fn write(self, headers: &mut HeaderMap) {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        put_hex(&mut text[3..35], self.trace);
        put_hex(&mut text[36..52], u128::from(self.parent));
        put_hex(&mut text[53..], u128::from(self.flags));
        if let Ok(value) = HeaderValue::from_bytes(&text) {
            headers.insert(TRACEPARENT, value);
        }
    }
}

/// Zero is not an ID.
pub(super) fn random_trace() -> u128 {
    rand::random::<u128>().max(1)
}

pub(super) fn random_span() -> u64 {
    rand::random::<u64>().max(1)
}

/// The one `traceparent` of a request. Two are none: nobody can say which is meant.
pub(super) fn parent(headers: &HeaderMap) -> Option<TraceParent> {
    let mut all = headers.get_all(TRACEPARENT).iter();
    let value = all.next()?;
    all.next()
        .is_none()
        .then(|| TraceParent::parse(value.as_bytes()))
        .flatten()
}

/// Whether the `tracestate` of a request can be passed on: one that breaks the grammar is dropped, the parent is not.
pub(super) fn state_is_good(headers: &HeaderMap) -> bool {
    let mut entries = 0;
    let mut keys: [&[u8]; MAX_ENTRIES] = [&[]; MAX_ENTRIES];
    for value in headers.get_all(TRACESTATE) {
        for entry in value.as_bytes().split(|b| *b == b',') {
            let entry = entry.trim_ascii();
            // Empty ones are allowed, so that headers can be joined.
            if entry.is_empty() {
                continue;
            }
            let Some(at) = entry.iter().position(|b| *b == b'=') else {
                return false;
            };
            let (key, value) = (&entry[..at], &entry[at + 1..]);
            if entries == MAX_ENTRIES
                || !is_key(key)
                || !is_value(value)
                || keys[..entries].contains(&key)
            {
                return false;
            }
            keys[entries] = key;
            entries += 1;
        }
    }
    true
}

/// `key` of section 3.3.1.3.1: a name, or `tenant@system`.
fn is_key(key: &[u8]) -> bool {
    let rest = |bytes: &[u8]| {
        bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-*/".contains(b))
    };
    match key.iter().position(|b| *b == b'@') {
        None => key.len() <= 256 && key.first().is_some_and(u8::is_ascii_lowercase) && rest(key),
        Some(at) => {
            let (tenant, system) = (&key[..at], &key[at + 1..]);
            (1..=241).contains(&tenant.len())
                && (tenant[0].is_ascii_lowercase() || tenant[0].is_ascii_digit())
                && rest(tenant)
                && (1..=14).contains(&system.len())
                && system[0].is_ascii_lowercase()
                && rest(system)
        }
    }
}

/// Printable, no comma, no equals sign, not ending with a space.
fn is_value(value: &[u8]) -> bool {
    (1..=256).contains(&value.len())
        && value
            .iter()
            .all(|b| (0x20..=0x7e).contains(b) && !b",=".contains(b))
        && value.last() != Some(&b' ')
}

/// Lower-case hexadecimal, up to 32 digits.
pub(super) fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0_u128, |value, b| {
        let digit = match b {
            b'0'..=b'9' => b - b'0',
            b'a'..=b'f' => b - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u128::from(digit))
    })
}

pub(super) fn put_hex(out: &mut [u8], value: u128) {
    for (at, digit) in out.iter_mut().rev().enumerate() {
        *digit = b"0123456789abcdef"[(value >> (4 * at)) as usize & 15];
    }
}
