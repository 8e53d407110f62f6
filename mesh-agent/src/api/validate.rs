//! Checks that need all resources of a source: names, addresses and namespaces that collide, references, scopes.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::{Path as FilePath, PathBuf},
    sync::Arc,
};

mod routes;
mod security;
mod traffic;

use super::{
    Config,
    document::{Document, Resource},
    error::{ConfigError, Problem, Severity, Warning},
    kinds::{
        AuthorizationPolicy, GrpcRoute, HttpRoute, Level, MeshPolicy, Namespace, Service,
        TargetPort, TrafficPolicy, Workload,
    },
    metadata::{ENABLED_LABEL, Object, SERVICE_NAME_LABEL},
    path::Path,
    schema::Kind,
    selector::LabelIndex,
};
use crate::model::ResourceName;

/// What validation needs to know of the world outside the files.
#[derive(Clone, Debug)]
pub struct Environment {
    /// This node's name, if the agent has one yet.
    pub node: Option<String>,
    /// The namespace whose policies without selector apply to the whole mesh.
    pub root_namespace: String,
    /// Device and inode of network namespaces that are the host's own.
    pub host_netns: Vec<(u64, u64)>,
    /// Whether `netns` paths are looked up on this machine.
    pub check_netns: bool,
}

impl Default for Environment {
    /// Looks at nothing on this machine.
    fn default() -> Self {
        Self {
            node: None,
            root_namespace: "mesh-system".to_owned(),
            host_netns: Vec::new(),
            check_netns: false,
        }
    }
}

impl Environment {
    /// Takes the namespaces of process 1 and of this process for the host's, as far as they can be seen.
    pub fn of_this_machine(node: Option<&str>) -> Self {
        let host_netns = ["/proc/1/ns/net", "/proc/self/ns/net"]
            .iter()
            .filter_map(|path| std::fs::metadata(path).ok())
            .map(|metadata| (metadata.dev(), metadata.ino()))
            .collect();
        Self {
            node: node.map(str::to_owned),
            host_netns,
            check_netns: true,
            ..Self::default()
        }
    }

    /// Whether a workload's `netns` is a path on this machine.
    fn is_local(&self, workload: &Workload) -> bool {
        match (&workload.spec.node, &self.node) {
            (None, _) => true,
            (Some(on), Some(own)) => on == own,
            (Some(_), None) => false,
        }
    }
}

/// A resource and the place it was read from.
#[derive(Clone, Copy)]
pub(crate) struct Placed<'a> {
    pub(crate) file: &'a FilePath,
    /// Lines of the file before the document.
    pub(crate) line: u32,
    pub(crate) document: &'a Document,
    /// Of the resource in its document.
    pub(crate) prefix: &'a Path,
    pub(crate) resource: &'a Resource,
}

impl Placed<'_> {
    /// Whether both are the same resource. Documents of the same text may share what was read from them, so the place
    /// tells as well.
    fn is(&self, other: &Placed<'_>) -> bool {
        std::ptr::eq(self.resource, other.resource)
            && self.line == other.line
            && self.file == other.file
    }

    /// `Service shop/web (shop.yaml:12)`, for a message about another resource.
    fn describe(&self, path: &str) -> String {
        let at = self.document.locate(&self.prefix.join(&Path::of(path)));
        let file = self.file.file_name().unwrap_or(self.file.as_os_str());
        format!(
            "{} {} ({}:{})",
            self.resource.kind().name(),
            self.resource.name(),
            file.to_string_lossy(),
            at.line + self.line,
        )
    }
}

/// Errors and warnings with their places.
#[derive(Default)]
pub(crate) struct Findings {
    pub(crate) errors: Vec<ConfigError>,
    pub(crate) warnings: Vec<Warning>,
}

impl Findings {
    /// A problem of a document; `prefix` is what its path is relative to.
    pub(crate) fn add(
        &mut self,
        file: &FilePath,
        line: u32,
        document: &Document,
        prefix: &Path,
        problem: &Problem,
    ) {
        let path = prefix.join(&problem.path);
        let at = problem.at.unwrap_or_else(|| document.locate(&path));
        let (file, line, column) = (file.to_owned(), at.line + line, at.column);
        let (field, message) = (path.to_string(), problem.message.clone());
        match problem.severity {
            Severity::Error => self.errors.push(ConfigError {
                file,
                line,
                column,
                field,
                message,
                expected: problem.expected.clone(),
            }),
            Severity::Warning => self.warnings.push(Warning {
                file,
                line,
                column,
                field,
                message,
            }),
        }
    }

