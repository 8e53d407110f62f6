//! What telemetry asks of others: names for addresses, and the kernel's records.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use mesh_common::ConnRecord;

use crate::model::{ResourceName, Workload};

/// Names for addresses and labels for names; the catalog.
pub trait Directory: Send + Sync {
    fn workload(&self, name: &ResourceName) -> Option<Arc<Workload>>;
    fn workload_by_netns(&self, cookie: u64) -> Option<ResourceName>;
    fn workload_by_address(&self, ip: IpAddr) -> Option<ResourceName>;
    /// By virtual address.
    fn service_by_address(&self, ip: IpAddr) -> Option<ResourceName>;
    /// That stands in front of a port of a workload of this node; of several the first.
    fn service_in_front(&self, _: SocketAddr) -> Option<ResourceName> {
        None
    }
    /// Every AuthorizationPolicy; the series of one that is gone are forgotten. `None`: not known.
    fn policies(&self) -> Option<HashSet<ResourceName>> {
        None
    }
    /// Every service; the series of one that is gone are forgotten. `None`: not known.
    fn services(&self) -> Option<HashSet<ResourceName>> {
        None
    }
}

/// Knows nobody.
#[derive(Debug, Default)]
pub struct NoDirectory;

impl Directory for NoDirectory {
    fn workload(&self, _: &ResourceName) -> Option<Arc<Workload>> {
        None
    }
    fn workload_by_netns(&self, _: u64) -> Option<ResourceName> {
        None
    }
    fn workload_by_address(&self, _: IpAddr) -> Option<ResourceName> {
        None
    }
    fn service_by_address(&self, _: IpAddr) -> Option<ResourceName> {
        None
    }
}

/// The BPF map `conns`. Keys are cookies of the applications' sockets.
pub trait ConnStore: Send + Sync {
    /// Every record. Two system calls a record where the kernel has no batch lookup.
    fn read_conns(&self) -> Vec<(u64, ConnRecord)>;
    fn read_conn(&self, app_cookie: u64) -> Option<ConnRecord>;
    /// Replaces an existing record (`BPF_EXIST`): one that the kernel has removed meanwhile does not come back.
    fn update_conn(&self, app_cookie: u64, record: &ConnRecord);
}

/// Holds nothing.
#[derive(Debug, Default)]
pub struct NoStore;

impl ConnStore for NoStore {
    fn read_conns(&self) -> Vec<(u64, ConnRecord)> {
        Vec::new()
    }
    fn read_conn(&self, _: u64) -> Option<ConnRecord> {
        None
    }
    fn update_conn(&self, _: u64, _: &ConnRecord) {}
}
