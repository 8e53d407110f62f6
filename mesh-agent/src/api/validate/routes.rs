//! Warnings over all resources of what routes refer to. In a cluster these are conditions of the route's status.

use std::{collections::HashMap, sync::Arc};

use super::{
    super::{
        error::Problem,
        kinds::{
            BackendObjectReference, GrpcBackendRef, GrpcRoute, GrpcRouteFilter, HttpBackendRef,
            HttpRoute, HttpRouteFilter, ParentReference, Route, Service,
        },
        metadata::Object,
        path::Path,
    },
    Findings, Of, Placed,
};
use crate::model::ResourceName;

struct Known<'s>(HashMap<&'s ResourceName, &'s Service>);

pub(super) fn references(
    http: &Of<'_, HttpRoute>,
    grpc: &Of<'_, GrpcRoute>,
    services: &Of<'_, Service>,
    findings: &mut Findings,
) {
    let services = services.objects.iter();
    let known = Known(
        services
            .map(|service| (&service.name, &service.body))
            .collect(),
    );
    for (route, placed) in http.iter() {
        known.parents(route, placed, findings);
        let rules = route.spec.rules.as_deref().unwrap_or_default();
        for (index, rule) in rules.iter().enumerate() {
            let path = Path::of("spec.rules").index(index);
            let backends = &rule.backend_refs;
            known.rule(
                &route.name,
                placed,
                &path,
                &rule.filters,
                backends,
                findings,
            );
        }
    }
    for (route, placed) in grpc.iter() {
        known.parents(route, placed, findings);
        for (index, rule) in route.spec.rules.iter().enumerate() {
            let path = Path::of("spec.rules").index(index);
            let filters: Vec<_> = rule.filters.iter().map(GrpcRouteFilter::to_http).collect();
            let backends: Vec<_> = rule
                .backend_refs
                .iter()
                .map(GrpcBackendRef::to_http)
                .collect();
            known.rule(&route.name, placed, &path, &filters, &backends, findings);
        }
    }
}

impl Known<'_> {
    fn parents<R: Route>(&self, route: &Object<R>, placed: &Placed<'_>, findings: &mut Findings) {
        for (nth, parent) in route.body.parent_refs().iter().enumerate() {
            let path = Path::of("spec.parentRefs").index(nth);
            let name = full_name(&route.name, parent.namespace.as_deref(), &parent.name);
            if let Some((field, message)) = self.parent(parent, &name) {
                let path = path.key(field);
                findings.of(placed, &Problem::warning(path, message));
            }
        }
    }

    fn parent(
        &self,
        parent: &ParentReference,
        name: &ResourceName,
    ) -> Option<(&'static str, String)> {
        const FOR_NOTHING: &str = "the route is not bound to it";
        if !parent.is_service() {
            // A Service of the wrong group has had its warning.
            let is_slip = parent.kind().eq_ignore_ascii_case("service");
            let message = format!(
                "a {} is no parent in a mesh, where routes are bound to Services (group \"\", kind Service): {FOR_NOTHING}",
                parent.kind()
            );
            return (!is_slip).then_some(("name", message));
        }
        let Some(service) = self.0.get(name) else {
            return Some(("name", format!("there is no Service {name}: {FOR_NOTHING}")));
        };
        let has_port = service.spec.ports.iter().any(|port| {
            parent.port.is_none_or(|wanted| wanted == port.port)
                && (parent.section_name.is_none() || parent.section_name == port.name)
        });
        if service.vips().next().is_none() {
            let message = format!("Service {name} has no virtual address: {FOR_NOTHING}");
            Some(("name", message))
        } else if !has_port {
            let field = match parent.port {
                Some(_) => "port",
                None => "sectionName",
            };
            Some((
                field,
                format!("Service {name} has no such port: {FOR_NOTHING}"),
            ))
        } else {
            None
        }
    }

    fn rule(
        &self,
        route: &ResourceName,
        placed: &Placed<'_>,
        path: &Path,
        filters: &[HttpRouteFilter],
        backends: &[HttpBackendRef],
        findings: &mut Findings,
    ) {
        self.mirrors(route, placed, &path.key("filters"), filters, findings);
        for (nth, backend) in backends.iter().enumerate() {
            let path = path.key("backendRefs").index(nth);
            let effect = match backend.weight {
                0 => "it has no weight, so nothing comes of it",
                _ => "its share gets status 500",
            };
            let reference = backend.reference();
            self.backend(route, placed, &path, &reference, effect, findings);
            self.mirrors(
                route,
                placed,
                &path.key("filters"),
                &backend.filters,
                findings,
            );
        }
    }

    fn mirrors(
        &self,
        route: &ResourceName,
        placed: &Placed<'_>,
        path: &Path,
        filters: &[HttpRouteFilter],
        findings: &mut Findings,
    ) {
        for (nth, filter) in filters.iter().enumerate() {
            if let Some(mirror) = &filter.request_mirror {
                let path = path.index(nth).key("requestMirror").key("backendRef");
                let effect = "nothing is mirrored";
                self.backend(route, placed, &path, &mirror.backend_ref, effect, findings);
            }
        }
    }

    fn backend(
        &self,
        route: &ResourceName,
        placed: &Placed<'_>,
        path: &Path,
        backend: &BackendObjectReference,
        effect: &str,
        findings: &mut Findings,
    ) {
        let name = full_name(route, backend.namespace.as_deref(), &backend.name);
        let (field, message) = if !backend.is_service() {
            let kind = backend.kind();
            ("name", format!("a {kind} is no backend: {effect}"))
        } else {
            match (self.0.get(&name), backend.port) {
                (None, _) => ("name", format!("there is no Service {name}: {effect}")),
                (Some(service), Some(port))
                    if service.spec.ports.iter().all(|known| known.port != port) =>
                {
                    (
                        "port",
                        format!("Service {name} has no port {port}: {effect}"),
                    )
                }
                _ => return,
            }
        };
        findings.of(placed, &Problem::warning(path.key(field), message));
    }
}

fn full_name(route: &ResourceName, namespace: Option<&str>, name: &str) -> ResourceName {
    let namespace = match namespace {
        Some(namespace) => Arc::from(namespace),
        None => Arc::clone(&route.namespace),
    };
    ResourceName::new(namespace, name)
}
