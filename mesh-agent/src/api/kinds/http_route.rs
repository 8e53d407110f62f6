//! `gateway.networking.k8s.io/v1` HTTPRoute, with the fields of the experimental channel that the mesh knows.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::route::{
    BackendObjectReference, HeaderFilter, HeaderMatch, MatchType, ParentReference, RequestMirror,
    Route, hostnames,
};
use crate::{
    api::{
        format::GepDuration,
        metadata::{Ignored, ObjectMeta},
    },
    routing::MAX_BACKENDS,
};

/// Which HTTP requests to a Service go where, and what is done to them on the way.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRoute {
    #[serde(skip_serializing)]
    #[schemars(schema_with = "version")]
    pub(crate) api_version: Ignored,
    #[serde(skip_serializing)]
    #[schemars(schema_with = "kind")]
    pub(crate) kind: Ignored,
    pub metadata: ObjectMeta,
    pub spec: HttpRouteSpec,
    #[serde(default, skip_serializing)]
    pub(crate) status: Ignored,
}

crate::api::kind_schema!("gateway.networking.k8s.io/v1", "HTTPRoute");

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteSpec {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub parent_refs: Vec<ParentReference>,
    /// Accepted and not used: in a mesh the dialled address decides, not the Host header.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "hostnames")]
    pub hostnames: Vec<String>,
    /// Default: one rule that matches everything and has no backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    pub rules: Option<Vec<HttpRouteRule>>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteRule {
    /// Shown in logs and metrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "dns-1123-subdomain"))]
    pub name: Option<String>,
    /// The rule is for requests that any of these matches. Default: every request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub matches: Vec<HttpRouteMatch>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub filters: Vec<HttpRouteFilter>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_BACKENDS))]
    pub backend_refs: Vec<HttpBackendRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<HttpRouteTimeouts>,
    /// Of the experimental channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<HttpRouteRetry>,
}

/// All fields that are there have to match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteMatch {
    /// Default: PathPrefix `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<HttpPathMatch>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub headers: Vec<HeaderMatch>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub query_params: Vec<QueryParamMatch>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<HttpMethod>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpPathMatch {
    /// Default: PathPrefix.
    #[serde(default, rename = "type")]
    pub match_type: PathMatchType,
    /// Default: `/`.
    #[serde(default = "slash")]
    #[schemars(extend("format" = "at-most-1024"))]
    pub value: String,
}

fn slash() -> String {
    "/".to_owned()
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum PathMatchType {
    Exact,
    /// By segment: `/v2` is a prefix of `/v2/a` and not of `/v2a`.
    #[default]
    PathPrefix,
    /// RE2's syntax; the whole path has to match.
    RegularExpression,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct QueryParamMatch {
    /// Default: Exact.
    #[serde(default, rename = "type")]
    pub match_type: MatchType,
    #[schemars(extend("format" = "http-header-name"))]
    pub name: String,
    #[schemars(extend("format" = "query-value"))]
    pub value: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum HttpMethod {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Connect,
    Options,
    Trace,
    Patch,
}

/// The field that `type` names, and no other.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteFilter {
    #[serde(rename = "type")]
    pub filter_type: HttpFilterType,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_header_modifier: Option<HeaderFilter>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_header_modifier: Option<HeaderFilter>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_mirror: Option<RequestMirror>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_redirect: Option<RequestRedirect>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_rewrite: Option<UrlRewrite>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cors: Option<CorsFilter>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
pub enum HttpFilterType {
    RequestHeaderModifier,
    ResponseHeaderModifier,
    RequestMirror,
    RequestRedirect,
    #[serde(rename = "URLRewrite")]
    UrlRewrite,
    #[serde(rename = "CORS")]
    Cors,
}

/// Answers with a redirect; nothing is forwarded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestRedirect {
    /// Default: that of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<Scheme>,
    /// Default: that of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "precise-hostname"))]
    pub hostname: Option<String>,
    /// Default: that of the request. The query always stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathModifier>,
    /// Default: the well-known port of `scheme`, or without one the port that was dialled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308. Default: 302.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 301, max = 308))]
    pub status_code: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    Http,
    Https,
}

/// Changes what is forwarded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UrlRewrite {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "precise-hostname"))]
    pub hostname: Option<String>,
    /// The query always stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathModifier>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathModifier {
    #[serde(rename = "type")]
    pub modifier_type: PathModifierType,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "at-most-1024"))]
    pub replace_full_path: Option<String>,
    /// In place of the prefix that matched; the rule must have one match, of a path prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "at-most-1024"))]
    pub replace_prefix_match: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum PathModifierType {
    ReplaceFullPath,
    ReplacePrefixMatch,
}

