//! Checks that need one resource only and that a schema cannot say.

mod authorization;
mod header;
mod route;
mod traffic;

use std::{collections::HashSet, net::IpAddr};

use super::{
    document::Resource,
    error::Problem,
    format::ClusterIp,
    kinds::{
        AddressType, EndpointSlice, MeshPolicy, Namespace, OutboundMode, Service, TargetPort,
        Workload,
    },
    metadata::{ENABLED_LABEL, Labels},
    path::Path,
    selector::{LabelSelector, Operator},
};
use crate::model::TrustDomain;

pub(crate) fn check(resource: &Resource, problems: &mut Vec<Problem>) {
    match resource {
        Resource::Namespace(object) => namespace(object, problems),
        Resource::Service(object) => service(object, problems),
        Resource::EndpointSlice(object) => endpoint_slice(object, problems),
        Resource::Workload(object) => workload(object, problems),
        Resource::MeshPolicy(object) => mesh_policy(object, problems),
        Resource::TrafficPolicy(object) => traffic::check(object, problems),
        Resource::AuthorizationPolicy(object) => authorization::check(object, problems),
        Resource::HttpRoute(object) => route::http(object, problems),
        Resource::GrpcRoute(object) => route::grpc(object, problems),
    }
}

fn namespace(namespace: &Namespace, problems: &mut Vec<Problem>) {
    if namespace.metadata.namespace.is_some() {
        let message = "a Namespace is not in a namespace: leave this out";
        problems.push(Problem::new(Path::of("metadata.namespace"), message));
    }
    if namespace.metadata.name.contains('.') {
        let problem = Problem::expected(
            Path::of("metadata.name"),
            "a name without '.'",
            format_args!("{:?}", namespace.metadata.name),
        );
        problems.push(problem);
    }
    enabled_label(&namespace.metadata.labels, problems);
}

/// The label that enrols takes two values, and a slip in it would silently leave traffic uncaptured.
fn enabled_label(labels: &Labels, problems: &mut Vec<Problem>) {
    if let Some(value) = labels.get(ENABLED_LABEL)
        && value != "true"
        && value != "false"
    {
        let path = Path::of("metadata.labels").key(ENABLED_LABEL);
        let expected = "\"true\" or \"false\"";
        problems.push(Problem::expected(path, expected, format_args!("{value:?}")));
    }
}

fn service(service: &Service, problems: &mut Vec<Problem>) {
    let spec = &service.spec;
    if service.metadata.name.contains('.') {
        let got = format_args!("{:?}", service.metadata.name);
        problems.push(Problem::expected(
            Path::of("metadata.name"),
            "a name without '.'",
            got,
        ));
    }
    cluster_ips(service, problems);
    if spec.ports.is_empty() && !service.is_headless() {
        let message = "required field is missing: only a headless service may be without ports";
        problems.push(Problem::new(Path::of("spec.ports"), message).wanted("at least one port"));
    }
    let (mut numbers, mut names) = (HashSet::new(), HashSet::new());
    for (index, port) in spec.ports.iter().enumerate() {
        let at = Path::of("spec.ports").index(index);
        if !numbers.insert(port.port) {
            let message = format!("port {} is given twice", port.port);
            problems.push(Problem::new(at.key("port"), message));
        }
        match &port.name {
            Some(name) if !names.insert(name) => {
                let message = format!("name {name:?} is given twice");
                problems.push(Problem::new(at.key("name"), message));
            }
            Some(_) => {}
            None if spec.ports.len() > 1 => {
                let message =
                    "required field is missing: a service with several ports needs a name for each";
                problems.push(Problem::new(at.key("name"), message).wanted("a name"));
            }
            None => {}
        }
        if let (Some(TargetPort::Name(_)), true) = (&port.target_port, spec.selector.is_empty()) {
            let message =
                "a name needs a selector: without one, EndpointSlices say the endpoints' ports";
            problems.push(
                Problem::new(at.key("targetPort"), message).wanted("a number, or spec.selector"),
            );
        }
    }
}

fn cluster_ips(service: &Service, problems: &mut Vec<Problem>) {
    let spec = &service.spec;
    let path = Path::of("spec.clusterIPs");
    if let (Some(single), Some(first)) = (spec.cluster_ip, spec.cluster_ips.first())
        && single != *first
    {
        let expected = format!("{first}, the first of clusterIPs");
        problems.push(Problem::expected(
            Path::of("spec.clusterIP"),
            expected,
            single,
        ));
    }
    if spec.cluster_ips.len() > 1 {
        if spec.cluster_ips.contains(&ClusterIp::Headless) {
            let problem = Problem::new(path.clone(), "None cannot stand beside an address");
            problems.push(problem.wanted("None alone, or addresses"));
        } else {
            let v6 = service.vips().filter(IpAddr::is_ipv6).count();
            if v6 != 1 {
                let message = "expected one address of each IP family, got two of one";
                problems.push(
                    Problem::new(path.index(1), message).wanted("one address of each IP family"),
                );
            }
        }
    }
    if service.is_headless() {
        return;
    }
    if service.vips().next().is_none() {
        let message = "the service has no virtual address, so nothing can dial it: in files nobody assigns clusterIPs";
        problems.push(Problem::warning(path, message));
        return;
    }
    for (index, (address, family)) in service.vips().zip(&spec.ip_families).enumerate() {
        let is = if address.is_ipv6() { "IPv6" } else { "IPv4" };
        if is != family {
            let expected = format!("{is}, the family of {address}");
            let path = Path::of("spec.ipFamilies").index(index);
            problems.push(Problem::expected(path, expected, family));
        }
    }
}

