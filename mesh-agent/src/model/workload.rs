//! One thing with an identity and addresses: a pod, or a process group in a network namespace.

use std::{collections::BTreeMap, fmt, net::IpAddr, path::PathBuf, sync::Arc};

use super::{EffectivePolicy, ResourceName, SpiffeId};

/// A workload as the catalog knows it.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Workload {
    pub name: ResourceName,
    pub labels: BTreeMap<String, String>,
    /// The node it runs on; `None` for one outside every node of the mesh.
    pub node: Option<String>,
    pub addresses: Vec<IpAddr>,
    /// Path of its network namespace on its node.
    pub netns: Option<PathBuf>,
    pub service_account: String,
    /// From the mesh's trust domain, its namespace and its service account.
    pub identity: SpiffeId,
    /// Whether its agent takes tunnels for it: `spec.protocol`, HBONE where it is absent and the workload is enrolled,
    /// on whichever node.
    pub protocol: TunnelProtocol,
    /// Share of traffic among the endpoints of a service; 0 takes none.
    pub weight: u32,
    pub zone: Option<String>,
    /// Named ports, for a Service's `targetPort` by name.
    pub ports: BTreeMap<String, u16>,
    pub enrolment: Enrolment,
    /// MeshPolicy merged over mesh, namespace and workload.
    pub policy: Arc<EffectivePolicy>,
}

/// How a workload is reached by those of the mesh.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
pub enum TunnelProtocol {
    /// Plain, as the source dialled.
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
    /// Through a tunnel to its port 15008.
    #[serde(rename = "HBONE")]
    Hbone,
}

/// Whether configuration asks for the workload's traffic to be captured. What capture made of it is another matter:
/// `capture::PodStatus`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub enum Enrolment {
    Enrolled,
    NotEnrolled(NotEnrolled),
}

/// Why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub enum NotEnrolled {
    /// The namespace has no label `mesh.covet.dev/enabled: "true"`, nor the workload.
    NoLabel,
    /// The workload's own label says "false".
    OptedOut,
    /// It runs on another node.
    OtherNode,
    /// It names no network namespace.
    NoNetns,
}

impl NotEnrolled {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoLabel => "namespace not labelled mesh.covet.dev/enabled=true",
            Self::OptedOut => "workload labelled mesh.covet.dev/enabled=false",
            Self::OtherNode => "runs on another node",
            Self::NoNetns => "has no spec.netns",
        }
    }
}

impl fmt::Display for NotEnrolled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
