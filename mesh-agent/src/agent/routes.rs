//! Routes as `mesh-agent routes` shows them.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    admin::{api, named},
    api::GepDuration,
    catalog::{Condition, ParentStatus, RouteScope, RouteStatus, ServiceRoutes, Snapshot},
    model::ResourceName,
    routing::{Backend, BackendError, Filters, Listed, Mirror, PathRewrite, Rule},
};

/// Of the services with that name, NAME or NAMESPACE/NAME; without one, of all.
pub(super) fn routes(
    snapshot: &Snapshot,
    wanted: Option<&str>,
    namespace: Option<&str>,
) -> Result<api::Routes, String> {
    let is_wanted = |name: &ResourceName| {
        namespace.is_none_or(|ns| *ns == *name.namespace)
            && wanted.is_none_or(|wanted| named(wanted, &name.to_string()))
    };
    let services: BTreeMap<_, _> = snapshot
        .routed_services()
        .filter(|(name, _)| is_wanted(name))
        .collect();
    let bound = services.into_iter();
    let bound = bound.flat_map(|(name, routes)| of_service(snapshot, name, routes));
    let routes = snapshot.route_statuses().filter(|status| {
        let mut parents = status.parents.iter();
        parents.any(|parent| is_wanted(&parent.name))
            || (wanted.is_none() && namespace.is_none_or(|ns| *ns == *status.route.name.namespace))
    });
    let answer = api::Routes {
        bound: bound.collect(),
        routes: routes.map(|status| route(status)).collect(),
    };
    match wanted {
        Some(wanted)
            if answer.routes.is_empty() && !snapshot.services().any(|s| is_wanted(&s.name)) =>
        {
            let within = namespace.map_or_else(String::new, |ns| format!(" in namespace {ns}"));
            Err(format!(
                "there is no service {wanted}{within}; see mesh-agent services"
            ))
        }
        _ => Ok(answer),
    }
}

fn of_service(
    snapshot: &Snapshot,
    name: &ResourceName,
    routes: &ServiceRoutes,
) -> Vec<api::BoundMatch> {
    let tables = routes.iter().flat_map(|(port, clients, table)| {
        let listed = table.iter().enumerate();
        listed.map(move |(nth, listed)| bound(snapshot, listed, (name, port), clients, nth + 1))
    });
    tables.collect()
}

/// One match as it is shown.
pub(super) fn bound(
    snapshot: &Snapshot,
    listed: Listed<'_>,
    (service, port): (&ResourceName, u16),
    clients: Option<&std::sync::Arc<str>>,
    order: usize,
) -> api::BoundMatch {
    let rule = listed.rule;
    let backends = rule.backends.iter();
    api::BoundMatch {
        service: service.to_string(),
        port,
        clients: clients.map(ToString::to_string),
        order,
        rule: rule.label.to_string(),
        rule_name: rule.name.as_deref().map(str::to_owned),
        matches: listed.matched.to_string(),
        backends: backends.map(|b| backend(snapshot, b)).collect(),
        filters: filters(&rule.filters),
        settings: settings(rule),
    }
}

fn backend(snapshot: &Snapshot, backend: &Backend) -> api::RouteBackend {
    let (name, error, endpoints) = match &backend.service {
        Ok((service, port)) => {
            let families = [false, true].map(|ipv6| snapshot.backend(service, *port, ipv6));
            let ready = |upstream: &crate::catalog::Upstream| {
                let with_weight = upstream.endpoints.iter();
                with_weight.filter(|e| e.endpoint.weight > 0).count()
            };
            let ready = families.into_iter().flatten().map(|u| ready(u)).max();
            (format!("{service}:{port}"), None, ready.unwrap_or(0))
        }
        Err(BackendError::InvalidKind) => ("no Service".to_owned(), Some("InvalidKind"), 0),
        Err(BackendError::NotFound) => ("not there".to_owned(), Some("BackendNotFound"), 0),
    };
    api::RouteBackend {
        name,
        weight: backend.weight,
        error: error.map(str::to_owned),
        endpoints,
    }
}

