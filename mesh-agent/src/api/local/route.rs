//! Checks of one HTTPRoute or GRPCRoute: what the API server checks by expressions, and what would do nothing.

mod filter;

use std::collections::HashSet;

use super::super::{
    error::Problem,
    kinds::{
        GrpcBackendRef, GrpcMethodMatch, GrpcRoute, GrpcRouteFilter, HeaderMatch, HttpBackendRef,
        HttpFilterType, HttpRoute, HttpRouteRule, MatchType, PathMatchType, QueryParamMatch, Route,
    },
    path::Path,
    yaml,
};
use crate::routing::Expression;

/// Matches of all rules of a route together.
const MAX_MATCHES: usize = 128;

pub(super) fn http(route: &HttpRoute, problems: &mut Vec<Problem>) {
    common(route, problems);
    let rules = route.spec.rules.as_deref().unwrap_or_default();
    if route.spec.rules.is_none() {
        let message = "the route has no rules: every request gets status 500";
        problems.push(Problem::warning(Path::of("spec"), message));
    }
    names(rules.iter().map(|rule| rule.name.as_deref()), problems);
    total(rules.iter().map(|rule| rule.matches.len()), problems);
    for (index, rule) in rules.iter().enumerate() {
        let path = Path::of("spec.rules").index(index);
        http_matches(rule, &path, problems);
        let all = &rule.filters;
        filter::check(all, &path.key("filters"), filter::Of::Rule(rule), problems);
        let redirects = all
            .iter()
            .any(|f| f.filter_type == HttpFilterType::RequestRedirect);
        if redirects && !rule.backend_refs.is_empty() {
            let message = "a rule that redirects forwards nothing";
            let problem = Problem::new(path.key("backendRefs"), message);
            problems.push(problem.wanted("no backendRefs beside RequestRedirect"));
        }
        backends(&rule.backend_refs, redirects, &path, problems);
        for (nth, backend) in rule.backend_refs.iter().enumerate() {
            let path = path.key("backendRefs").index(nth).key("filters");
            filter::check(&backend.filters, &path, filter::Of::Backend(rule), problems);
        }
        timeouts(rule, &path, problems);
    }
}

pub(super) fn grpc(route: &GrpcRoute, problems: &mut Vec<Problem>) {
    common(route, problems);
    let rules = &route.spec.rules;
    if rules.is_empty() {
        let message = "the route has no rules: every request gets status UNIMPLEMENTED";
        problems.push(Problem::warning(Path::of("spec"), message));
    }
    names(rules.iter().map(|rule| rule.name.as_deref()), problems);
    total(rules.iter().map(|rule| rule.matches.len()), problems);
    for (index, rule) in rules.iter().enumerate() {
        let path = Path::of("spec.rules").index(index);
        for (nth, one) in rule.matches.iter().enumerate() {
            let path = path.key("matches").index(nth);
            if let Some(method) = &one.method {
                grpc_method(method, &path.key("method"), problems);
            }
            headers(&one.headers, &path, problems);
        }
        let to_http = |filters: &[GrpcRouteFilter]| -> Vec<_> {
            filters.iter().map(GrpcRouteFilter::to_http).collect()
        };
        let filters = to_http(&rule.filters);
        let none = HttpRouteRule::default();
        filter::check(
            &filters,
            &path.key("filters"),
            filter::Of::Rule(&none),
            problems,
        );
        let refs: Vec<_> = rule
            .backend_refs
            .iter()
            .map(GrpcBackendRef::to_http)
            .collect();
        backends(&refs, false, &path, problems);
        for (nth, backend) in refs.iter().enumerate() {
            let path = path.key("backendRefs").index(nth).key("filters");
            filter::check(
                &backend.filters,
                &path,
                filter::Of::Backend(&none),
                problems,
            );
        }
    }
}

