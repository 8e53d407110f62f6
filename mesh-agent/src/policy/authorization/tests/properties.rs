//! Whatever the policies, the compiled ones say what the naive evaluator says, and the explanation agrees.

use std::{collections::BTreeSet, net::IpAddr};

use proptest::{
    prelude::*,
    sample::{Index, select},
};

use super::{
    Facts, Policy, ROOT, Request, Verdict, authorizer, labels,
    naive::{Naive, Outcome, applies},
    trust, with_spec,
};
use crate::{
    api::{
        Action, AuthorizationPolicySpec, Cidr, Condition, From, LabelSelector, Labels, Operation,
        Port, Rule, Source, To,
    },
    model::SpiffeId,
    policy::WouldBe,
};

const PRINCIPALS: [&str; 7] = [
    "cluster.local/ns/a/sa/x",
    "cluster.local/ns/a/sa/y",
    "cluster.local/ns/ab/sa/x",
    "cluster.local/ns/b/sa/yx",
    "old.example/ns/a/sa/x",
    "old.example/ns/b/sa/y",
    "other.example/ns/a/sa/x",
];

/// One of a few, so that much collides.
fn principal() -> impl Strategy<Value = String> {
    select(&PRINCIPALS[..]).prop_map(str::to_owned)
}

/// A text, or a part of it with a star at its end.
fn pattern(texts: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    (texts, any::<Index>(), 0..6).prop_map(|(text, cut, form)| match form {
        0 => format!("{}*", &text[..cut.index(text.len())]),
        1 => format!("*{}", &text[cut.index(text.len())..]),
        2 => "*".to_owned(),
        _ => text,
    })
}

fn namespace() -> impl Strategy<Value = String> {
    select(vec!["a", "ab", "b"]).prop_map(str::to_owned)
}

fn account() -> impl Strategy<Value = String> {
    select(vec!["x", "y", "a/x", "b/y", "ab/x"]).prop_map(str::to_owned)
}

fn ip() -> impl Strategy<Value = IpAddr> {
    let v4 = (0u8..3, 0u8..4).prop_map(|(net, host)| format!("10.{net}.0.{host}"));
    let v6 = (0u8..3).prop_map(|host| format!("fd00::{host}"));
    let mapped = (0u8..3).prop_map(|host| format!("::ffff:10.0.0.{host}"));
    prop_oneof![4 => v4, 2 => v6, 1 => mapped].prop_map(|text| text.parse().unwrap())
}

fn range() -> impl Strategy<Value = Cidr> {
    (ip(), any::<Index>()).prop_map(|(ip, length)| {
        let ip = ip.to_canonical();
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        format!("{ip}/{}", length.index(bits + 1)).parse().unwrap()
    })
}

fn port() -> impl Strategy<Value = Port> {
    (1u16..4).prop_map(Port)
}

/// Mostly absent, as in real policies.
fn some<T: std::fmt::Debug>(strategy: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
    let list = prop::collection::vec(strategy, 1..3);
    prop::option::weighted(0.3, list).prop_map(Option::unwrap_or_default)
}

fn source() -> impl Strategy<Value = From> {
    let identity = (
        some(pattern(principal())),
        some(pattern(principal())),
        some(pattern(namespace())),
        some(pattern(namespace())),
        some(account()),
        some(account()),
    );
    (identity, some(range()), some(range())).prop_map(|(identity, ip_blocks, not_ip_blocks)| From {
        source: Source {
            principals: identity.0,
            not_principals: identity.1,
            namespaces: identity.2,
            not_namespaces: identity.3,
            service_accounts: identity.4,
            not_service_accounts: identity.5,
            ip_blocks,
            not_ip_blocks,
        },
    })
}

fn method() -> impl Strategy<Value = String> {
    select(vec!["GET", "POST", "PUT"]).prop_map(str::to_owned)
}

/// As a request has it.
fn path() -> impl Strategy<Value = String> {
    select(vec![
        "/", "/a", "/a/b", "/a%2Fb", "/b;a", "/a/../b", "//a", "/%61", "/a%00",
    ])
    .prop_map(str::to_owned)
}

/// As a policy has it.
fn path_pattern() -> impl Strategy<Value = String> {
    let exact = select(vec!["/", "/a", "/a/b", "/a%2Fb", "/b;a", "/b", "/c"]);
    pattern(exact.prop_map(str::to_owned)).prop_filter("cut within an encoding", |p| {
        !p.contains('%') || p.contains("%2F")
    })
}

fn host() -> impl Strategy<Value = String> {
    select(vec!["a.x", "b.x", "a.x:80", "A.X", "b.x.", ""]).prop_map(str::to_owned)
}

fn host_pattern() -> impl Strategy<Value = String> {
    pattern(select(vec!["a.x", "b.x", "A.x", "a.x:80", "b.x:81"]).prop_map(str::to_owned))
}

fn header() -> impl Strategy<Value = (&'static str, String)> {
    let value = select(vec!["u", "v", "vu", ""]).prop_map(str::to_owned);
    (select(vec!["x", "y", "z"]), value)
}