    fn of(&mut self, placed: &Placed<'_>, problem: &Problem) {
        self.add(
            placed.file,
            placed.line,
            placed.document,
            placed.prefix,
            problem,
        );
    }

    pub(crate) fn sort(&mut self) {
        self.errors.sort_by(|a, b| {
            (&a.file, a.line, a.column, &a.field).cmp(&(&b.file, b.line, b.column, &b.field))
        });
        self.errors.dedup();
        self.warnings.sort_by(|a, b| {
            (&a.file, a.line, a.column, &a.field).cmp(&(&b.file, b.line, b.column, &b.field))
        });
    }
}

/// Resources of one kind with their places, as slices of the same order.
struct Of<'a, T> {
    objects: Vec<&'a Arc<Object<T>>>,
    placed: Vec<Placed<'a>>,
}

impl<'a, T> Of<'a, T> {
    fn pick(all: &[Placed<'a>], pick: impl Fn(&'a Resource) -> Option<&'a Arc<Object<T>>>) -> Self {
        let (objects, placed) = all
            .iter()
            .filter_map(|placed| pick(placed.resource).map(|object| (object, *placed)))
            .unzip();
        Self { objects, placed }
    }

    fn iter(&self) -> impl Iterator<Item = (&'a Object<T>, &Placed<'a>)> {
        self.objects
            .iter()
            .map(|object| &***object)
            .zip(&self.placed)
    }

    fn arcs(&self) -> Vec<Arc<Object<T>>> {
        self.objects
            .iter()
            .map(|object| Arc::clone(object))
            .collect()
    }
}

macro_rules! pick {
    ($all:expr, $kind:ident) => {
        Of::pick($all, |resource| match resource {
            Resource::$kind(object) => Some(object),
            _ => None,
        })
    };
}