fn common(route: &impl Route, problems: &mut Vec<Problem>) {
    let path = Path::of("spec.parentRefs");
    if route.parent_refs().is_empty() {
        let message = "the route has no parent, so it is for no traffic";
        problems.push(Problem::warning(Path::of("spec"), message).wanted("parentRefs"));
    }
    for (index, parent) in route.parent_refs().iter().enumerate() {
        if route.parent_refs()[..index].contains(parent) {
            let message = format!("parent {} is given twice", parent.name);
            problems.push(Problem::new(path.index(index), message));
        }
        let sorts = |kind: &str| kind.eq_ignore_ascii_case("service");
        if sorts(parent.kind()) && !parent.is_service() {
            let path = path.index(index);
            let message = "a Service is of group \"\" and kind Service: the route is not bound";
            problems.push(Problem::warning(path, message));
        }
    }
    if !route.hostnames().is_empty() {
        let message = "hostnames are not used: in a mesh the dialled address decides, not the host that a request names";
        problems.push(Problem::warning(Path::of("spec.hostnames"), message));
    }
}

fn names<'r>(names: impl Iterator<Item = Option<&'r str>>, problems: &mut Vec<Problem>) {
    let mut seen = HashSet::new();
    for (index, name) in names.enumerate() {
        if let Some(name) = name
            && !seen.insert(name)
        {
            let path = Path::of("spec.rules").index(index).key("name");
            problems.push(Problem::new(path, format!("name {name:?} is given twice")));
        }
    }
}

fn total(counts: impl Iterator<Item = usize>, problems: &mut Vec<Problem>) {
    let sum: usize = counts.sum();
    if sum > MAX_MATCHES {
        let expected = format!("at most {MAX_MATCHES} matches in all rules together");
        problems.push(Problem::expected(Path::of("spec.rules"), expected, sum));
    }
}

fn http_matches(rule: &HttpRouteRule, path: &Path, problems: &mut Vec<Problem>) {
    for (nth, one) in rule.matches.iter().enumerate() {
        let path = path.key("matches").index(nth);
        if let Some(matched) = &one.path {
            let at = path.key("path").key("value");
            match matched.match_type {
                PathMatchType::RegularExpression => expression(&matched.value, &at, problems),
                PathMatchType::Exact | PathMatchType::PathPrefix => {
                    plain_path(&matched.value, &at, problems);
                }
            }
        }
        headers(&one.headers, &path, problems);
        query_params(&one.query_params, &path, problems);
    }
}

/// A path that a request can have when it has been normalized.
fn plain_path(value: &str, path: &Path, problems: &mut Vec<Problem>) {
    let expected = if !value.starts_with('/') {
        "a path that begins with '/'"
    } else if value.contains("//") {
        "a path without '//'"
    } else if value
        .split('/')
        .any(|segment| matches!(segment, "." | ".."))
    {
        "a path without segments '.' and '..'"
    } else if value.to_ascii_lowercase().contains("%2f") {
        "a path without '%2F'"
    } else if !is_path(value) {
        "a path of letters, digits, -/._~!$&'()*+,;=:@ and escapes such as %20"
    } else {
        return;
    };
    problems.push(Problem::expected(
        path.clone(),
        expected,
        yaml::quoted(value),
    ));
}

fn is_path(value: &str) -> bool {
    let mut bytes = value.bytes();
    while let Some(byte) = bytes.next() {
        let good = match byte {
            b'%' => {
                let mut hex = || bytes.next().is_some_and(|b| b.is_ascii_hexdigit());
                hex() && hex()
            }
            byte => byte.is_ascii_alphanumeric() || b"-/._~!$&'()*+,;=:@".contains(&byte),
        };
        if !good {
            return false;
        }
    }
    true
}

fn expression(value: &str, path: &Path, problems: &mut Vec<Problem>) {
    if let Err(error) = Expression::new(value) {
        let got = format_args!("{} ({error})", yaml::quoted(value));
        let expected = "a regular expression in RE2's syntax";
        problems.push(Problem::expected(path.clone(), expected, got));
    }
}

