//! What a rule does to requests and responses on the way.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::model::ResourceName;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filters {
    pub request_headers: Option<HeaderModifier>,
    pub response_headers: Option<HeaderModifier>,
    pub redirect: Option<Redirect>,
    pub rewrite: Option<Rewrite>,
    pub mirrors: Vec<Mirror>,
    pub cors: Option<Cors>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeaderModifier {
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Joined to what is there with a comma.
    pub add: Vec<(HeaderName, HeaderValue)>,
    pub remove: Vec<HeaderName>,
}

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

#[derive(Clone, Debug, PartialEq)]
pub struct Mirror {
    /// `None`: the backend is not there, and nothing is mirrored.
    pub service: Option<(ResourceName, u16)>,
    pub fraction: Fraction,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fraction {
    pub numerator: u32,
    pub denominator: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Cors {
    pub allow_origins: Vec<Arc<str>>,
    pub allow_methods: Vec<Method>,
    pub allow_any_method: bool,
    pub allow_headers: Vec<HeaderName>,
    pub allow_any_header: bool,
    pub expose_headers: Option<HeaderValue>,
    pub allow_credentials: bool,
    pub max_age: Option<Duration>,
}

impl HeaderModifier {
    pub fn apply(&self, _headers: &mut HeaderMap) {}
}
