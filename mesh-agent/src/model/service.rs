//! A name and virtual addresses in front of endpoints.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{ResourceName, TrafficPolicy};

#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Service {
    pub name: ResourceName,
    /// Virtual addresses (`clusterIPs`); empty for a headless service.
    pub vips: Vec<IpAddr>,
    pub ports: Vec<Arc<ServicePort>>,
    /// `sessionAffinity: ClientIP`: one client address keeps one endpoint while it is ready.
    pub client_ip_affinity: bool,
    pub traffic: Arc<TrafficPolicy>,
}

#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct ServicePort {
    pub name: Option<String>,
    pub port: u16,
    pub app_protocol: AppProtocol,
    /// Ready endpoints, in a stable order (address, then port).
    pub endpoints: Vec<Endpoint>,
}

/// Declared protocol; `Undeclared` will be detected once the agent understands HTTP.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub enum AppProtocol {
    #[default]
    Undeclared,
    Tcp,
    Http,
    Http2,
    Grpc,
    Tls,
    /// Another name: carried as TCP.
    Other(String),
}

#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Endpoint {
    pub address: SocketAddr,
    /// The workload that owns the address, if the mesh knows one.
    pub workload: Option<ResourceName>,
    /// 0 takes no traffic.
    pub weight: u32,
    pub zone: Option<String>,
    pub node: Option<String>,
}
