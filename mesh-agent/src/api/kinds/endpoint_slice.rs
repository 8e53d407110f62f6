//! `discovery.k8s.io/v1` EndpointSlice.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::{
    format::UnicastIp,
    metadata::{Ignored, ObjectMeta},
};

/// Endpoints of the Service that the label `kubernetes.io/service-name` names.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EndpointSlice {
    #[serde(skip_serializing)]
    #[schemars(schema_with = "version")]
    pub(crate) api_version: Ignored,
    #[serde(skip_serializing)]
    #[schemars(schema_with = "kind")]
    pub(crate) kind: Ignored,
    pub metadata: ObjectMeta,
    pub address_type: AddressType,
    #[serde(default)]
    #[schemars(length(max = 1000))]
    pub endpoints: Vec<SliceEndpoint>,
    /// Each serves the port of the Service that has the same name.
    #[serde(default)]
    #[schemars(length(max = 100))]
    pub ports: Vec<SlicePort>,
}

crate::api::kind_schema!("discovery.k8s.io/v1", "EndpointSlice");

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum AddressType {
    IPv4,
    IPv6,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SliceEndpoint {
    #[schemars(length(min = 1, max = 100))]
    pub addresses: Vec<UnicastIp>,
    #[serde(default)]
    pub conditions: EndpointConditions,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    #[serde(default, skip_serializing)]
    hostname: Ignored,
    #[serde(default, skip_serializing)]
    target_ref: Ignored,
    /// Whose clients it is for. When every endpoint has one, those go first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hints: Option<EndpointHints>,
    #[serde(default, skip_serializing)]
    deprecated_topology: Ignored,
}

/// Counts as the endpoint's place. Of several zones or nodes the first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EndpointHints {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub for_zones: Vec<Hint>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub for_nodes: Vec<Hint>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Hint {
    pub name: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EndpointConditions {
    /// Absent means ready. An endpoint that is not ready takes no traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<bool>,
    #[serde(default, skip_serializing)]
    serving: Ignored,
    #[serde(default, skip_serializing)]
    terminating: Ignored,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SlicePort {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "optional_name")]
    pub name: Option<String>,
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// Only `TCP`.
    #[serde(default, skip_serializing)]
    #[schemars(schema_with = "tcp")]
    protocol: Ignored,
    #[serde(default, skip_serializing)]
    app_protocol: Ignored,
}

crate::api::one_of_schema! { tcp: ["TCP"]; }

/// Kubernetes writes the empty string for the only port of a service.
fn optional_name(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": ["string", "null"] })
}

impl SliceEndpoint {
    /// The zone that it is for by its hints.
    pub fn hinted_zone(&self) -> Option<&str> {
        let hint = self.hints.as_ref()?.for_zones.first()?;
        Some(&hint.name)
    }

    /// The node that it is for by its hints.
    pub fn hinted_node(&self) -> Option<&str> {
        let hint = self.hints.as_ref()?.for_nodes.first()?;
        Some(&hint.name)
    }

    pub fn is_ready(&self) -> bool {
        self.conditions.ready != Some(false)
    }
}
