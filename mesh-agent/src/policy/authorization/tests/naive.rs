//! The definition of authorization, word by word and without regard for speed. It shares nothing with what it tests
//! but the types of the resource.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use super::{Facts, HttpFacts, Policy, ROOT, Trust};
use crate::api::{Action, Condition, Operation, Rule, Source};

pub(super) struct Naive<'a> {
    pub(super) facts: &'a Facts<'a>,
    pub(super) trust: &'a Trust,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    AllowedByDefault,
    Allowed,
    DeniedByDefault,
    Denied,
}

/// Its namespace is the destination's or the root namespace, and its selector is absent or matches.
pub(super) fn applies(policy: &Policy, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
    let here = &*policy.name.namespace == namespace || &*policy.name.namespace == ROOT;
    let selector = policy.spec.selector.as_ref();
    here && selector.is_none_or(|selector| selector.matches(labels))
}

impl Naive<'_> {
    /// `in_effect` are policies that apply.
    pub(super) fn decide(&self, in_effect: &[&Policy]) -> Outcome {
        let of = |action| in_effect.iter().filter(move |p| p.spec.action == action);
        if of(Action::Deny).any(|p| self.policy(p)) {
            Outcome::Denied
        } else if of(Action::Allow).count() == 0 {
            Outcome::AllowedByDefault
        } else if of(Action::Allow).any(|p| self.policy(p)) {
            Outcome::Allowed
        } else {
            Outcome::DeniedByDefault
        }
    }

    pub(super) fn policy(&self, policy: &Policy) -> bool {
        let namespace = &*policy.name.namespace;
        let denies = policy.spec.action == Action::Deny;
        let mut rules = policy.spec.rules.iter();
        rules.any(|rule| self.rule(rule, namespace, denies))
    }

    fn rule(&self, rule: &Rule, namespace: &str, denies: bool) -> bool {
        (rule.from.is_empty()
            || rule
                .from
                .iter()
                .any(|from| self.source(&from.source, namespace)))
            && (rule.to.is_empty()
                || rule
                    .to
                    .iter()
                    .any(|to| self.operation(&to.operation, denies)))
            && rule
                .when
                .iter()
                .all(|when| self.condition(when, namespace, denies))
    }

    fn source(&self, source: &Source, namespace: &str) -> bool {
        let ranges = |list: &[crate::api::Cidr]| list.iter().map(|c| c.0).collect::<Vec<_>>();
        both(&source.principals, &source.not_principals, |p| {
            self.principal(p)
        }) && both(&source.namespaces, &source.not_namespaces, |n| {
            self.namespace(n)
        }) && both(
            &source.service_accounts,
            &source.not_service_accounts,
            |a| self.account(a, namespace),
        ) && both(
            &ranges(&source.ip_blocks),
            &ranges(&source.not_ip_blocks),
            |net| within(self.facts.source_ip, net),
        )
    }

    fn operation(&self, operation: &Operation, denies: bool) -> bool {
        let o = operation;
        let request = self.facts.http.as_ref();
        let method = request.map(|request| vec![request.method]);
        let hosts = |request: &HttpFacts<'_>, pattern: &str| {
            let pattern = pattern.to_ascii_lowercase();
            let host = request.host;
            like(&pattern, host.full()) || host.bare().is_some_and(|bare| like(&pattern, bare))
        };
        let paths = request.filter(|request| request.path.is_readable());
        let paths = paths.map(|request| request.path.readings().collect());
        both(&o.ports, &o.not_ports, |port| {
            port.0 == self.facts.destination_port
        }) && known(&o.methods, &o.not_methods, method, denies)
            && known(&o.paths, &o.not_paths, paths, denies)
            && match request {
                None => o.hosts.is_empty() && o.not_hosts.is_empty() || denies,
                Some(request) => both(&o.hosts, &o.not_hosts, |host| hosts(request, host)),
            }
    }

    fn condition(&self, when: &Condition, namespace: &str, denies: bool) -> bool {
        if let Some(name) = when.key.strip_prefix("request.headers[") {
            let name = name.strip_suffix(']').unwrap();
            if when.values.is_empty() && when.not_values.is_empty() {
                return true;
            }
            let Some(request) = &self.facts.http else {
                return denies;
            };
            let lines = request.headers.get_all(name).iter();
            let lines: Vec<&str> = lines.map(|value| value.to_str().unwrap()).collect();
            return match lines.is_empty() {
                true => when.values.is_empty(),
                false => known(&when.values, &when.not_values, Some(lines), denies),
            };
        }
        both(&when.values, &when.not_values, |value| match &*when.key {
            "source.principal" => self.principal(value),
            "source.namespace" => self.namespace(value),
            "source.serviceAccount" => self.account(value, namespace),
            "source.ip" => within(self.facts.source_ip, &net(value)),
            "destination.ip" => within(self.facts.destination_ip, &net(value)),
            "destination.port" => *value == self.facts.destination_port.to_string(),
            other => panic!("{other}"),
        })
    }

    /// The pattern as written, and with each of the mesh's trust domains if it begins with one of them and a slash.
    fn principal(&self, pattern: &str) -> bool {
        let Some(source) = self.facts.source else {
            return false;
        };
        let domains = || std::iter::once(&self.trust.domain).chain(&self.trust.aliases);
        let mut patterns = vec![pattern.to_owned()];
        for domain in domains() {
            if let Some(rest) = pattern.strip_prefix(&format!("{domain}/")) {
                patterns.extend(domains().map(|other| format!("{other}/{rest}")));
            }
        }
        patterns
            .iter()
            .any(|pattern| like(pattern, source.principal()))
    }

    fn namespace(&self, pattern: &str) -> bool {
        self.facts
            .source
            .is_some_and(|source| like(pattern, source.namespace()))
    }

    fn account(&self, account: &str, namespace: &str) -> bool {
        self.facts.source.is_some_and(|source| {
            let own = format!("{}/{}", source.namespace(), source.service_account());
            own == account || own == format!("{namespace}/{account}")
        })
    }
}

