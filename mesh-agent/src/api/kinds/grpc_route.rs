//! `gateway.networking.k8s.io/v1` GRPCRoute.
//!
//! Its rules become rules of an HTTPRoute (`http_rules`) but for what they match, so that filters and backends are
//! checked and compiled in one place.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    http_route::{HttpBackendRef, HttpFilterType, HttpRouteFilter, one},
    route::{
        HeaderFilter, HeaderMatch, MatchType, ParentReference, RequestMirror, Route, hostnames,
    },
};
use crate::{
    api::metadata::{Ignored, ObjectMeta},
    routing::MAX_BACKENDS,
};

/// Which gRPC requests to a Service go where, and what is done to them on the way.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcRoute {
    #[serde(skip_serializing)]
    #[schemars(schema_with = "version")]
    pub(crate) api_version: Ignored,
    #[serde(skip_serializing)]
    #[schemars(schema_with = "kind")]
    pub(crate) kind: Ignored,
    pub metadata: ObjectMeta,
    pub spec: GrpcRouteSpec,
    #[serde(default, skip_serializing)]
    pub(crate) status: Ignored,
}

crate::api::kind_schema!("gateway.networking.k8s.io/v1", "GRPCRoute");

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcRouteSpec {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub parent_refs: Vec<ParentReference>,
    /// Accepted and not used: in a mesh the dialled address decides, not the authority.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "hostnames")]
    pub hostnames: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub rules: Vec<GrpcRouteRule>,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcRouteRule {
    /// Shown in logs and metrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "dns-1123-subdomain"))]
    pub name: Option<String>,
    /// The rule is for requests that any of these matches. Default: every request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub matches: Vec<GrpcRouteMatch>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub filters: Vec<GrpcRouteFilter>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_BACKENDS))]
    pub backend_refs: Vec<GrpcBackendRef>,
}

/// All fields that are there have to match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcRouteMatch {
    /// Default: every service and method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<GrpcMethodMatch>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub headers: Vec<HeaderMatch>,
}

/// One of service and method at least.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcMethodMatch {
    /// Default: Exact.
    #[serde(default, rename = "type")]
    pub match_type: MatchType,
    /// With its package: `shop.v1.Cart`. Default: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "at-most-1024"))]
    pub service: Option<String>,
    /// Default: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "at-most-1024"))]
    pub method: Option<String>,
}

/// The field that `type` names, and no other.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcRouteFilter {
    #[serde(rename = "type")]
    pub filter_type: GrpcFilterType,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_header_modifier: Option<HeaderFilter>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_header_modifier: Option<HeaderFilter>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_mirror: Option<RequestMirror>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum GrpcFilterType {
    RequestHeaderModifier,
    ResponseHeaderModifier,
    RequestMirror,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcBackendRef {
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
    /// For requests to this backend only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub filters: Vec<GrpcRouteFilter>,
}

impl GrpcRouteFilter {
    pub fn to_http(&self) -> HttpRouteFilter {
        HttpRouteFilter {
            filter_type: match self.filter_type {
                GrpcFilterType::RequestHeaderModifier => HttpFilterType::RequestHeaderModifier,
                GrpcFilterType::ResponseHeaderModifier => HttpFilterType::ResponseHeaderModifier,
                GrpcFilterType::RequestMirror => HttpFilterType::RequestMirror,
            },
            request_header_modifier: self.request_header_modifier.clone(),
            response_header_modifier: self.response_header_modifier.clone(),
            request_mirror: self.request_mirror.clone(),
            request_redirect: None,
            url_rewrite: None,
            cors: None,
        }
    }
}

impl GrpcBackendRef {
    pub fn to_http(&self) -> HttpBackendRef {
        HttpBackendRef {
            group: self.group.clone(),
            kind: self.kind.clone(),
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            port: self.port,
            weight: self.weight,
            filters: self.filters.iter().map(GrpcRouteFilter::to_http).collect(),
        }
    }
}

impl Route for GrpcRoute {
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