fn headers(headers: &[HeaderMatch], path: &Path, problems: &mut Vec<Problem>) {
    for (nth, header) in headers.iter().enumerate() {
        let path = path.key("headers").index(nth);
        let before = &headers[..nth];
        if before.iter().any(|other| other.name == header.name) {
            let message = format!("header {} is given twice", header.name);
            problems.push(Problem::new(path.key("name"), message));
        } else if before
            .iter()
            .any(|other| other.name.eq_ignore_ascii_case(&header.name))
        {
            let message = format!(
                "{} is the same header as one above in other letters, and ignored",
                header.name
            );
            problems.push(Problem::warning(path.key("name"), message));
        }
        if header.match_type == MatchType::RegularExpression {
            expression(&header.value, &path.key("value"), problems);
        }
    }
}

fn query_params(parameters: &[QueryParamMatch], path: &Path, problems: &mut Vec<Problem>) {
    for (nth, parameter) in parameters.iter().enumerate() {
        let path = path.key("queryParams").index(nth);
        if parameters[..nth]
            .iter()
            .any(|other| other.name == parameter.name)
        {
            let message = format!("parameter {} is given twice", parameter.name);
            problems.push(Problem::new(path.key("name"), message));
        }
        if parameter.match_type == MatchType::RegularExpression {
            expression(&parameter.value, &path.key("value"), problems);
        }
    }
}

fn grpc_method(method: &GrpcMethodMatch, path: &Path, problems: &mut Vec<Problem>) {
    let given = |part: &Option<String>| part.clone().filter(|text| !text.is_empty());
    let parts = [
        ("service", given(&method.service)),
        ("method", given(&method.method)),
    ];
    if parts.iter().all(|(_, part)| part.is_none()) {
        let message = "required field is missing: service or method, or both";
        let problem = Problem::new(path.clone(), message);
        problems.push(problem.wanted("service or method"));
    }
    for (field, part) in parts {
        let Some(part) = part else { continue };
        let path = path.key(field);
        if method.match_type == MatchType::RegularExpression {
            expression(&part, &path, problems);
            continue;
        }
        let (good, expected) = match field {
            "service" => (
                part.strip_prefix('.')
                    .unwrap_or(&part)
                    .split('.')
                    .all(is_identifier),
                "a service such as shop.v1.Cart",
            ),
            _ => (is_identifier(&part), "a method such as AddItem"),
        };
        if !good {
            problems.push(Problem::expected(path, expected, yaml::quoted(&part)));
        }
    }
}

fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn backends(refs: &[HttpBackendRef], redirects: bool, path: &Path, problems: &mut Vec<Problem>) {
    for (nth, backend) in refs.iter().enumerate() {
        if backend.reference().is_service() && backend.port.is_none() {
            let path = path.key("backendRefs").index(nth).key("port");
            let message = "required field is missing: a Service needs its port";
            problems.push(Problem::new(path, message).wanted("1..=65535"));
        }
    }
    if refs.is_empty() && !redirects {
        let message = "the rule has no backendRefs: every request that it matches gets status 500";
        problems.push(Problem::warning(path.clone(), message));
    } else if !refs.is_empty() && refs.iter().all(|backend| backend.weight == 0) {
        let message = "no backend has weight: every request that the rule matches gets status 500";
        problems.push(Problem::warning(path.key("backendRefs"), message));
    }
}

fn timeouts(rule: &HttpRouteRule, path: &Path, problems: &mut Vec<Problem>) {
    if let Some(timeouts) = &rule.timeouts
        && let (Some(request), Some(each)) = (timeouts.request, timeouts.backend_request)
        && !request.0.is_zero()
        && each > request
    {
        let path = path.key("timeouts").key("backendRequest");
        let expected = format!("at most request, {request}");
        problems.push(Problem::expected(path, expected, each));
    }
    let codes = rule.retry.iter().flat_map(|retry| &retry.codes);
    let mut seen = HashSet::new();
    for (nth, code) in codes.enumerate() {
        if !seen.insert(code) {
            let path = path.key("retry").key("codes").index(nth);
            problems.push(Problem::new(path, format!("code {code} is given twice")));
        }
    }
}
