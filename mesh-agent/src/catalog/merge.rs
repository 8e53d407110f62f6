//! Several sources as one. What a source says yields to the sources before it: a name or address that is taken
//! already stays with its first owner, and the later resource is left out with a word about it.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use crate::{
    api::{Config, Object, Service, Workload},
    model::ResourceName,
};

/// All resources in the order of sources, and which were left out.
pub(super) fn merge(sources: &[Config]) -> (Config, Vec<String>) {
    let mut filled = sources.iter().filter(|source| source.resources() > 0);
    match (filled.next(), filled.next()) {
        (None, _) => return (Config::default(), Vec::new()),
        // Within one source validation has made sure of everything.
        (Some(only), None) => return (only.clone(), Vec::new()),
        _ => {}
    }
    let mut merged = Config::default();
    let mut left_out = Vec::new();
    let mut taken = HashMap::new();
    for source in sources {
        let out = &mut left_out;
        add(&mut merged.namespaces, &source.namespaces, "Namespace", out);
        add_addressed(
            &mut merged.services,
            &source.services,
            "Service",
            vips,
            &mut taken,
            out,
        );
        add(
            &mut merged.endpoint_slices,
            &source.endpoint_slices,
            "EndpointSlice",
            out,
        );
        add_addressed(
            &mut merged.workloads,
            &source.workloads,
            "Workload",
            addresses,
            &mut taken,
            out,
        );
        add(
            &mut merged.mesh_policies,
            &source.mesh_policies,
            "MeshPolicy",
            out,
        );
        add(
            &mut merged.traffic_policies,
            &source.traffic_policies,
            "TrafficPolicy",
            out,
        );
        add(
            &mut merged.authorization_policies,
            &source.authorization_policies,
            "AuthorizationPolicy",
            out,
        );
        add(
            &mut merged.http_routes,
            &source.http_routes,
            "HTTPRoute",
            out,
        );
        add(
            &mut merged.grpc_routes,
            &source.grpc_routes,
            "GRPCRoute",
            out,
        );
    }
    (merged, left_out)
}

fn vips(service: &Object<Service>) -> Vec<IpAddr> {
    service.vips().collect()
}

fn addresses(workload: &Object<Workload>) -> Vec<IpAddr> {
    workload
        .spec
        .addresses
        .iter()
        .map(|address| address.0)
        .collect()
}

fn add<T>(
    into: &mut Vec<Arc<Object<T>>>,
    from: &[Arc<Object<T>>],
    kind: &str,
    left_out: &mut Vec<String>,
) {
    let known: HashSet<ResourceName> = into.iter().map(|object| object.name.clone()).collect();
    for object in from {
        if known.contains(&object.name) {
            left_out.push(format!(
                "{kind} {} is defined by an earlier source",
                object.name
            ));
        } else {
            into.push(Arc::clone(object));
        }
    }
}

fn add_addressed<T>(
    into: &mut Vec<Arc<Object<T>>>,
    from: &[Arc<Object<T>>],
    kind: &str,
    addresses: impl Fn(&Object<T>) -> Vec<IpAddr>,
    taken: &mut HashMap<IpAddr, String>,
    left_out: &mut Vec<String>,
) {
    let mut free = Vec::with_capacity(from.len());
    for object in from {
        let own = addresses(object);
        let conflict = own
            .iter()
            .find_map(|address| Some((address, taken.get(address)?)));
        match conflict {
            Some((address, owner)) => {
                let name = &object.name;
                left_out.push(format!("{kind} {name} has address {address} of {owner}"));
            }
            None => {
                let name = format!("{kind} {}", object.name);
                taken.extend(own.into_iter().map(|address| (address, name.clone())));
                free.push(Arc::clone(object));
            }
        }
    }
    add(into, &free, kind, left_out);
}