/// Checks all resources together and sorts them by kind.
pub(crate) fn validate(
    all: &[Placed<'_>],
    environment: &Environment,
    findings: &mut Findings,
) -> Config {
    unique_names(all, findings);
    let namespaces = pick!(all, Namespace);
    let services: Of<'_, Service> = pick!(all, Service);
    let slices = pick!(all, EndpointSlice);
    let workloads: Of<'_, Workload> = pick!(all, Workload);
    let mesh_policies: Of<'_, MeshPolicy> = pick!(all, MeshPolicy);
    let traffic_policies: Of<'_, TrafficPolicy> = pick!(all, TrafficPolicy);
    let authorization_policies: Of<'_, AuthorizationPolicy> = pick!(all, AuthorizationPolicy);

    let http_routes: Of<'_, HttpRoute> = pick!(all, HttpRoute);
    let grpc_routes: Of<'_, GrpcRoute> = pick!(all, GrpcRoute);

    let vips = unique_addresses(&services, &workloads, findings);
    unique_netns(&workloads, environment, findings);

    let index = LabelIndex::new(
        workloads
            .objects
            .iter()
            .map(|workload| (&*workload.name.namespace, &workload.metadata.labels.0)),
    );
    let service_names: HashSet<&ResourceName> = services.objects.iter().map(|s| &s.name).collect();
    let mut with_slices = HashSet::new();
    for (slice, placed) in slices.iter() {
        let path = Path::of("metadata.labels").key(SERVICE_NAME_LABEL);
        match slice.metadata.labels.get(SERVICE_NAME_LABEL) {
            None => {
                let message = "the slice names no Service and does nothing";
                findings.of(placed, &Problem::warning(path, message));
            }
            Some(service) => {
                let name = ResourceName::new(slice.name.namespace.clone(), service);
                if !service_names.contains(&name) {
                    let message = format!("there is no Service {name}: the slice does nothing");
                    findings.of(placed, &Problem::warning(path, message));
                }
                with_slices.insert(name);
            }
        }
        for (position, endpoint) in slice.endpoints.iter().enumerate() {
            for (nth, address) in endpoint.addresses.iter().enumerate() {
                if let Some(service) = vips.get(&address.0) {
                    let path = Path::of("endpoints")
                        .index(position)
                        .key("addresses")
                        .index(nth);
                    let message = format!(
                        "{address} is the virtual address of {}",
                        service.describe("spec.clusterIPs")
                    );
                    findings.of(
                        placed,
                        &Problem::new(path, message).wanted("the address of a workload"),
                    );
                }
            }
        }
    }
    for (service, placed) in services.iter() {
        service_selector(service, placed, &workloads, &index, &with_slices, findings);
    }
    traffic::targets(
        &traffic_policies,
        &traffic::Targets {
            services: &service_names,
            http_routes: &http_routes.objects.iter().map(|r| &r.name).collect(),
            grpc_routes: &grpc_routes.objects.iter().map(|r| &r.name).collect(),
        },
        findings,
    );
    routes::references(&http_routes, &grpc_routes, &services, findings);
    policy_scopes(&mesh_policies, &workloads, environment, findings);
    let is_enrolled = enrolled(&namespaces.objects);
    fail_policies(
        &mesh_policies,
        &workloads,
        &is_enrolled,
        environment,
        findings,
    );
    security::trust_domain_level(&mesh_policies, environment, findings);
    security::effects(
        &mesh_policies,
        &authorization_policies,
        &workloads,
        &index,
        &is_enrolled,
        environment,
        findings,
    );
    security::principals(
        &authorization_policies,
        &mesh_policies,
        environment,
        findings,
    );

    Config {
        namespaces: namespaces.arcs(),
        services: services.arcs(),
        endpoint_slices: slices.arcs(),
        workloads: workloads.arcs(),
        mesh_policies: mesh_policies.arcs(),
        traffic_policies: traffic_policies.arcs(),
        authorization_policies: authorization_policies.arcs(),
        http_routes: http_routes.arcs(),
        grpc_routes: grpc_routes.arcs(),
    }
}

fn unique_names(all: &[Placed<'_>], findings: &mut Findings) {
    let mut seen: HashMap<(u8, &ResourceName), usize> = HashMap::with_capacity(all.len());
    for (position, placed) in all.iter().enumerate() {
        let kind = placed.resource.kind();
        if let Some(first) = seen.insert((kind as u8, placed.resource.name()), position) {
            let message = format!(
                "{} is defined twice, first in {}",
                match kind {
                    Kind::Namespace => format!("Namespace {}", placed.resource.name().name),
                    _ => format!("{} {}", kind.name(), placed.resource.name()),
                },
                all[first].describe("metadata.name"),
            );
            let problem = Problem::new(Path::of("metadata.name"), message);
            findings.of(placed, &problem.wanted("a name of its own"));
        }
    }
}

/// No two workloads, services, or a workload and a service may have the same address. Returns the virtual addresses.
fn unique_addresses<'a>(
    services: &Of<'a, Service>,
    workloads: &Of<'a, Workload>,
    findings: &mut Findings,
) -> HashMap<IpAddr, Placed<'a>> {
    let mut vips: HashMap<IpAddr, Placed<'a>> = HashMap::with_capacity(services.objects.len());
    for (service, placed) in services.iter() {
        for (nth, vip) in service.vips().enumerate() {
            if let Some(other) = vips.insert(vip, *placed) {
                let message = format!(
                    "{vip} is already the address of {}",
                    other.describe("spec.clusterIPs")
                );
                let path = match service.spec.cluster_ips.is_empty() {
                    true => Path::of("spec.clusterIP"),
                    false => Path::of("spec.clusterIPs").index(nth),
                };
                findings.of(
                    placed,
                    &Problem::new(path, message).wanted("an address of its own"),
                );
            }
        }
    }
    let mut owners: HashMap<IpAddr, Placed<'a>> = HashMap::with_capacity(workloads.objects.len());
    for (workload, placed) in workloads.iter() {
        for (nth, address) in workload.spec.addresses.iter().enumerate() {
            let other = match owners.insert(address.0, *placed) {
                // Given twice in one resource: said by the checks of the resource.
                Some(other) if other.is(placed) => None,
                Some(other) => Some(other.describe("spec.addresses")),
                None => vips
                    .get(&address.0)
                    .map(|vip| vip.describe("spec.clusterIPs")),
            };
            if let Some(other) = other {
                let message = format!("{address} is already the address of {other}");
                let path = Path::of("spec.addresses").index(nth);
                findings.of(
                    placed,
                    &Problem::new(path, message).wanted("an address of its own"),
                );
            }
        }
    }
    vips
}

