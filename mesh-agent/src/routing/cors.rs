//! Cross-origin resource sharing: which origins, methods and headers a browser may use (fetch.spec.whatwg.org).

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

#[derive(Clone, Debug, PartialEq)]
pub struct Cors {
    /// `*`, or origins with `*` for any part of the host.
    pub allow_origins: Vec<Arc<str>>,
    pub allow_methods: Vec<Method>,
    pub allow_any_method: bool,
    pub allow_headers: Vec<HeaderName>,
    pub allow_any_header: bool,
    pub expose_headers: Option<HeaderValue>,
    pub allow_credentials: bool,
    pub max_age: Option<Duration>,
}

impl Cors {
    /// Whether a browser asks what it may do; such a request never reaches a backend.
    pub fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
        *method == Method::OPTIONS
            && headers.contains_key(header::ORIGIN)
            && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
    }

    /// Headers of the answer to a preflight, which has status 204 whether the origin is allowed or not: a browser goes
    /// by the headers.
    pub fn preflight(&self, request: &HeaderMap) -> HeaderMap {
        let mut answer = HeaderMap::new();
        vary(
            &mut answer,
            "origin, access-control-request-method, access-control-request-headers",
        );
        let Some(origin) = self.allowed(request) else {
            return answer;
        };
        self.origin(origin, &mut answer);
        let methods = match (self.allow_any_method, self.allow_methods.is_empty()) {
            // `*` is not a wildcard to a browser with credentials, so what it asked for is said back.
            (true, _) => request.get(header::ACCESS_CONTROL_REQUEST_METHOD).cloned(),
            (false, true) => None,
            (false, false) => joined(self.allow_methods.iter().map(Method::as_str)),
        };
        let headers = match (self.allow_any_header, self.allow_headers.is_empty()) {
            (true, _) => request.get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned(),
            (false, true) => None,
            (false, false) => joined(self.allow_headers.iter().map(HeaderName::as_str)),
        };
        if let Some(methods) = methods {
            answer.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
        }
        if let Some(headers) = headers {
            answer.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, headers);
        }
        if let Some(age) = self.max_age {
            answer.insert(header::ACCESS_CONTROL_MAX_AGE, age.as_secs().into());
        }
        answer
    }

    /// Adds to the response of a request that is no preflight what a browser wants to see. What the backend says of the
    /// matter itself is dropped: the route decides.
    pub fn respond(&self, request: &HeaderMap, response: &mut HeaderMap) {
        for name in [
            header::ACCESS_CONTROL_ALLOW_ORIGIN,
            header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
        ] {
            response.remove(name);
        }
        if !self.any_origin() || self.allow_credentials {
            vary(response, "origin");
        }
        let Some(origin) = self.allowed(request) else {
            return;
        };
        self.origin(origin, response);
        if let Some(expose) = &self.expose_headers {
            response.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
        }
    }

    fn any_origin(&self) -> bool {
        self.allow_origins.iter().any(|origin| &**origin == "*")
    }

    /// The request's origin, if it is allowed.
    fn allowed<'r>(&self, request: &'r HeaderMap) -> Option<&'r HeaderValue> {
        let origin = request.get(header::ORIGIN)?;
        let text = origin.to_str().ok()?;
        let mut allowed = self.allow_origins.iter();
        allowed
            .any(|pattern| &**pattern == "*" || origin_matches(pattern, text))
            .then_some(origin)
    }

    fn origin(&self, origin: &HeaderValue, answer: &mut HeaderMap) {
        let shown = match self.any_origin() && !self.allow_credentials {
            true => HeaderValue::from_static("*"),
            false => origin.clone(),
        };
        answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, shown);
        if self.allow_credentials {
            let yes = HeaderValue::from_static("true");
            answer.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
        }
    }
}

/// The same scheme and port, and a host that the pattern's host covers.
fn origin_matches(pattern: &str, origin: &str) -> bool {
    match (parts(pattern), parts(origin)) {
        (Some((scheme, host, port)), Some((own_scheme, own_host, own_port))) => {
            scheme.eq_ignore_ascii_case(own_scheme)
                && port == own_port
                && host_matches(host.as_bytes(), own_host.as_bytes())
        }
        _ => false,
    }
}

/// Scheme, host and port; that of the scheme where none is written.
fn parts(origin: &str) -> Option<(&str, &str, u16)> {
    let (scheme, rest) = origin.split_once("://")?;
    let default = match scheme.eq_ignore_ascii_case("https") {
        true => 443,
        false => 80,
    };
    match rest.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => Some((scheme, host, port.parse().ok()?)),
        _ => Some((scheme, rest, default)),
    }
}

/// `*` stands for one character or more, dots included. Linear but for one point to go back to.
fn host_matches(pattern: &[u8], host: &[u8]) -> bool {
    let (mut p, mut h) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while h < host.len() {
        match pattern.get(p) {
            Some(b'*') => {
                // It takes one character at least.
                star = Some((p, h + 1));
                (p, h) = (p + 1, h + 1);
            }
            Some(byte) if byte.eq_ignore_ascii_case(&host[h]) => (p, h) = (p + 1, h + 1),
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    (p, h) = (at + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    p == pattern.len()
}

fn joined<'t>(texts: impl Iterator<Item = &'t str>) -> Option<HeaderValue> {
    let texts: Vec<&str> = texts.collect();
    HeaderValue::try_from(texts.join(", ")).ok()
}

/// Caches must not give one origin's answer to another.
fn vary(headers: &mut HeaderMap, names: &'static str) {
    headers.append(header::VARY, HeaderValue::from_static(names));
}
