//! Zipkin's headers (<https://github.com/openzipkin/b3-propagation>), in one header or in several.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::w3c::{hex, put_hex};

const SINGLE: HeaderName = HeaderName::from_static("b3");
const TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
const PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// What the headers say. IDs may be missing: then only the decision whether to sample is passed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct B3 {
    /// Trace and span.
    pub ids: Option<(u128, u64)>,
    /// The trace's ID has 16 digits.
    pub short: bool,
    /// `None`: whoever reads this decides.
    pub sampled: Option<bool>,
    pub debug: bool,
}

impl B3 {
    /// `{trace}-{span}[-{state}[-{parent}]]`, or the state alone.
    pub fn parse(value: &[u8]) -> Option<Self> {
        if let [state] = value {
            return Self::default().with_state(&[*state]);
        }
        let mut fields = value.split(|b| *b == b'-');
        let mut b3 = Self::default().with_ids(fields.next()?, fields.next()?)?;
        if let Some(state) = fields.next() {
            b3 = b3.with_state(state)?;
        }
        if let Some(parent) = fields.next() {
            is_span(parent)?;
        }
        fields.next().is_none().then_some(b3)
    }

    pub fn format(self) -> String {
        let mut out = [0; 51];
        String::from_utf8_lossy(self.text(&mut out)).into_owned()
    }

    /// At most 32 + 1 + 16 + 2 bytes.
    fn text(self, out: &mut [u8; 51]) -> &[u8] {
        let state = match (self.debug, self.sampled) {
            (true, _) => Some(b'd'),
            (false, Some(true)) => Some(b'1'),
            (false, Some(false)) => Some(b'0'),
            (false, None) => None,
        };
        let mut length = 0;
        if let Some((trace, span)) = self.ids {
            let digits = if self.short { 16 } else { 32 };
            put_hex(&mut out[..digits], trace);
            out[digits] = b'-';
            put_hex(&mut out[digits + 1..digits + 17], u128::from(span));
            length = digits + 17;
            if state.is_some() {
                out[length] = b'-';
                length += 1;
            }
        }
        if let Some(state) = state {
            out[length] = state;
            length += 1;
        }
        &out[..length]
    }

    fn with_ids(self, trace: &[u8], span: &[u8]) -> Option<Self> {
        if ![16, 32].contains(&trace.len()) {
            return None;
        }
        let trace_id = lenient_hex(trace)?;
        (trace_id != 0).then_some(Self {
            ids: Some((trace_id, is_span(span)?)),
            short: trace.len() == 16,
            ..self
        })
    }

    fn with_state(self, state: &[u8]) -> Option<Self> {
        let (sampled, debug) = match state {
            b"1" | b"true" => (true, false),
            b"0" | b"false" => (false, false),
            b"d" => (true, true),
            _ => return None,
        };
        Some(Self {
            sampled: Some(sampled),
            debug,
            ..self
        })
    }
}

fn is_span(digits: &[u8]) -> Option<u64> {
    (digits.len() == 16)
        .then(|| lenient_hex(digits))
        .flatten()
        .map(|span| span as u64)
        .filter(|span| *span != 0)
}

/// The specification says lower case; some clients of Zipkin write upper.
fn lenient_hex(digits: &[u8]) -> Option<u128> {
    let mut lower = [0; 32];
    let lower = lower.get_mut(..digits.len())?;
    lower.copy_from_slice(digits);
    lower.make_ascii_lowercase();
    hex(lower)
}

/// From the single header.
pub(super) fn single(headers: &HeaderMap) -> Option<B3> {
    B3::parse(one(headers, &SINGLE)?)
}

/// From the several headers.
pub(super) fn multi(headers: &HeaderMap) -> Option<B3> {
    let mut b3 = B3::default();
    if let (Some(trace), Some(span)) = (one(headers, &TRACE), one(headers, &SPAN)) {
        b3 = b3.with_ids(trace, span)?;
    }
    if one(headers, &FLAGS) == Some(b"1") {
        b3 = b3.with_state(b"d")?;
    } else if let Some(state) = one(headers, &SAMPLED).filter(|state| *state != b"d") {
        b3 = b3.with_state(state)?;
    }
    (b3 != B3::default()).then_some(b3)
}

fn one<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h [u8]> {
    let mut all = headers.get_all(name).iter();
    let value = all.next()?;
    all.next().is_none().then(|| value.as_bytes())
}

pub(super) fn write_single(b3: B3, headers: &mut HeaderMap) {
    if let Ok(value) = HeaderValue::from_bytes(b3.text(&mut [0; 51])) {
        headers.insert(SINGLE, value);
    }
}

pub(super) fn write_multi(b3: B3, headers: &mut HeaderMap) {
    let mut digits = [0; 32];
    if let Some((trace, span)) = b3.ids {
        let trace_digits = &mut digits[..if b3.short { 16 } else { 32 }];
        put_hex(trace_digits, trace);
        if let Ok(value) = HeaderValue::from_bytes(trace_digits) {
            headers.insert(TRACE, value);
        }
        put_hex(&mut digits[..16], u128::from(span));
        if let Ok(value) = HeaderValue::from_bytes(&digits[..16]) {
            headers.insert(SPAN, value);
        }
    }
    // Of the span before ours, which is not the parent of the new one.
    headers.remove(PARENT);
    if b3.debug {
        headers.insert(FLAGS, HeaderValue::from_static("1"));
        headers.remove(SAMPLED);
    } else if let Some(sampled) = b3.sampled {
        let text = if sampled { "1" } else { "0" };
        headers.insert(SAMPLED, HeaderValue::from_static(text));
    }
}