fn request() -> impl Strategy<Value = Request> {
    let headers = prop::collection::vec(header(), 0..5);
    (method(), path(), host(), headers).prop_map(|(method, path, host, headers)| {
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| (*name, &**value))
            .collect();
        Request::new(&method, &path, &host, &headers)
    })
}

fn operation() -> impl Strategy<Value = To> {
    let ports = (some(port()), some(port()));
    let requests = (
        some(pattern(method())),
        some(pattern(method())),
        some(path_pattern()),
        some(path_pattern()),
        some(host_pattern()),
        some(host_pattern()),
    );
    let requests = prop::option::of(requests);
    (ports, requests).prop_map(|((ports, not_ports), requests)| {
        let requests = requests.unwrap_or_default();
        To {
            operation: Operation {
                ports,
                not_ports,
                methods: requests.0,
                not_methods: requests.1,
                paths: requests.2,
                not_paths: requests.3,
                hosts: requests.4,
                not_hosts: requests.5,
            },
        }
    })
}

fn condition() -> impl Strategy<Value = Condition> {
    let ranges = || some(range().prop_map(|range| range.to_string()));
    let condition = |key: &'static str, values: BoxedStrategy<(Vec<String>, Vec<String>)>| {
        values
            .prop_map(move |(values, not_values)| Condition {
                key: key.to_owned(),
                values,
                not_values,
            })
            .boxed()
    };
    let ports = || some(port().prop_map(|port| port.to_string()));
    let values = || {
        some(pattern(
            select(vec!["u", "v", "vu"]).prop_map(str::to_owned),
        ))
    };
    prop_oneof![
        condition(
            "source.principal",
            (some(pattern(principal())), some(pattern(principal()))).boxed()
        ),
        condition(
            "source.namespace",
            (some(pattern(namespace())), some(pattern(namespace()))).boxed()
        ),
        condition(
            "source.serviceAccount",
            (some(account()), some(account())).boxed()
        ),
        condition("source.ip", (ranges(), ranges()).boxed()),
        condition("destination.ip", (ranges(), ranges()).boxed()),
        condition("destination.port", (ports(), ports()).boxed()),
        condition("request.headers[x]", (values(), values()).boxed()),
        condition("request.headers[Y]", (values(), values()).boxed()),
    ]
}

/// Of two conditions on one header that both exclude values, a DENY is exempt where each line is excluded by one of
/// them; the definition has no word for that.
fn one_for_each_header(conditions: &mut Vec<Condition>) {
    let mut seen = BTreeSet::new();
    conditions.retain(|c| !c.key.starts_with("request.") || seen.insert(c.key.clone()));
}

fn rule() -> impl Strategy<Value = Rule> {
    (some(source()), some(operation()), some(condition())).prop_map(|(from, to, mut when)| {
        one_for_each_header(&mut when);
        Rule { from, to, when }
    })
}

fn spec() -> impl Strategy<Value = (String, AuthorizationPolicySpec)> {
    let action = prop_oneof![2 => Just(Action::Allow), 1 => Just(Action::Deny)];
    let selector = prop::option::of(select(vec!["web", "db"]).prop_map(|app| LabelSelector {
        match_labels: Labels(labels(&[("app", app)])),
        match_expressions: Vec::new(),
    }));
    let namespace = select(vec![ROOT, "a", "b"]).prop_map(str::to_owned);
    let rules = prop::collection::vec(rule(), 0..3);
    (
        namespace,
        action,
        prop::bool::weighted(0.2),
        selector,
        rules,
    )
        .prop_map(|(namespace, action, dry_run, selector, rules)| {
            let spec = AuthorizationPolicySpec {
                selector,
                action,
                dry_run,
                rules,
            };
            (namespace, spec)
        })
}

fn named(specs: Vec<(String, AuthorizationPolicySpec)>) -> Vec<Policy> {
    let specs = specs.into_iter().enumerate();
    specs
        .map(|(at, (namespace, spec))| with_spec(&namespace, &format!("p{at}"), spec))
        .collect()
}

