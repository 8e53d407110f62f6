//! `mesh.covet.dev/v1alpha1` AuthorizationPolicy. Its shape follows Istio's kind of the same name.

use std::str::FromStr;

use http::HeaderName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::{
    format::{Cidr, Port},
    metadata::{Ignored, ObjectMeta},
    selector::LabelSelector,
};

/// Who may connect to workloads, and with which requests. It applies to those of its namespace, in the root namespace (`mesh-system`) to all; a
/// selector narrows that. Of the policies that apply, any DENY that matches denies; without an ALLOW policy everything
/// else is allowed; with one, only what an ALLOW policy matches.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationPolicy {
    #[serde(skip_serializing)]
    #[schemars(schema_with = "version")]
    pub(crate) api_version: Ignored,
    #[serde(skip_serializing)]
    #[schemars(schema_with = "kind")]
    pub(crate) kind: Ignored,
    pub metadata: ObjectMeta,
    pub spec: AuthorizationPolicySpec,
    #[serde(default, skip_serializing)]
    pub(crate) status: Ignored,
}

crate::api::kind_schema!("mesh.covet.dev/v1alpha1", "AuthorizationPolicy");

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationPolicySpec {
    /// Workloads that the policy is for; absent: all of its scope.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
    /// Default: ALLOW.
    #[serde(default)]
    pub action: Action,
    /// The policy decides nothing; what it would decide is logged and counted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// The policy matches when one of them does. An empty rule (`{}`) matches everything, no rules match nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    #[default]
    Allow,
    Deny,
}

impl Action {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
        }
    }
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Matches what `from`, `to` and `when` all match; an absent one matches everything.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// One of these sources.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub from: Vec<From>,
    /// One of these operations.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub to: Vec<To>,
    /// All of these conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub when: Vec<Condition>,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct From {
    pub source: Source,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct To {
    pub operation: Operation,
}

/// Matches what every field matches; a field matches when one of its entries does, a field `not...` when none does.
/// Identities come from the client's certificate: without one, nothing but a `not...` field matches.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Source {
    /// `trust-domain/ns/namespace/sa/service-account`, with `*` at one end, or `*` for any identity.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "principals")]
    pub principals: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "principals")]
    pub not_principals: Vec<String>,
    /// Namespace of the identity, with `*` at one end, or `*` for any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "namespaces")]
    pub namespaces: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "namespaces")]
    pub not_namespaces: Vec<String>,
    /// `namespace/service-account`, or `service-account` alone for one of the policy's own namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "service_accounts")]
    pub service_accounts: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "service_accounts")]
    pub not_service_accounts: Vec<String>,
    /// Ranges of the client's own address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub ip_blocks: Vec<Cidr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub not_ip_blocks: Vec<Cidr>,
}

impl Source {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Matches what every field matches. All but the ports are about HTTP requests. On a connection that does not speak HTTP
/// an ALLOW rule with one of them never matches, and a DENY rule goes by its other fields.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Operation {
    /// Ports of the workload, as numbers or in quotes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub ports: Vec<Port>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub not_ports: Vec<Port>,
    /// Methods, in capitals; `*` at one end, or `*` for any. gRPC is POST.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "methods")]
    pub methods: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "methods")]
    pub not_methods: Vec<String>,
    /// Paths without the query, `*` at one end, or `*` for any. They are compared in their normal form. That of a gRPC
    /// call is `/package.Service/Method`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "paths")]
    pub paths: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "paths")]
    pub not_paths: Vec<String>,
    /// `:authority` or Host, whatever the case, `*` at one end, or `*` for any. Without a port it matches with any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "hosts")]
    pub hosts: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "hosts")]
    pub not_hosts: Vec<String>,
}

impl Operation {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a field is about requests.
    pub(crate) fn needs_http(&self) -> bool {
        [
            &self.methods,
            &self.not_methods,
            &self.paths,
            &self.not_paths,
            &self.hosts,
            &self.not_hosts,
        ]
        .into_iter()
        .any(|list| !list.is_empty())
    }
}

/// A condition on one attribute: it has one of `values` and none of `notValues`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Condition {
    /// `source.principal`, `source.namespace`, `source.serviceAccount`, `source.ip`, `destination.ip`,
    /// `destination.port` or `request.headers[name]`.
    pub key: String,
    /// At least one here or in `notValues`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub values: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub not_values: Vec<String>,
}

/// What a condition may be about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConditionKey {
    SourcePrincipal,
    SourceNamespace,
    SourceServiceAccount,
    SourceIp,
    DestinationIp,
    DestinationPort,
    /// `request.headers[name]`
    Header(HeaderName),
}

impl ConditionKey {
    /// Those that are one word.
    const FIXED: [Self; 6] = [
        Self::SourcePrincipal,
        Self::SourceNamespace,
        Self::SourceServiceAccount,
        Self::SourceIp,
        Self::DestinationIp,
        Self::DestinationPort,
    ];

    /// How a key is written, for messages.
    pub(crate) fn known() -> String {
        let fixed = Self::FIXED.map(|key| key.as_str());
        format!("{}, request.headers[name]", fixed.join(", "))
    }

    const fn as_str(&self) -> &'static str {
        match self {
            Self::SourcePrincipal => "source.principal",
            Self::SourceNamespace => "source.namespace",
            Self::SourceServiceAccount => "source.serviceAccount",
            Self::SourceIp => "source.ip",
            Self::DestinationIp => "destination.ip",
            Self::DestinationPort => "destination.port",
            Self::Header(_) => "request.headers",
        }
    }

    /// Format of the values.
    pub(crate) const fn format(&self) -> &'static str {
        match self {
            Self::SourcePrincipal => "principal-pattern",
            Self::SourceNamespace => "namespace-pattern",
            Self::SourceServiceAccount => "service-account",
            Self::SourceIp | Self::DestinationIp => "cidr",
            Self::DestinationPort => "port",
            Self::Header(_) => "header-value-pattern",
        }
    }
}

impl FromStr for ConditionKey {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if let Some(name) = text.strip_prefix("request.headers[") {
            let name = name.strip_suffix(']').ok_or(())?;
            return HeaderName::try_from(name).map(Self::Header).map_err(drop);
        }
        Self::FIXED
            .into_iter()
            .find(|key| key.as_str() == text)
            .ok_or(())
    }
}

fn texts(format: &str) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "minItems": 1,
        "items": { "type": "string", "format": format }
    })
}

fn principals(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    texts("principal-pattern")
}

fn namespaces(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    texts("namespace-pattern")
}

fn methods(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    texts("method-pattern")
}

fn paths(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    texts("path-pattern")
}

fn hosts(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    texts("host-pattern")
}

fn service_accounts(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    texts("service-account")
}
