//! From the catalog to what capture shall do.

use std::net::IpAddr;

use crate::{
    capture::WantedPod,
    catalog::Snapshot,
    model::{Enrolment, Workload},
};

/// The workloads of this node that configuration enrols.
pub(super) fn pods(snapshot: &Snapshot) -> Vec<WantedPod> {
    snapshot
        .local_workloads()
        .filter(|workload| workload.enrolment == Enrolment::Enrolled)
        .filter_map(|workload| wanted(snapshot, workload))
        .collect()
}

fn wanted(snapshot: &Snapshot, workload: &Workload) -> Option<WantedPod> {
    Some(WantedPod {
        name: workload.name.clone(),
        netns: workload.netns.clone()?,
        addresses: workload.addresses.clone(),
        policy: workload.policy.clone(),
        protected: workload.policy.any_strict() || snapshot.authorizer(&workload.name).protects(),
    })
}

/// Addresses that only the mesh knows: virtual ones that no workload has.
pub(super) fn mesh_addresses(snapshot: &Snapshot) -> Vec<IpAddr> {
    snapshot
        .vips()
        .filter(|ip| snapshot.workload_by_address(*ip).is_none())
        .collect()
}
