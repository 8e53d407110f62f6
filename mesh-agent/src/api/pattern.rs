//! Patterns of principals, namespaces, methods, hosts and header values, as policies write them: a text, a text with `*`
//! at one end, or `*`. Those of paths are in `policy::path`.
//!
//! A pattern that can match nothing is refused: in a DENY policy it would silently let everything through.

use super::format::is_dns_label;
use crate::model::SpiffeId;

/// A pattern, taken apart. Borrowed from the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pattern<'a> {
    Any,
    Exact(&'a str),
    Prefix(&'a str),
    Suffix(&'a str),
}

impl<'a> Pattern<'a> {
    pub fn parse(text: &'a str) -> Self {
        if text == "*" {
            Self::Any
        } else if let Some(prefix) = text.strip_suffix('*') {
            Self::Prefix(prefix)
        } else if let Some(suffix) = text.strip_prefix('*') {
            Self::Suffix(suffix)
        } else {
            Self::Exact(text)
        }
    }

    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => text == *exact,
            Self::Prefix(prefix) => text.starts_with(prefix),
            Self::Suffix(suffix) => text.ends_with(suffix),
        }
    }

    /// What stands beside the `*`.
    fn literal(&self) -> &'a str {
        match *self {
            Self::Any => "",
            Self::Exact(text) | Self::Prefix(text) | Self::Suffix(text) => text,
        }
    }
}

/// The segments of a principal; those in quotes are fixed.
static PRINCIPAL: [Option<&str>; 5] = [None, Some("ns"), None, Some("sa"), None];

pub(super) fn check_principal(text: &str) -> Result<(), String> {
    const EXPECTED: &str = "a principal such as cluster.local/ns/shop/sa/web, with '*' at one end at most (cluster.local/ns/shop/*), or '*'";
    if text.starts_with("spiffe:") {
        return Err(format!("{EXPECTED}, without spiffe://"));
    }
    let pattern = Pattern::parse(text);
    let possible = match pattern {
        Pattern::Any => true,
        Pattern::Exact(exact) => format!("spiffe://{exact}").parse::<SpiffeId>().is_ok(),
        Pattern::Prefix(prefix) => {
            let segments: Vec<&str> = prefix.split('/').collect();
            fits(&segments, PRINCIPAL.iter(), |fixed, part| {
                fixed.starts_with(part)
            })
        }
        Pattern::Suffix(suffix) => {
            let segments: Vec<&str> = suffix.rsplit('/').collect();
            fits(&segments, PRINCIPAL.iter().rev(), |fixed, part| {
                fixed.ends_with(part)
            })
        }
    };
    let clean = pattern.literal().bytes().all(|b| {
        b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_' | b'/')
    });
    if possible && clean {
        Ok(())
    } else {
        Err(EXPECTED.into())
    }
}

/// Whether a principal can have these segments at one end; the last of them may be cut off.
fn fits(
    segments: &[&str],
    principal: impl ExactSizeIterator<Item = &'static Option<&'static str>>,
    cut_off: impl Fn(&str, &str) -> bool,
) -> bool {
    let last = segments.len() - 1;
    segments.len() <= principal.len()
        && segments
            .iter()
            .zip(principal)
            .enumerate()
            .all(|(at, (segment, fixed))| match fixed {
                Some(fixed) if at == last => cut_off(fixed, segment),
                Some(fixed) => segment == fixed,
                None => at == last || !segment.is_empty(),
            })
}

pub(super) fn check_namespace(text: &str) -> Result<(), String> {
    let possible = match Pattern::parse(text) {
        Pattern::Any => true,
        Pattern::Exact(exact) => is_dns_label(exact),
        // What is cut off may begin or end with '-'.
        Pattern::Prefix(prefix) => prefix.len() <= 63 && is_dns_label(&format!("{prefix}x")),
        Pattern::Suffix(suffix) => suffix.len() <= 63 && is_dns_label(&format!("x{suffix}")),
    };
    if possible {
        Ok(())
    } else {
        Err("a namespace, with '*' at one end at most, or '*'".into())
    }
}

pub(super) fn check_service_account(text: &str) -> Result<(), String> {
    let is_subdomain = |name: &str| name.len() <= 253 && name.split('.').all(is_dns_label);
    let good = match text.split_once('/') {
        Some((namespace, name)) => is_dns_label(namespace) && is_subdomain(name),
        None => is_subdomain(text),
    };
    if good {
        Ok(())
    } else {
        Err("namespace/service-account, or service-account alone for one of the policy's namespace; without '*'".into())
    }
}

pub(super) fn check_method(text: &str) -> Result<(), String> {
    let literal = Pattern::parse(text).literal();
    let token = |b: u8| b.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?={}*".contains(&b);
    if literal.bytes().all(token)
        && !literal.bytes().any(|b| b.is_ascii_lowercase())
        && !text.is_empty()
    {
        Ok(())
    } else {
        Err("a method in capitals (GET), with '*' at one end at most, or '*'".into())
    }
}

pub(super) fn check_host(text: &str) -> Result<(), String> {
    const EXPECTED: &str =
        "a host (shop.example, shop.example:8080), with '*' at one end at most (*.example), or '*'";
    let literal = Pattern::parse(text).literal();
    let host =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']');
    if !literal.bytes().all(host) || text.is_empty() {
        return Err(EXPECTED.into());
    }
    let exact = matches!(Pattern::parse(text), Pattern::Exact(_) | Pattern::Suffix(_));
    if exact && literal.ends_with('.') {
        return Err(format!("{EXPECTED}, without a final dot"));
    }
    Ok(())
}

pub(super) fn check_header_value(text: &str) -> Result<(), String> {
    let pattern = Pattern::parse(text);
    let literal = pattern.literal();
    // A value comes without the space around it.
    let possible = match pattern {
        Pattern::Any => true,
        Pattern::Exact(text) => text.trim() == text && !text.is_empty(),
        Pattern::Prefix(text) => text.trim_start() == text,
        Pattern::Suffix(text) => text.trim_end() == text,
    };
    if possible && !literal.contains('*') && !literal.chars().any(char::is_control) {
        Ok(())
    } else {
        Err("a value of a header, with '*' at one end at most, or '*' for any".into())
    }
}