/// A network namespace belongs to one workload, and never is the host's.
fn unique_netns(workloads: &Of<'_, Workload>, environment: &Environment, findings: &mut Findings) {
    let mut by_path: HashMap<(&FilePath, Option<&str>), Placed<'_>> = HashMap::new();
    let mut by_inode: HashMap<(u64, u64), (PathBuf, Placed<'_>)> = HashMap::new();
    for (workload, placed) in workloads.iter() {
        let Some(netns) = workload.spec.netns.as_deref() else {
            continue;
        };
        let path = Path::of("spec.netns");
        let own = environment.node.as_deref();
        let node = workload.spec.node.as_deref().or(own);
        if let Some(other) = by_path.insert((netns, node), *placed) {
            let message = format!(
                "{} already belongs to {}",
                netns.display(),
                other.describe("spec.netns")
            );
            findings.of(
                placed,
                &Problem::new(path, message).wanted("a network namespace of its own"),
            );
            continue;
        }
        if !environment.check_netns || !environment.is_local(workload) {
            continue;
        }
        match std::fs::metadata(netns) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let message = format!(
                    "{} does not exist yet: the workload is enrolled when it does",
                    netns.display()
                );
                findings.of(placed, &Problem::warning(path, message));
            }
            Err(error) => {
                let message = format!("{} cannot be read: {error}", netns.display());
                findings.of(placed, &Problem::warning(path, message));
            }
            Ok(metadata) => {
                let inode = (metadata.dev(), metadata.ino());
                if environment.host_netns.contains(&inode) {
                    let message = format!(
                        "{} is the network namespace of the host itself",
                        netns.display()
                    );
                    findings.of(
                        placed,
                        &Problem::new(path, message).wanted("the network namespace of a workload"),
                    );
                } else if let Some((same, other)) =
                    by_inode.insert(inode, (netns.to_owned(), *placed))
                {
                    let message = format!(
                        "{} is the same network namespace as {}, which belongs to {}",
                        netns.display(),
                        same.display(),
                        other.describe("spec.netns"),
                    );
                    findings.of(
                        placed,
                        &Problem::new(path, message).wanted("a network namespace of its own"),
                    );
                }
            }
        }
    }
}

fn service_selector(
    service: &Object<Service>,
    placed: &Placed<'_>,
    workloads: &Of<'_, Workload>,
    index: &LabelIndex<'_>,
    with_slices: &HashSet<ResourceName>,
    findings: &mut Findings,
) {
    let selector = &service.spec.selector;
    if selector.is_empty() {
        if !with_slices.contains(&service.name) {
            let message =
                "the service has neither a selector nor an EndpointSlice, so no endpoints";
            findings.of(placed, &Problem::warning(Path::of("spec"), message));
        }
        return;
    }
    let path = Path::of("spec.selector");
    let mut selected = index
        .matching(&service.name.namespace, &selector.0)
        .peekable();
    if selected.peek().is_none() {
        if !with_slices.contains(&service.name) {
            let message = format!(
                "no workload of namespace {} has these labels",
                service.name.namespace
            );
            findings.of(placed, &Problem::warning(path, message));
        }
        return;
    }
    if with_slices.contains(&service.name) {
        let message =
            "the service has both a selector and an EndpointSlice: the endpoints of both serve it";
        findings.of(placed, &Problem::warning(path, message));
    }
    for (nth, port) in service.spec.ports.iter().enumerate() {
        let Some(TargetPort::Name(name)) = &port.target_port else {
            continue;
        };
        let mut all = index.matching(&service.name.namespace, &selector.0);
        if !all.any(|found| workloads.objects[found].spec.ports.contains_key(name)) {
            let known: BTreeMap<&str, ()> = index
                .matching(&service.name.namespace, &selector.0)
                .flat_map(|found| workloads.objects[found].spec.ports.keys())
                .map(|name| (name.as_str(), ()))
                .collect();
            let expected = match known.is_empty() {
                true => "a number: the selected workloads name no ports".to_owned(),
                false => format!(
                    "a number or one of {}",
                    known.into_keys().collect::<Vec<_>>().join(", ")
                ),
            };
            let path = Path::of("spec.ports").index(nth).key("targetPort");
            let message =
                format!("no selected workload has a port named {name:?}, expected {expected}");
            findings.of(placed, &Problem::new(path, message).wanted(expected));
        }
    }
}

