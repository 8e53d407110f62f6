//! The path of a request as AuthorizationPolicies see it.
//!
//! What a policy permits must be what the application does. Servers differ in how they read a path, so the agent takes
//! three precautions (docs/security.md, "Paths"):
//!
//! - Where a policy looks at paths, the application gets the path in the normal form that was decided on: unreserved
//!   characters decoded (RFC 3986 6.2.2.2), dot segments removed (5.2.4), repeated slashes merged.
//! - What still can be read in two ways (an encoded slash or backslash, `;parameters`) has several *readings*. An ALLOW
//!   has to match all of them, a DENY any.
//! - What no careful client sends (encoded control characters, encoded percent signs that hide an encoding, malformed
//!   or overlong encodings, dot segments behind an encoded slash) is *unreadable*: no ALLOW that looks at paths matches
//!   it, and every DENY that does is decided by its other fields.

use std::borrow::Cow;

use crate::api::Pattern;

/// The path of a request, without its query. Does not allocate for a path that is normal already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestPath<'p> {
    /// The most faithful reading. Characters that have no meaning of their own are decoded.
    plain: Cow<'p, str>,
    /// How looser servers may read it.
    loose: Vec<String>,
    readable: bool,
    /// What is sent on.
    normal: Cow<'p, str>,
}

impl<'p> RequestPath<'p> {
    pub fn new(path: &'p str) -> Self {
        if is_clean(path) {
            return Self {
                plain: path.into(),
                loose: Vec::new(),
                readable: true,
                normal: path.into(),
            };
        }
        read(path).unwrap_or_else(|| Self {
            plain: path.into(),
            loose: Vec::new(),
            readable: false,
            normal: path.into(),
        })
    }

    /// Every way to read it, the most faithful first.
    pub fn readings(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&*self.plain).chain(self.loose.iter().map(String::as_str))
    }

    pub(super) fn is_ambiguous(&self) -> bool {
        !self.loose.is_empty()
    }

    pub fn is_readable(&self) -> bool {
        self.readable
    }

    /// The normal form, for the application. An unreadable path is left as it is.
    pub fn normal(&self) -> &str {
        &self.normal
    }

    pub fn into_owned(self) -> RequestPath<'static> {
        RequestPath {
            plain: self.plain.into_owned().into(),
            loose: self.loose,
            readable: self.readable,
            normal: self.normal.into_owned().into(),
        }
    }
}

/// Whether there is nothing to do: the usual case.
fn is_clean(path: &str) -> bool {
    let mut before = b' ';
    for byte in path.bytes() {
        match byte {
            b'%' | b'\\' | b';' | 0..=b' ' | 0x7f.. => return false,
            b'/' | b'.' if before == b'/' => return false,
            _ => {}
        }
        before = byte;
    }
    true
}

/// `None`: unreadable.
fn read(path: &str) -> Option<RequestPath<'_>> {
    let (plain, normal) = decode(path.as_bytes())?;
    let (plain, normal) = (normal_segments(&plain), normal_segments(&normal));
    let mut loose = Vec::new();
    // A server that takes encoded slashes for slashes.
    if plain.contains("%2F") || plain.contains("%5C") {
        let decoded = plain.replace("%2F", "/").replace("%5C", "/");
        loose.push(settled_segments(&decoded)?);
    }
    // A server that takes what follows a semicolon for parameters of the segment.
    if plain.contains(';') {
        // Some look for it before they decode, some after; with slashes in what is decoded there is no end of readings.
        if !loose.is_empty() || (path.contains(';') && normal.contains("%3B")) {
            return None;
        }
        let segments = plain.split('/').map(|segment| segment.split(';').next());
        let bare: Vec<&str> = segments.map(Option::unwrap_or_default).collect();
        loose.push(settled_segments(&bare.join("/"))?);
    }
    Some(RequestPath {
        plain: plain.into(),
        loose,
        readable: true,
        normal: normal.into(),
    })
}

