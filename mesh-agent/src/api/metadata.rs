//! What all resources have: metadata, labels, and fields that are accepted and not read.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de::IgnoredAny};

use crate::model::{ResourceName, Timestamp};

/// Label of a namespace or workload that says whether its traffic is captured.
pub const ENABLED_LABEL: &str = "mesh.covet.dev/enabled";
/// Label of an EndpointSlice that names its Service.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// The namespace of a resource that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// The metadata of a Kubernetes resource. What the API server adds (uid, resourceVersion ...) is accepted and not read.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ObjectMeta {
    #[schemars(extend("format" = "dns-1123-subdomain"))]
    pub name: String,
    /// `default` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "dns-1123-label"))]
    pub namespace: Option<String>,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    #[serde(default, skip_serializing)]
    annotations: Ignored,
    #[serde(default, skip_serializing)]
    uid: Ignored,
    #[serde(default, skip_serializing)]
    resource_version: Ignored,
    #[serde(default, skip_serializing)]
    generation: Ignored,
    /// Of two routes the older one goes first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<Timestamp>,
    #[serde(default, skip_serializing)]
    deletion_timestamp: Ignored,
    #[serde(default, skip_serializing)]
    deletion_grace_period_seconds: Ignored,
    #[serde(default, skip_serializing)]
    managed_fields: Ignored,
    #[serde(default, skip_serializing)]
    owner_references: Ignored,
    #[serde(default, skip_serializing)]
    finalizers: Ignored,
    #[serde(default, skip_serializing)]
    self_link: Ignored,
}

/// Labels; keys and values have the syntax of Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Labels(pub BTreeMap<String, String>);

impl Labels {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }
}

impl JsonSchema for Labels {
    fn schema_name() -> Cow<'static, str> {
        "Labels".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "propertyNames": { "format": "label-key" },
            "additionalProperties": { "type": "string", "format": "label-value" }
        })
    }
}

/// A field that may hold anything and is not read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ignored;

impl<'de> Deserialize<'de> for Ignored {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

impl JsonSchema for Ignored {
    fn schema_name() -> Cow<'static, str> {
        "Ignored".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "description": "Accepted and not read." })
    }
}

/// A resource with its name worked out once.
#[derive(Clone, Debug, PartialEq)]
pub struct Object<T> {
    pub name: ResourceName,
    pub body: T,
}

impl<T> std::ops::Deref for Object<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.body
    }
}

impl ObjectMeta {
    pub(crate) fn resource_name(&self) -> ResourceName {
        let namespace = self.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
        ResourceName::new(Arc::from(namespace), Arc::from(self.name.as_str()))
    }
}