/// Every statement about one connection.
fn check(policies: &[Policy], namespace: &str, app: &str, facts: &Facts<'_>) {
    let labels = labels(&[("app", app)]);
    let authorizer = authorizer(policies, namespace, &labels);
    let trust = trust();
    let naive = Naive {
        facts,
        trust: &trust,
    };
    let applying: Vec<&Policy> = policies
        .iter()
        .filter(|policy| applies(policy, namespace, &labels))
        .collect();
    let in_effect: Vec<&Policy> = applying
        .iter()
        .copied()
        .filter(|policy| !policy.spec.dry_run)
        .collect();
    let verdict = authorizer.decide(facts);
    let expected = naive.decide(&in_effect);
    let (outcome, by) = match verdict {
        Verdict::Allow(None) => (Outcome::AllowedByDefault, None),
        Verdict::Allow(Some(by)) => (Outcome::Allowed, Some(by)),
        Verdict::Deny(None) => (Outcome::DeniedByDefault, None),
        Verdict::Deny(Some(by)) => (Outcome::Denied, Some(by)),
    };
    assert_eq!(outcome, expected);
    if let Some(by) = by {
        let by = in_effect.iter().find(|policy| policy.name == *by).unwrap();
        assert!(naive.policy(by), "{} does not match", by.name);
        let denies = by.spec.action == Action::Deny;
        assert_eq!(denies, outcome == Outcome::Denied);
    }

    // A policy in dry run is told of if and only if the verdict with it in effect is another.
    let allows = |outcome| matches!(outcome, Outcome::Allowed | Outcome::AllowedByDefault);
    let mut would = BTreeSet::new();
    for policy in applying.iter().filter(|policy| policy.spec.dry_run) {
        let mut with = in_effect.clone();
        with.push(policy);
        let then = allows(naive.decide(&with));
        if then != allows(expected) {
            would.insert((policy.name.clone(), then));
        }
    }
    let mut told = BTreeSet::new();
    authorizer.dry_run(facts, |policy, change| {
        assert!(
            told.insert((policy.clone(), change == WouldBe::Allowed)),
            "told once"
        );
    });
    assert_eq!(told, would);

    if facts.http.is_some() {
        // A connection that is refused has no request that would be allowed.
        let connection = authorizer.decide_connection(facts);
        assert!(connection.is_allowed() || !allows(expected));
        // Where nothing is about requests, a request is decided as its connection.
        if !authorizer.needs_http(facts.destination_port) {
            let bytes = Facts {
                http: None,
                ..*facts
            };
            assert_eq!(verdict, authorizer.decide(&bytes));
            assert_eq!(verdict, connection);
        }
    }

    let looked = authorizer.explain(facts);
    assert_eq!(looked.len(), applying.len());
    for looked in &looked {
        let policy = applying
            .iter()
            .find(|policy| policy.name == looked.policy)
            .unwrap();
        assert_eq!(
            looked.matched,
            naive.policy(policy),
            "{}: {}",
            looked.policy,
            looked.why
        );
    }
    assert_eq!(authorizer.is_empty(), applying.is_empty());
    let nobody_denied = in_effect
        .iter()
        .all(|policy| policy.spec.action == Action::Deny && policy.spec.rules.is_empty());
    assert_eq!(authorizer.protects(), !nobody_denied);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    #[test]
    fn the_compiled_policies_agree_with_the_definition(
        specs in prop::collection::vec(spec(), 0..10),
        namespace in select(vec!["a", "b", ROOT]),
        app in select(vec!["web", "none"]),
        clients in prop::collection::vec(
            (prop::option::of(principal()), ip(), ip(), port(), prop::option::of(request())), 1..5,
        ),
    ) {
        let policies = named(specs);
        for (principal, source_ip, destination_ip, port, request) in clients {
            let id = principal.map(|p| format!("spiffe://{p}").parse::<SpiffeId>().unwrap());
            check(&policies, namespace, app, &Facts {
                source: id.as_ref(),
                source_ip,
                destination_ip,
                destination_port: port.0,
                http: request.as_ref().map(Request::facts),
            });
        }
    }
}

/// More clauses than one stretch holds, with the one that matches anywhere.
#[test]
fn thousands_of_policies_agree_with_the_definition() {
    let rules = |at: u32| {
        let port = Port(1 + (at % 60_000) as u16);
        let text = format!("10.{}.{}.{}/32", at >> 16, at >> 8 & 255, at & 255);
        let from = From {
            source: Source {
                ip_blocks: vec![text.parse().unwrap()],
                not_namespaces: vec![format!("n{at}")],
                ..Source::default()
            },
        };
        let operation = Operation {
            ports: vec![port],
            ..Operation::default()
        };
        vec![Rule {
            from: vec![from],
            to: vec![To { operation }],
            when: Vec::new(),
        }]
    };
    for count in [1, 63, 64, 65, 4095, 4096, 4097, 9000] {
        let policies: Vec<Policy> = (0..count)
            .map(|at| {
                let spec = AuthorizationPolicySpec {
                    rules: rules(at),
                    ..AuthorizationPolicySpec::default()
                };
                with_spec("a", &format!("p{at:05}"), spec)
            })
            .collect();
        let authorizer = authorizer(&policies, "a", &labels(&[]));
        for at in [0, 1, 62, 63, 64, 4094, 4095, 4096, 4097, 8999, count - 1] {
            let ip = format!("10.{}.{}.{}", at >> 16, at >> 8 & 255, at & 255);
            for (namespace, excluded) in [("m".to_owned(), false), (format!("n{at}"), true)] {
                let id: SpiffeId = format!("spiffe://cluster.local/ns/{namespace}/sa/x")
                    .parse()
                    .unwrap();
                let facts = Facts {
                    source: Some(&id),
                    source_ip: ip.parse().unwrap(),
                    destination_ip: ip.parse().unwrap(),
                    destination_port: 1 + at as u16,
                    http: None,
                };
                let expected = match at < count && !excluded {
                    true => format!("allow by a/p{at:05}"),
                    false => "deny".to_owned(),
                };
                assert_eq!(
                    super::show(authorizer.decide(&facts)),
                    expected,
                    "{at} of {count}"
                );
            }
        }
    }
}