/// The path with everything decoded that means the same either way, and with only unreserved characters decoded. `None`:
/// malformed, or something that has no business in a path.
fn decode(path: &[u8]) -> Option<(String, String)> {
    let mut plain = Vec::with_capacity(path.len());
    let mut normal = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        let (byte, encoded) = match byte {
            b'%' => {
                let (byte, after) = encoding(rest)?;
                rest = after;
                (byte, true)
            }
            byte => (*byte, false),
        };
        match byte {
            0..b' ' | 0x7f => return None,
            b'%' | b'\\' => {
                encode(byte, &mut plain);
                encode(byte, &mut normal);
            }
            b'/' if encoded => {
                encode(byte, &mut plain);
                encode(byte, &mut normal);
            }
            _ => {
                plain.push(byte);
                match encoded && !is_unreserved(byte) {
                    true => encode(byte, &mut normal),
                    false => normal.push(byte),
                }
            }
        }
    }
    // An encoding inside an encoding, for a server that decodes twice.
    let hides = |tail: &[u8]| tail.starts_with(b"%25") && encoding(&tail[3..]).is_some();
    if (0..plain.len()).any(|at| hides(&plain[at..])) {
        return None;
    }
    // Overlong forms are no UTF-8, so no slash hides in one.
    Some((
        String::from_utf8(plain).ok()?,
        String::from_utf8(normal).ok()?,
    ))
}

/// A byte from the two digits that follow a percent sign, and what comes after them.
fn encoding(text: &[u8]) -> Option<(u8, &[u8])> {
    let (digits, rest) = text.split_first_chunk::<2>()?;
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let byte = digit(digits[0])? << 4 | digit(digits[1])?;
    Some((byte as u8, rest))
}

fn encode(byte: u8, into: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    into.extend([
        b'%',
        DIGITS[usize::from(byte >> 4)],
        DIGITS[usize::from(byte & 15)],
    ]);
}

/// RFC 3986 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Without dot segments and with single slashes. `*` and an authority are no paths and stay.
fn normal_segments(path: &str) -> String {
    if !path.starts_with('/') {
        return path.to_owned();
    }
    let mut kept: Vec<&str> = Vec::new();
    let mut ends_open = false;
    for segment in path.split('/').skip(1) {
        ends_open = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            ".." => {
                kept.pop();
            }
            _ => kept.push(segment),
        }
    }
    let mut normal = String::with_capacity(path.len());
    for segment in &kept {
        normal.push('/');
        normal.push_str(segment);
    }
    if ends_open || kept.is_empty() {
        normal.push('/');
    }
    normal
}

/// With single slashes. `None` where dot segments have come to light: some servers resolve them and some do not.
fn settled_segments(path: &str) -> Option<String> {
    let dots = |segment| matches!(segment, "." | "..");
    (!path.split('/').any(dots)).then(|| normal_segments(path))
}

/// A path as a policy writes it, or a part of one, in the form that requests are compared in.
pub(crate) fn plain_pattern(pattern: &str) -> Option<String> {
    decode(pattern.as_bytes()).map(|(plain, _)| plain)
}

/// What is wrong with a pattern of paths, if it can match no path in its normal form.
pub(crate) fn check_pattern(text: &str) -> Result<(), String> {
    const EXPECTED: &str =
        "a path such as /api/users, with '*' at one end at most (/api/*, *.json), or '*'";
    let (literal, begins, ends) = match Pattern::parse(text) {
        Pattern::Any => return Ok(()),
        Pattern::Exact(text) => (text, true, true),
        Pattern::Prefix(text) => (text, true, false),
        Pattern::Suffix(text) => (text, false, true),
    };
    if literal.contains("{*}") || literal.contains("{**}") {
        return Err(format!(
            "{EXPECTED}; templates ({{*}}, {{**}}) are not supported"
        ));
    }
    if literal.contains(['?', '#']) {
        return Err(format!(
            "{EXPECTED}, without a query: policies do not see it"
        ));
    }
    if literal.contains('*') || (begins && !literal.starts_with('/')) {
        return Err(EXPECTED.to_owned());
    }
    let Some(plain) = plain_pattern(literal) else {
        return Err(format!(
            "{EXPECTED}: this one has a malformed or forbidden encoding"
        ));
    };
    let mut segments: Vec<&str> = plain.split('/').collect();
    // What a star cuts off may be anything.
    if !begins {
        segments.remove(0);
    }
    if !ends {
        segments.pop();
    }
    let last = segments.len().saturating_sub(1);
    let empty = segments
        .iter()
        .enumerate()
        .any(|(at, segment)| segment.is_empty() && !(begins && at == 0) && !(ends && at == last));
    if empty || segments.iter().any(|s| matches!(*s, "." | "..")) {
        return Err(format!(
            "{EXPECTED}, in its normal form: without '//', '/./' and '/../', which no request has when it is compared"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