fn filters(filters: &Filters) -> Vec<String> {
    let mut texts = Vec::new();
    if let Some(redirect) = &filters.redirect {
        let mut text = format!("redirect {}", redirect.status);
        for part in [&redirect.scheme, &redirect.hostname].into_iter().flatten() {
            text.push(' ');
            text.push_str(part);
        }
        if let Some(port) = redirect.port {
            text.push_str(&format!(" :{port}"));
        }
        text.push_str(&path(redirect.path.as_ref()));
        texts.push(text);
    }
    if let Some(rewrite) = &filters.rewrite {
        let host = rewrite
            .hostname
            .as_ref()
            .and_then(|host| host.to_str().ok());
        let host = host.map_or_else(String::new, |host| format!(" {host}"));
        texts.push(format!("rewrite{host}{}", path(rewrite.path.as_ref())));
    }
    for (name, modifier) in [
        ("request headers", &filters.request_headers),
        ("response headers", &filters.response_headers),
    ] {
        if let Some(modifier) = modifier {
            let set = modifier.set.iter().map(|(name, _)| format!("={name}"));
            let add = modifier.add.iter().map(|(name, _)| format!("+{name}"));
            let remove = modifier.remove.iter().map(|name| format!("-{name}"));
            let all: Vec<String> = set.chain(add).chain(remove).collect();
            texts.push(format!("{name} {}", all.join(" ")));
        }
    }
    texts.extend(filters.mirrors.iter().map(mirror));
    if let Some(cors) = &filters.cors {
        texts.push(format!("CORS {}", cors.allow_origins.join(" ")));
    }
    texts
}

fn path(rewrite: Option<&PathRewrite>) -> String {
    match rewrite {
        None => String::new(),
        Some(PathRewrite::Full(path)) => format!(" {path}"),
        Some(PathRewrite::Prefix(path)) => format!(" {}/*", path.trim_end_matches('/')),
    }
}

fn mirror(mirror: &Mirror) -> String {
    let to = match &mirror.service {
        Some((service, port)) => format!("{service}:{port}"),
        None => "nowhere".to_owned(),
    };
    let (part, whole) = (mirror.fraction.numerator, mirror.fraction.denominator);
    match (part, whole) {
        (part, whole) if part == whole => format!("mirror {to}"),
        (part, 100) => format!("mirror {to} {part}%"),
        (part, whole) => format!("mirror {to} {part}/{whole}"),
    }
}

/// What the rule says, or else the policy of the route.
fn settings(rule: &Rule) -> Vec<String> {
    let policy = rule.policy.as_deref();
    let timeouts = policy.map(|policy| policy.timeouts).unwrap_or_default();
    let shown = |name: &str, own: Option<Duration>, policy: Option<Duration>| {
        let timeout = own.or(policy)?;
        Some(match timeout.is_zero() {
            true => format!("{name} none"),
            false => format!("{name} {}", GepDuration(timeout)),
        })
    };
    let retries = rule.retry.as_ref().map(|retry| retry.attempts);
    let of_policy = || Some(policy?.retry.as_ref()?.attempts);
    let redistribute = policy.and_then(|policy| policy.redistribute_unavailable);
    [
        shown("request", rule.timeouts.request, timeouts.request),
        shown("attempt", rule.timeouts.backend_request, timeouts.attempt),
        retries
            .or_else(of_policy)
            .map(|attempts| format!("retries {attempts}")),
        redistribute
            .filter(|on| *on)
            .map(|_| "redistributes".to_owned()),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn route(status: &RouteStatus) -> api::Route {
    api::Route {
        kind: status.route.kind.as_str().to_owned(),
        name: status.route.name.to_string(),
        created: status.created.map(|created| created.to_string()),
        parents: status.parents.iter().map(parent).collect(),
        resolved_refs: condition(&status.resolved_refs),
    }
}

fn parent(status: &ParentStatus) -> api::RouteParent {
    let mut text = format!("{} {}", status.parent.kind(), status.name);
    if let Some(port) = status.parent.port {
        text.push_str(&format!(":{port}"));
    }
    if let Some(section) = &status.parent.section_name {
        text.push_str(&format!(":{section}"));
    }
    api::RouteParent {
        parent: text,
        scope: match status.scope {
            RouteScope::Producer => "producer".to_owned(),
            RouteScope::Consumer => "consumer".to_owned(),
        },
        ports: status.ports.clone(),
        accepted: condition(&status.accepted),
    }
}

fn condition(condition: &Condition) -> api::RouteCondition {
    api::RouteCondition {
        status: condition.status,
        reason: condition.reason.as_str().to_owned(),
        message: condition.message.clone(),
    }
}

#[cfg(test)]
mod tests;