/// Two policies of one level must not apply to the same workload.
fn policy_scopes(
    policies: &Of<'_, MeshPolicy>,
    workloads: &Of<'_, Workload>,
    environment: &Environment,
    findings: &mut Findings,
) {
    let mut scopes: HashMap<(Level, &str), Placed<'_>> = HashMap::new();
    let mut selected: HashMap<usize, Placed<'_>> = HashMap::new();
    for (policy, placed) in policies.iter() {
        let level = policy.level(&environment.root_namespace);
        let namespace = &*policy.name.namespace;
        let conflict = match (level, &policy.spec.selector) {
            (Level::Workload, Some(selector)) => {
                let mut conflict = None;
                for (position, workload) in workloads.objects.iter().enumerate() {
                    if &*workload.name.namespace == namespace
                        && selector.matches(&workload.metadata.labels.0)
                        && let Some(other) = selected.insert(position, *placed)
                        && conflict.is_none()
                    {
                        conflict = Some((other, format!("Workload {}", workload.name)));
                    }
                }
                conflict.map(|(other, what)| (Path::of("spec.selector"), other, what))
            }
            _ => scopes.insert((level, namespace), *placed).map(|other| {
                let what = match level {
                    Level::Mesh => "the mesh".to_owned(),
                    _ => format!("namespace {namespace}"),
                };
                (Path::of("metadata.name"), other, what)
            }),
        };
        if let Some((path, other, what)) = conflict {
            let message = format!(
                "{what} already has {} at the same level",
                other.describe("metadata.name"),
            );
            findings.of(
                placed,
                &Problem::new(path, message).wanted("one MeshPolicy at each level"),
            );
        }
    }
}

/// Whether a workload is enrolled by label, on whichever node.
fn enrolled(namespaces: &[&Arc<Object<Namespace>>]) -> impl Fn(&Object<Workload>) -> bool {
    let enabled: HashSet<Arc<str>> = namespaces
        .iter()
        .filter(|namespace| namespace.metadata.labels.get(ENABLED_LABEL) == Some("true"))
        .map(|namespace| Arc::clone(&namespace.name.name))
        .collect();
    move |workload| match workload.metadata.labels.get(ENABLED_LABEL) {
        Some(own) => own == "true",
        None => enabled.contains(&workload.name.namespace),
    }
}

/// A failPolicy that applies to nobody is probably in the wrong namespace.
fn fail_policies(
    policies: &Of<'_, MeshPolicy>,
    workloads: &Of<'_, Workload>,
    is_enrolled: impl Fn(&Object<Workload>) -> bool,
    environment: &Environment,
    findings: &mut Findings,
) {
    for (policy, placed) in policies.iter() {
        let applies = |workload: &Object<Workload>| match policy.level(&environment.root_namespace)
        {
            Level::Mesh => true,
            Level::Namespace => workload.name.namespace == policy.name.namespace,
            Level::Workload => {
                workload.name.namespace == policy.name.namespace
                    && policy
                        .spec
                        .selector
                        .as_ref()
                        .is_some_and(|selector| selector.matches(&workload.metadata.labels.0))
            }
        };
        let applies_to_any = workloads
            .objects
            .iter()
            .any(|w| applies(w) && is_enrolled(w));
        let matches_any = || workloads.objects.iter().any(|w| applies(w));
        if policy.spec.selector.is_some() && !matches_any() {
            let message = format!(
                "the selector matches no workload of namespace {}",
                policy.name.namespace
            );
            findings.of(
                placed,
                &Problem::warning(Path::of("spec.selector"), message),
            );
        } else if policy.spec.fail_policy.is_some() && !applies_to_any {
            let message = "there is no enrolled workload that this could apply to";
            findings.of(
                placed,
                &Problem::warning(Path::of("spec.failPolicy"), message),
            );
        }
    }
}
