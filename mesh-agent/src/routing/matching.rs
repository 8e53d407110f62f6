//! What one match of a rule asks of a request. The fields of a match are AND-ed, the matches of a rule are OR-ed.

use std::{cmp::Reverse, fmt, sync::Arc};

use http::{HeaderMap, HeaderName, Method, Uri};

use super::{expression::Expression, query};

/// What matches look at.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    pub method: &'a Method,
    pub uri: &'a Uri,
    pub headers: &'a HeaderMap,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    pub path: PathMatch,
    pub method: Option<Method>,
    /// One of a name at most.
    pub headers: Vec<HeaderMatch>,
    /// One of a name at most.
    pub queries: Vec<QueryMatch>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    Exact(Arc<str>),
    /// By segment, without the slash at its end: `/v2` is not a prefix of `/v2example`. Empty: every path.
    Prefix(Arc<str>),
    Regex(Expression),
    /// The two parts of a gRPC path, `/service/method`; absent is any.
    Grpc {
        service: Option<TextMatch>,
        method: Option<TextMatch>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TextMatch {
    Exact(Arc<str>),
    Regex(Expression),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderMatch {
    pub name: HeaderName,
    pub value: TextMatch,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryMatch {
    pub name: Arc<str>,
    pub value: TextMatch,
}

/// Ordered so that the smaller one goes first: Exact path, then the longest prefix, then a method, then the most
/// headers, then the most query parameters. The order of regular expressions is left to us: between exact paths and
/// prefixes, the longer first, so that a rule for everything (`/`) does not take their requests.
///
/// For gRPC: the longest service, then the longest method, then the most headers; exact ones before expressions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    path: Reverse<[usize; 4]>,
    method: Reverse<bool>,
    headers: Reverse<usize>,
    queries: Reverse<usize>,
}

impl Match {
    pub(super) fn rank(&self) -> Rank {
        let path = match &self.path {
            PathMatch::Exact(path) => [3, path.len(), 0, 0],
            PathMatch::Regex(expression) => [2, expression.as_str().len(), 0, 0],
            PathMatch::Prefix(prefix) => [1, prefix.len(), 0, 0],
            PathMatch::Grpc { service, method } => {
                let ([a, b], [c, d]) = (text_rank(service), text_rank(method));
                [a, b, c, d]
            }
        };
        Rank {
            path: Reverse(path),
            method: Reverse(self.method.is_some()),
            headers: Reverse(self.headers.len()),
            queries: Reverse(self.queries.len()),
        }
    }

    /// All but the path.
    pub(super) fn rest_matches(&self, request: RequestView<'_>) -> bool {
        self.method.as_ref().is_none_or(|m| m == request.method)
            && self.headers.iter().all(|header| {
                // The first of several.
                let value = request.headers.get(&header.name);
                value.is_some_and(|value| header.value.matches(value.as_bytes()))
            })
            && self.queries.iter().all(|parameter| {
                let query = request.uri.query().unwrap_or_default();
                query::first(query, &parameter.name)
                    .is_some_and(|value| parameter.value.matches_encoded(value))
            })
    }
}

fn text_rank(text: &Option<TextMatch>) -> [usize; 2] {
    match text {
        Some(TextMatch::Exact(text)) => [2, text.len()],
        Some(TextMatch::Regex(expression)) => [1, expression.as_str().len()],
        None => [0, 0],
    }
}

impl PathMatch {
    /// A prefix as it is written; a slash at the end means nothing.
    pub fn prefix(written: &str) -> Self {
        Self::Prefix(written.trim_end_matches('/').into())
    }

    pub(super) fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *path,
            Self::Prefix(prefix) => is_prefix(prefix, path),
            Self::Regex(expression) => expression.matches(path.as_bytes()),
            Self::Grpc { service, method } => {
                let Some((own_service, own_method)) = grpc_parts(path) else {
                    return service.is_none() && method.is_none();
                };
                service
                    .as_ref()
                    .is_none_or(|s| s.matches(own_service.as_bytes()))
                    && method
                        .as_ref()
                        .is_none_or(|m| m.matches(own_method.as_bytes()))
            }
        }
    }
}

/// Whether the prefix ends where a segment of the path does. The empty one is a prefix of everything, `*` included.
pub(super) fn is_prefix(prefix: &str, path: &str) -> bool {
    prefix.is_empty()
        || path
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// `/service/method`.
pub(super) fn grpc_parts(path: &str) -> Option<(&str, &str)> {
    path.strip_prefix('/')?.rsplit_once('/')
}

impl TextMatch {
    pub(super) fn matches(&self, text: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => exact.as_bytes() == text,
            Self::Regex(expression) => expression.matches(text),
        }
    }

    fn matches_encoded(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => query::equals(text, exact),
            Self::Regex(expression) => expression.matches(&query::decode(text)),
        }
    }
}

impl fmt::Display for TextMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) => f.write_str(text),
            Self::Regex(expression) => write!(f, "~{expression}"),
        }
    }
}

/// `GET /v2/* x-canary=true ?animal=~wh.*`: what a table shows.
impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(method) = &self.method {
            write!(f, "{method} ")?;
        }
        let any = |f: &mut fmt::Formatter<'_>, text: &Option<TextMatch>| match text {
            Some(text) => text.fmt(f),
            None => f.write_str("*"),
        };
        match &self.path {
            PathMatch::Exact(path) => f.write_str(path)?,
            PathMatch::Prefix(prefix) => write!(f, "{prefix}/*")?,
            PathMatch::Regex(expression) => write!(f, "~{expression}")?,
            PathMatch::Grpc { service, method } => {
                any(f, service)?;
                f.write_str("/")?;
                any(f, method)?;
            }
        }
        for header in &self.headers {
            write!(f, " {}={}", header.name, header.value)?;
        }
        for parameter in &self.queries {
            write!(f, " ?{}={}", parameter.name, parameter.value)?;
        }
        Ok(())
    }
}
