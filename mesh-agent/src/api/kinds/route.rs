//! What HTTPRoute and GRPCRoute have in common: parents, backends, and the filters that both know.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::metadata::ObjectMeta;

/// The group of routes and Gateways.
pub(crate) const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

/// What a route is bound to. Only core Services (`group: ""`, `kind: Service`) are parents in a mesh; another parent is
/// said in the route's status.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ParentReference {
    /// `""` for a Service. Default: gateway.networking.k8s.io.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "api-group"))]
    pub group: Option<String>,
    /// `Service`. Default: Gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "kind"))]
    pub kind: Option<String>,
    /// Default: the route's. A route in another namespace than the Service is for clients of its own namespace only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "dns-1123-label"))]
    pub namespace: Option<String>,
    #[schemars(extend("format" = "dns-1123-subdomain"))]
    pub name: String,
    /// The name of the Service's port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "dns-1123-subdomain"))]
    pub section_name: Option<String>,
    /// Default: every port of the Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
}

impl ParentReference {
    pub fn group(&self) -> &str {
        self.group.as_deref().unwrap_or(GATEWAY_GROUP)
    }

    pub fn kind(&self) -> &str {
        self.kind.as_deref().unwrap_or("Gateway")
    }

    pub fn is_service(&self) -> bool {
        self.group().is_empty() && self.kind() == "Service"
    }
}

/// A Service and its port, as a route refers to them. Another kind gets status 500 for its share.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendObjectReference {
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
}

impl BackendObjectReference {
    pub fn group(&self) -> &str {
        self.group.as_deref().unwrap_or_default()
    }

    pub fn kind(&self) -> &str {
        self.kind.as_deref().unwrap_or("Service")
    }

    pub fn is_service(&self) -> bool {
        self.group().is_empty() && self.kind() == "Service"
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum MatchType {
    #[default]
    Exact,
    /// RE2's syntax; the whole value has to match.
    RegularExpression,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderMatch {
    /// Default: Exact.
    #[serde(default, rename = "type")]
    pub match_type: MatchType,
    /// Upper and lower case are the same.
    #[schemars(extend("format" = "http-header-name"))]
    pub name: String,
    #[schemars(extend("format" = "match-value"))]
    pub value: String,
}

/// One action for a header name at most.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderFilter {
    /// In place of what is there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub set: Vec<HeaderValueOf>,
    /// Joined to what is there with a comma.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub add: Vec<HeaderValueOf>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "header_names")]
    pub remove: Vec<String>,
}

fn header_names(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "maxItems": 16,
        "items": { "type": "string", "format": "http-header-name" }
    })
}

/// A header.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderValueOf {
    #[schemars(extend("format" = "http-header-name"))]
    pub name: String,
    #[schemars(extend("format" = "http-header-value"))]
    pub value: String,
}

/// A copy of requests goes to a Service too; its answers are thrown away. Default: of every request.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestMirror {
    pub backend_ref: BackendObjectReference,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub percent: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fraction: Option<Fraction>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fraction {
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub numerator: u32,
    /// Default: 100.
    #[serde(default = "hundred")]
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub denominator: u32,
}

const fn hundred() -> u32 {
    100
}

/// What the two kinds have in common, for what handles both.
pub trait Route {
    fn metadata(&self) -> &ObjectMeta;
    fn parent_refs(&self) -> &[ParentReference];
    fn hostnames(&self) -> &[String];
}

pub(super) fn hostnames(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "maxItems": 16,
        "items": { "type": "string", "format": "hostname" }
    })
}
