//! `mesh.covet.dev/v1alpha1` MeshPolicy.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    api::{
        format::{Cidr, GepDuration, Port},
        metadata::{Ignored, Object, ObjectMeta},
        selector::LabelSelector,
    },
    model::{FailPolicy, MtlsMode, TrustDomain},
};

/// How the mesh treats workloads. In the root namespace (`mesh-system`) without a selector: all of them; in another
/// namespace without a selector: those of the namespace; with a selector: those it matches in its namespace. Merged
/// field by field, the narrowest wins; two at one level for the same workload are refused.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshPolicy {
    #[serde(skip_serializing)]
    #[schemars(schema_with = "version")]
    pub(crate) api_version: Ignored,
    #[serde(skip_serializing)]
    #[schemars(schema_with = "kind")]
    pub(crate) kind: Ignored,
    pub metadata: ObjectMeta,
    pub spec: MeshPolicySpec,
    #[serde(default, skip_serializing)]
    pub(crate) status: Ignored,
}

crate::api::kind_schema!("mesh.covet.dev/v1alpha1", "MeshPolicy");

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshPolicySpec {
    /// Workloads of this namespace that the policy is for; absent: all of its scope.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
    /// Connections to destinations that the mesh does not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outbound: Option<Outbound>,
    /// What happens while no agent runs. Default: closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fail_policy: Option<FailPolicy>,
    /// What is left alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exclude: Option<Exclude>,
    /// How long connections may go on when the agent ends or the workload is released. Default: 30s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_timeout: Option<GepDuration>,
    /// What inbound connections have to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtls: Option<Mtls>,
    /// How traffic within a node travels. Only `mtls` so far, which is the default.
    #[serde(default, skip_serializing)]
    #[schemars(schema_with = "same_node")]
    pub(crate) same_node: Option<Ignored>,
    /// Of every identity. In the policy of the mesh only. Default: cluster.local.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_domain: Option<TrustDomain>,
    /// Other trust domains whose certificates are accepted and whose identities count as those of `trustDomain`. In the
    /// policy of the mesh only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub trust_domain_aliases: Option<Vec<TrustDomain>>,
}

/// `mode` and `portModes` are merged as fields of their own.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mtls {
    /// Default: permissive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<MtlsMode>,
    /// Ports of the workloads that differ. Only with a selector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "port_modes")]
    pub port_modes: Option<BTreeMap<Port, MtlsMode>>,
}

fn port_modes(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let mode = generator.subschema_for::<MtlsMode>();
    schemars::json_schema!({
        "type": ["object", "null"],
        "propertyNames": { "format": "port" },
        "additionalProperties": mode
    })
}

crate::api::one_of_schema! {
    same_node: ["mtls"];
}

/// Merged as one field. A mode alone may be written without `mode`: `outbound: registered-only`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(from = "OutboundForm")]
pub struct Outbound {
    pub mode: OutboundMode,
    pub exceptions: Vec<Cidr>,
}

/// Either way to write it.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum OutboundForm {
    Mode(OutboundMode),
    Full(OutboundFull),
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct OutboundFull {
    mode: OutboundMode,
    /// Ranges that are passed through under `registered-only`, besides link-local addresses and the node's DNS servers.
    #[serde(default)]
    exceptions: Vec<Cidr>,
}

impl From<OutboundForm> for Outbound {
    fn from(form: OutboundForm) -> Self {
        match form {
            OutboundForm::Mode(mode) => Self {
                mode,
                exceptions: Vec::new(),
            },
            OutboundForm::Full(full) => Self {
                mode: full.mode,
                exceptions: full.exceptions,
            },
        }
    }
}

impl JsonSchema for Outbound {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Outbound".into()
    }
    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        OutboundForm::json_schema(generator)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OutboundMode {
    /// They are passed through. The default.
    Allow,
    /// They are refused.
    RegisteredOnly,
}

/// `ports` and `cidrs` are merged as fields of their own: a narrower policy that sets one keeps the other.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Exclude {
    /// Ports that are neither captured when dialled nor when served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "ports")]
    pub ports: Option<Vec<u16>>,
    /// Ranges that are not captured, as destination or as client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cidrs: Option<Vec<Cidr>>,
}

fn ports(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": ["array", "null"],
        "items": { "type": "integer", "minimum": 1, "maximum": 65535 }
    })
}

/// How narrow a policy is. Two of one level for the same workload are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    Mesh,
    Namespace,
    Workload,
}

impl Object<MeshPolicy> {
    pub fn level(&self, root_namespace: &str) -> Level {
        match &self.spec.selector {
            Some(_) => Level::Workload,
            None if &*self.name.namespace == root_namespace => Level::Mesh,
            None => Level::Namespace,
        }
    }
}