fn endpoint_slice(slice: &EndpointSlice, problems: &mut Vec<Problem>) {
    for (index, endpoint) in slice.endpoints.iter().enumerate() {
        for (position, address) in endpoint.addresses.iter().enumerate() {
            let is = if address.0.is_ipv6() {
                AddressType::IPv6
            } else {
                AddressType::IPv4
            };
            if is != slice.address_type {
                let path = Path::of("endpoints")
                    .index(index)
                    .key("addresses")
                    .index(position);
                let expected = format!("an {:?} address as addressType says", slice.address_type);
                problems.push(Problem::expected(path, expected, address));
            }
        }
    }
    let mut names = HashSet::new();
    for (index, port) in slice.ports.iter().enumerate() {
        if !names.insert(port.name.as_deref().unwrap_or_default()) {
            let path = Path::of("ports").index(index).key("name");
            let message = format!(
                "name {:?} is given twice",
                port.name.as_deref().unwrap_or_default()
            );
            problems.push(Problem::new(path, message));
        }
    }
}

fn workload(workload: &Workload, problems: &mut Vec<Problem>) {
    enabled_label(&workload.metadata.labels, problems);
    let mut seen = HashSet::new();
    for (index, address) in workload.spec.addresses.iter().enumerate() {
        if !seen.insert(address) {
            let path = Path::of("spec.addresses").index(index);
            problems.push(Problem::new(
                path,
                format!("address {address} is given twice"),
            ));
        }
    }
}

fn mesh_policy(policy: &MeshPolicy, problems: &mut Vec<Problem>) {
    let spec = &policy.spec;
    if let Some(selector) = &spec.selector {
        label_selector(selector, &Path::of("spec.selector"), problems);
    }
    if let Some(outbound) = &spec.outbound
        && outbound.mode == OutboundMode::Allow
        && !outbound.exceptions.is_empty()
    {
        let path = Path::of("spec.outbound.exceptions");
        let message = "exceptions mean nothing with mode allow, which passes everything";
        problems.push(Problem::new(path, message).wanted("mode registered-only"));
    }
    let sets_nothing = spec.outbound.is_none()
        && spec.fail_policy.is_none()
        && spec.exclude.is_none()
        && spec.drain_timeout.is_none()
        && spec.same_node.is_none()
        && spec.trust_domain.is_none()
        && spec.trust_domain_aliases.is_none()
        && spec
            .mtls
            .as_ref()
            .is_none_or(|mtls| mtls.mode.is_none() && mtls.port_modes.is_none());
    if let Some(mtls) = &spec.mtls
        && mtls.port_modes.is_some()
        && spec.selector.is_none()
    {
        let path = Path::of("spec.mtls.portModes");
        let message = "ports are those of certain workloads: a policy for all of a scope cannot have modes for them";
        problems.push(Problem::new(path, message).wanted("spec.selector as well"));
    }
    if let Some(aliases) = &spec.trust_domain_aliases {
        let mut seen: HashSet<&TrustDomain> = spec.trust_domain.iter().collect();
        for (index, alias) in aliases.iter().enumerate() {
            if !seen.insert(alias) {
                let path = Path::of("spec.trustDomainAliases").index(index);
                problems.push(Problem::new(path, format!("{alias} is given twice")));
            }
        }
    }
    if sets_nothing {
        let message = "the policy sets nothing";
        problems.push(Problem::warning(Path::of("spec"), message));
    }
}

fn label_selector(selector: &LabelSelector, path: &Path, problems: &mut Vec<Problem>) {
    if selector.is_empty() {
        let message = "an empty selector matches every workload of the namespace, and wins over a policy without one";
        problems.push(Problem::warning(path.clone(), message));
    }
    requirements(selector, path, problems);
}

fn requirements(selector: &LabelSelector, path: &Path, problems: &mut Vec<Problem>) {
    for (index, requirement) in selector.match_expressions.iter().enumerate() {
        let path = path.key("matchExpressions").index(index).key("values");
        let operator = requirement.operator;
        match operator {
            Operator::In | Operator::NotIn if requirement.values.is_empty() => {
                let expected = format!("at least one value for {operator:?}");
                problems.push(Problem::expected(path, expected, "none"));
            }
            Operator::Exists | Operator::DoesNotExist if !requirement.values.is_empty() => {
                let expected = format!("no values for {operator:?}");
                problems.push(Problem::expected(path, expected, requirement.values.len()));
            }
            _ => {}
        }
    }
}