/// One of the first list unless it is absent, and none of the second.
fn both<T>(positive: &[T], negative: &[T], matches: impl Fn(&T) -> bool) -> bool {
    (positive.is_empty() || positive.iter().any(&matches)) && !negative.iter().any(&matches)
}

/// A value with several readings, or one that is not there. An ALLOW takes the reading that suits it least, a DENY the
/// one that suits it most; what is not there never satisfies an ALLOW, and a DENY always.
fn known(
    positive: &[String],
    negative: &[String],
    readings: Option<Vec<&str>>,
    denies: bool,
) -> bool {
    let Some(readings) = readings else {
        return positive.is_empty() && negative.is_empty() || denies;
    };
    let included = |reading: &&str| {
        positive.is_empty() || positive.iter().any(|pattern| like(pattern, reading))
    };
    let excluded = |reading: &&str| negative.iter().any(|pattern| like(pattern, reading));
    match denies {
        true => readings.iter().any(included) && !readings.iter().all(excluded),
        false => readings.iter().all(included) && !readings.iter().any(excluded),
    }
}

fn like(pattern: &str, text: &str) -> bool {
    match (pattern.strip_suffix('*'), pattern.strip_prefix('*')) {
        (Some(prefix), _) => text.starts_with(prefix),
        (None, Some(suffix)) => text.ends_with(suffix),
        (None, None) => text == pattern,
    }
}

fn net(text: &str) -> IpNet {
    text.parse()
        .unwrap_or_else(|_| IpNet::from(text.parse::<IpAddr>().unwrap()))
}

fn within(ip: IpAddr, net: &IpNet) -> bool {
    let ip = match ip {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(ip, IpAddr::V4),
        IpAddr::V4(_) => ip,
    };
    net.contains(&ip)
}
