//! Checks of one AuthorizationPolicy.

use super::super::{
    error::Problem,
    format::{self, Cidr},
    kinds::{Action, AuthorizationPolicy, Condition, ConditionKey, Operation, Source},
    path::Path,
    yaml,
};

pub(super) fn check(policy: &AuthorizationPolicy, problems: &mut Vec<Problem>) {
    let spec = &policy.spec;
    let path = Path::of("spec.selector");
    if let Some(selector) = &spec.selector {
        super::requirements(selector, &path, problems);
        if selector.is_empty() {
            let message = "an empty selector matches every workload, as no selector does";
            problems.push(Problem::warning(path, message));
        }
    }
    if spec.action == Action::Deny && spec.rules.is_empty() {
        let message = "a policy without rules matches nothing, so this DENY denies nobody: a rule {} would match everything";
        problems.push(Problem::warning(Path::of("spec"), message));
    }
    for (index, rule) in spec.rules.iter().enumerate() {
        let path = Path::of("spec.rules").index(index);
        for (index, from) in rule.from.iter().enumerate() {
            let path = path.key("from").index(index).key("source");
            source(&from.source, &path, problems);
        }
        for (index, to) in rule.to.iter().enumerate() {
            let path = path.key("to").index(index).key("operation");
            operation(&to.operation, &path, problems);
        }
        for (index, when) in rule.when.iter().enumerate() {
            condition(when, &path.key("when").index(index), problems);
        }
    }
}

fn source(source: &Source, path: &Path, problems: &mut Vec<Problem>) {
    if source.is_empty() {
        let message = "the source names nothing: leave out from to match every source";
        let problem = Problem::new(path.clone(), message);
        problems.push(problem.wanted("at least one field"));
    }
    for (field, blocks) in [
        ("ipBlocks", &source.ip_blocks),
        ("notIpBlocks", &source.not_ip_blocks),
    ] {
        for (index, block) in blocks.iter().enumerate() {
            if is_mapped(*block) {
                let path = path.key(field).index(index);
                problems.push(Problem::expected(path, MAPPED, block));
            }
        }
    }
}

const MAPPED: &str = "an IPv4 range written as IPv4";

/// Clients' addresses are compared as IPv4 where they are, so a range of mapped ones would match nothing.
fn is_mapped(Cidr(net): Cidr) -> bool {
    matches!(net, ipnet::IpNet::V6(v6) if v6.prefix_len() >= 96 && v6.addr().to_ipv4_mapped().is_some())
}

fn operation(operation: &Operation, path: &Path, problems: &mut Vec<Problem>) {
    if operation.is_empty() {
        let message = "the operation names nothing: leave out to to match every operation";
        let problem = Problem::new(path.clone(), message);
        problems.push(problem.wanted("at least one field"));
    }
}

fn condition(condition: &Condition, path: &Path, problems: &mut Vec<Problem>) {
    let Ok(key) = condition.key.parse::<ConditionKey>() else {
        let expected = format!("one of {}", ConditionKey::known());
        let path = path.key("key");
        let known = ["request.", "connection.", "experimental.", "remote."];
        problems.push(if known.iter().any(|k| condition.key.starts_with(k)) {
            let message = format!("{} is not supported", condition.key);
            Problem::new(path, message).wanted(expected)
        } else {
            Problem::expected(path, expected, yaml::quoted(&condition.key))
        });
        return;
    };
    if let ConditionKey::Header(name) = &key
        && let Some(instead) = instead_of(name)
    {
        let message = format!("policies do not decide by this header: {instead}");
        problems.push(Problem::new(path.key("key"), message).wanted("another key"));
        return;
    }
    if condition.values.is_empty() && condition.not_values.is_empty() {
        let message = "required field is missing: a condition needs values or notValues";
        problems.push(Problem::new(path.key("values"), message).wanted("at least one value"));
    }
    for (field, values) in [
        ("values", &condition.values),
        ("notValues", &condition.not_values),
    ] {
        for (index, value) in values.iter().enumerate() {
            let path = path.key(field).index(index);
            if let Err(expected) = format::check(key.format(), value) {
                problems.push(Problem::expected(path, expected, yaml::quoted(value)));
            } else if value.parse().is_ok_and(is_mapped) {
                problems.push(Problem::expected(path, MAPPED, value));
            }
        }
    }
}

/// What to use instead of a header that says nothing a policy could go by.
fn instead_of(name: &http::HeaderName) -> Option<&'static str> {
    match name.as_str() {
        "host" => Some("HTTP/2 has none; use to.operation.hosts"),
        "x-forwarded-client-cert" => Some(
            "the client could write anything, and the application gets what the agent proved; use from.source.principals",
        ),
        _ => None,
    }
}