/// Which pages of other origins a browser lets call this service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CorsFilter {
    /// `scheme://host[:port]`, `*` in the host for any text; or `*` alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "origins")]
    pub allow_origins: Vec<String>,
    /// Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_credentials: Option<bool>,
    /// Methods, or `*` alone. GET, HEAD and POST are always allowed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "methods")]
    pub allow_methods: Vec<String>,
    /// Header names, or `*` alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "cors_headers")]
    pub allow_headers: Vec<String>,
    /// Header names, or `*` alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "cors_headers")]
    pub expose_headers: Vec<String>,
    /// Seconds for which a browser remembers the answer. Default: 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub max_age: Option<u32>,
}

fn origins(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "maxItems": 64,
        "items": { "type": "string", "format": "cors-origin" }
    })
}

fn methods(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "maxItems": 9,
        "items": {
            "type": "string",
            "enum": ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "*"]
        }
    })
}

fn cors_headers(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "maxItems": 64,
        "items": { "type": "string", "format": "http-header-name" }
    })
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpBackendRef {
    /// Default: `""`, the core group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "api-group"))]
    pub group: Option<String>,
    /// Default: Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "kind"))]
    pub kind: Option<String>,
    #[schemars(extend("format" = "dns-1123-subdomain"))]
    pub name: String,
    /// Default: the route's. In a mesh no ReferenceGrant is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "dns-1123-label"))]
    pub namespace: Option<String>,
    /// The Service's port, not the endpoints'.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// Its share of the sum of all weights. Default: 1.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub weight: u32,
    /// For requests to this backend only; neither RequestRedirect nor CORS.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub filters: Vec<HttpRouteFilter>,
}

pub(super) const fn one() -> u32 {
    1
}

/// `0s` switches a timeout off, also one of a TrafficPolicy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteTimeouts {
    /// All attempts together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<GepDuration>,
    /// Each attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_request: Option<GepDuration>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteRetry {
    /// Response codes that are retried. Default: 500, 502, 503, 504.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "codes")]
    pub codes: Vec<u16>,
    /// Retries after the first attempt. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000))]
    pub attempts: Option<u32>,
    /// The least wait before a retry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<GepDuration>,
}

fn codes(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "items": { "type": "integer", "minimum": 400, "maximum": 599 }
    })
}

impl HttpBackendRef {
    pub fn reference(&self) -> BackendObjectReference {
        BackendObjectReference {
            group: self.group.clone(),
            kind: self.kind.clone(),
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            port: self.port,
        }
    }
}

impl HttpFilterType {
    pub const ALL: [Self; 6] = [
        Self::RequestHeaderModifier,
        Self::ResponseHeaderModifier,
        Self::RequestMirror,
        Self::RequestRedirect,
        Self::UrlRewrite,
        Self::Cors,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RequestHeaderModifier => "RequestHeaderModifier",
            Self::ResponseHeaderModifier => "ResponseHeaderModifier",
            Self::RequestMirror => "RequestMirror",
            Self::RequestRedirect => "RequestRedirect",
            Self::UrlRewrite => "URLRewrite",
            Self::Cors => "CORS",
        }
    }

    /// The field of a filter that goes with the type.
    pub const fn field(self) -> &'static str {
        match self {
            Self::RequestHeaderModifier => "requestHeaderModifier",
            Self::ResponseHeaderModifier => "responseHeaderModifier",
            Self::RequestMirror => "requestMirror",
            Self::RequestRedirect => "requestRedirect",
            Self::UrlRewrite => "urlRewrite",
            Self::Cors => "cors",
        }
    }
}

impl HttpRouteFilter {
    /// Whether the field that goes with a type is there.
    pub fn has(&self, filter_type: HttpFilterType) -> bool {
        match filter_type {
            HttpFilterType::RequestHeaderModifier => self.request_header_modifier.is_some(),
            HttpFilterType::ResponseHeaderModifier => self.response_header_modifier.is_some(),
            HttpFilterType::RequestMirror => self.request_mirror.is_some(),
            HttpFilterType::RequestRedirect => self.request_redirect.is_some(),
            HttpFilterType::UrlRewrite => self.url_rewrite.is_some(),
            HttpFilterType::Cors => self.cors.is_some(),
        }
    }
}

impl HttpRouteSpec {
    /// With the default for no rules filled in.
    pub fn rules(&self) -> Vec<HttpRouteRule> {
        match &self.rules {
            Some(rules) => rules.clone(),
            None => vec![HttpRouteRule::default()],
        }
    }
}

impl Route for HttpRoute {
    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn parent_refs(&self) -> &[ParentReference] {
        &self.spec.parent_refs
    }

    fn hostnames(&self) -> &[String] {
        &self.spec.hostnames
    }
}
