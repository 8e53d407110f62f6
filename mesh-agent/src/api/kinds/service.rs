//! `v1` Service.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::{
    format::ClusterIp,
    metadata::{Ignored, Labels, ObjectMeta},
};

/// A name and virtual addresses in front of endpoints.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Service {
    #[serde(skip_serializing)]
    #[schemars(schema_with = "version")]
    pub(crate) api_version: Ignored,
    #[serde(skip_serializing)]
    #[schemars(schema_with = "kind")]
    pub(crate) kind: Ignored,
    pub metadata: ObjectMeta,
    pub spec: ServiceSpec,
    #[serde(default, skip_serializing)]
    pub(crate) status: Ignored,
}

crate::api::kind_schema!("v1", "Service");

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceSpec {
    /// Only `ClusterIP`.
    #[serde(default, rename = "type", skip_serializing)]
    #[schemars(schema_with = "cluster_ip")]
    service_type: Ignored,
    /// The first of `clusterIPs`.
    #[serde(default, rename = "clusterIP", skip_serializing_if = "Option::is_none")]
    pub cluster_ip: Option<ClusterIp>,
    /// Virtual addresses, at most one for each IP family; `None` for a headless service. In files nobody assigns them.
    #[serde(default, rename = "clusterIPs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    pub cluster_ips: Vec<ClusterIp>,
    /// Endpoints are the workloads (in a cluster: pods) of the namespace with all of these labels. Without it, they come
    /// from EndpointSlices.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub selector: Labels,
    #[serde(default)]
    pub ports: Vec<ServicePort>,
    #[serde(default)]
    pub session_affinity: SessionAffinity,
    /// Accepted and not read: affinity is a hash of the client's address and does not expire.
    #[serde(default, skip_serializing)]
    session_affinity_config: Ignored,
    /// If given, has to agree with `clusterIPs`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "ip_families")]
    pub ip_families: Vec<String>,
    #[serde(default, skip_serializing)]
    #[schemars(schema_with = "ip_family_policy")]
    ip_family_policy: Ignored,
    /// Only `Cluster`.
    #[serde(default, skip_serializing)]
    #[schemars(schema_with = "cluster")]
    internal_traffic_policy: Ignored,
    /// Whether endpoints near the client go first. A TrafficPolicy with `loadBalancer.locality` wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic_distribution: Option<TrafficDistribution>,
    /// Accepted and not read: a workload has no readiness, and a slice says it for each endpoint.
    #[serde(default, skip_serializing)]
    publish_not_ready_addresses: Ignored,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServicePort {
    /// Needed when the service has more than one port. A prefix `http-`, `grpc-`, `tcp-` ... declares the protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "dns-1123-label"))]
    pub name: Option<String>,
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// The endpoints' port, by number or by the name it has in `Workload.spec.ports`; `port` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<TargetPort>,
    /// Only `TCP`.
    #[serde(default, skip_serializing)]
    #[schemars(schema_with = "tcp")]
    protocol: Ignored,
    /// `http`, `kubernetes.io/h2c`, `grpc`, `tls`, `tcp`; any other is carried as TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "app-protocol"))]
    pub app_protocol: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum TargetPort {
    Number(u16),
    Name(String),
}

impl JsonSchema for TargetPort {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "TargetPort".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "anyOf": [
                { "type": "integer", "minimum": 1, "maximum": 65535 },
                { "type": "string", "format": "port-name" }
            ]
        })
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum SessionAffinity {
    #[default]
    None,
    /// One client address keeps one endpoint while it is ready.
    ClientIP,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum TrafficDistribution {
    /// An older name of `PreferSameZone`.
    PreferClose,
    /// Endpoints of the client's zone, then others.
    PreferSameZone,
    /// Endpoints of the client's node, then those of its zone, then others.
    PreferSameNode,
}

crate::api::one_of_schema! {
    cluster_ip: ["ClusterIP"];
    tcp: ["TCP"];
    cluster: ["Cluster"];
    ip_family_policy: ["SingleStack", "PreferDualStack", "RequireDualStack"];
}

fn ip_families(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "maxItems": 2,
        "items": { "type": "string", "enum": ["IPv4", "IPv6"] }
    })
}

impl Service {
    /// Virtual addresses, from either field.
    pub fn vips(&self) -> impl Iterator<Item = std::net::IpAddr> + '_ {
        let single = if self.spec.cluster_ips.is_empty() {
            self.spec.cluster_ip.as_slice()
        } else {
            &[]
        };
        single
            .iter()
            .chain(&self.spec.cluster_ips)
            .filter_map(|ip| match ip {
                ClusterIp::Address(address) => Some(address.0),
                ClusterIp::Headless => None,
            })
    }

    pub fn is_headless(&self) -> bool {
        self.spec.cluster_ip == Some(ClusterIp::Headless)
            || self.spec.cluster_ips.first() == Some(&ClusterIp::Headless)
    }
}
