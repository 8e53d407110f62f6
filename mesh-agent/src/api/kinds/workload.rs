//! `mesh.covet.dev/v1alpha1` Workload.

use std::{collections::BTreeMap, path::PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    api::{
        format::UnicastIp,
        metadata::{Ignored, ObjectMeta},
    },
    model::TunnelProtocol,
};

/// One thing with an identity and addresses that is not a pod of a cluster: processes in a network namespace, or a
/// machine that runs no agent.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Workload {
    #[serde(skip_serializing)]
    #[schemars(schema_with = "version")]
    pub(crate) api_version: Ignored,
    #[serde(skip_serializing)]
    #[schemars(schema_with = "kind")]
    pub(crate) kind: Ignored,
    pub metadata: ObjectMeta,
    pub spec: WorkloadSpec,
    #[serde(default, skip_serializing)]
    pub(crate) status: Ignored,
}

crate::api::kind_schema!("mesh.covet.dev/v1alpha1", "Workload");

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadSpec {
    /// The node it runs on. Absent: every agent takes it for its own if it finds `netns`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "dns-1123-subdomain"))]
    pub node: Option<String>,
    /// The first of each IP family is the one that services send traffic to.
    #[schemars(length(min = 1, max = 16))]
    pub addresses: Vec<UnicastIp>,
    /// Path of its network namespace on its node, such as `/run/netns/shop`. Without it nothing is captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "absolute-path"))]
    pub netns: Option<PathBuf>,
    #[serde(default = "default_service_account")]
    #[schemars(extend("format" = "dns-1123-subdomain"))]
    pub service_account: String,
    /// Share of traffic among the endpoints of a service; 0 takes none.
    #[serde(default = "default_weight")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub weight: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "label-value"))]
    pub zone: Option<String>,
    /// Names of its ports, for a Service's `targetPort`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "named_ports")]
    pub ports: BTreeMap<String, u16>,
    /// How others of the mesh reach it: `HBONE` through a tunnel to its port 15008, `TCP` plainly. Default: HBONE for a
    /// workload that is enrolled by label and names a `netns`, on whichever node, otherwise TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<TunnelProtocol>,
}

fn default_service_account() -> String {
    "default".to_owned()
}

fn default_weight() -> u32 {
    1
}

fn named_ports(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "propertyNames": { "format": "port-name" },
        "additionalProperties": { "type": "integer", "minimum": 1, "maximum": 65535 }
    })
}
