//! Redirects and rewrites: what becomes of a path, a host and a port.

use std::{borrow::Cow, sync::Arc};

use http::{HeaderMap, HeaderValue, Uri, header, uri::PathAndQuery};

#[derive(Clone, Debug, PartialEq)]
pub struct Redirect {
    pub scheme: Option<Arc<str>>,
    pub hostname: Option<Arc<str>>,
    pub path: Option<PathRewrite>,
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Rewrite {
    pub hostname: Option<HeaderValue>,
    pub path: Option<PathRewrite>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum PathRewrite {
    Full(Arc<str>),
    /// In place of the prefix that matched.
    Prefix(Arc<str>),
}

/// How the client reached the service, for the parts that a redirect does not name.
#[derive(Clone, Copy, Debug)]
pub struct Dialled<'a> {
    /// `http`, or `https` where TLS ended in this agent.
    pub scheme: &'a str,
    /// The Host header or `:authority`, port included.
    pub host: Option<&'a str>,
    /// The service port.
    pub port: u16,
}

impl PathRewrite {
    /// The new path. `prefix`: the path prefix that matched, without a slash at its end.
    pub fn apply<'p>(&'p self, path: &'p str, prefix: Option<&str>) -> Cow<'p, str> {
        match self {
            Self::Full(full) if full.is_empty() => Cow::Borrowed("/"),
            Self::Full(full) => Cow::Borrowed(full),
            Self::Prefix(replacement) => {
                let rest = prefix.and_then(|prefix| path.strip_prefix(prefix));
                match rest {
                    Some(rest) if rest.is_empty() || rest.starts_with('/') => {
                        let replacement = replacement.trim_end_matches('/');
                        match (replacement, rest) {
                            ("", "") => Cow::Borrowed("/"),
                            ("", rest) => Cow::Borrowed(rest),
                            (replacement, rest) => Cow::Owned([replacement, rest].concat()),
                        }
                    }
                    _ => Cow::Borrowed(path),
                }
            }
        }
    }
}

impl Redirect {
    /// The Location header. The query stays.
    pub fn location(&self, uri: &Uri, dialled: Dialled<'_>, prefix: Option<&str>) -> String {
        let path = match &self.path {
            Some(rewrite) => rewrite.apply(uri.path(), prefix),
            None => Cow::Borrowed(uri.path()),
        };
        let mut location = String::with_capacity(64 + path.len());
        let scheme = self.scheme.as_deref().unwrap_or(dialled.scheme);
        let host = self.hostname.as_deref().or(dialled.host.map(without_port));
        // A client of HTTP/1.0 need not say the host; then it knows only the path.
        if let Some(host) = host {
            location.push_str(scheme);
            location.push_str("://");
            location.push_str(host);
            let well_known = well_known_port(scheme);
            let port = self.port.or(match self.scheme {
                Some(_) => well_known,
                None => None,
            });
            let port = port.unwrap_or(dialled.port);
            if well_known != Some(port) {
                location.push(':');
                location.push_str(&port.to_string());
            }
        }
        if !path.starts_with('/') {
            location.push('/');
        }
        location.push_str(&path);
        if let Some(query) = uri.query() {
            location.push('?');
            location.push_str(query);
        }
        location
    }
}

impl Rewrite {
    /// Changes where a request goes; the query stays. HTTP/2 has the host in the URI, HTTP/1 in the Host header.
    pub fn apply(&self, uri: &mut Uri, headers: &mut HeaderMap, prefix: Option<&str>) {
        let mut parts = std::mem::take(uri).into_parts();
        let original = parts.path_and_query.clone();
        if let (Some(rewrite), Some(old)) = (&self.path, &original) {
            let mut new = rewrite.apply(old.path(), prefix).into_owned();
            if let Some(query) = old.query() {
                new.push('?');
                new.push_str(query);
            }
            // Its parts were checked when the route was read.
            if let Ok(new) = PathAndQuery::try_from(new) {
                parts.path_and_query = Some(new);
            }
        }
        if let Some(hostname) = &self.hostname {
            let in_uri = parts.authority.is_some();
            if in_uri && let Ok(authority) = hostname.as_bytes().try_into() {
                parts.authority = Some(authority);
            }
            if !in_uri || headers.contains_key(header::HOST) {
                headers.insert(header::HOST, hostname.clone());
            }
        }
        match Uri::from_parts(parts) {
            Ok(new) => *uri = new,
            Err(_) => {
                // Authority and path were each valid, so this does not come; a request never goes out without a path.
                let path = original.unwrap_or_else(|| PathAndQuery::from_static("/"));
                *uri = path.into();
            }
        }
    }
}

/// `[::1]:80` and `web:80` without the port.
fn without_port(host: &str) -> &str {
    match host.rfind(':') {
        Some(colon) if !host[colon..].contains(']') => &host[..colon],
        _ => host,
    }
}

fn well_known_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}
