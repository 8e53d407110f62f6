//! `v1` Namespace.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::metadata::{Ignored, ObjectMeta};

/// A namespace. Its label `mesh.covet.dev/enabled: "true"` enrols its workloads.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Namespace {
    #[serde(skip_serializing)]
    #[schemars(schema_with = "version")]
    pub(crate) api_version: Ignored,
    #[serde(skip_serializing)]
    #[schemars(schema_with = "kind")]
    pub(crate) kind: Ignored,
    pub metadata: ObjectMeta,
    #[serde(default, skip_serializing)]
    pub(crate) spec: Ignored,
    #[serde(default, skip_serializing)]
    pub(crate) status: Ignored,
}

crate::api::kind_schema!("v1", "Namespace");
