//! The explanation, as one reads it.

use super::{authorizer, client, labels, policies};
use crate::{
    api::Action,
    policy::{Authorizer, Looked, WouldBe},
};

#[test]
fn every_policy_says_why() {
    let all = policies(&[
        "metadata: {name: clients, namespace: shop}\nspec: {rules: [{from: [{source: {serviceAccounts: [web, ops/probe]}}], to: [{operation: {ports: [80, 443]}}]}]}",
        "metadata: {name: sandbox, namespace: mesh-system}\nspec: {action: DENY, rules: [{from: [{source: {namespaces: ['sand*']}}]}, {from: [{source: {ipBlocks: [192.0.2.0/24]}}, {source: {principals: [cluster.local/ns/x/sa/y]}}]}]}",
        "metadata: {name: nobody, namespace: shop}\nspec: {dryRun: true}",
        "metadata: {name: all, namespace: shop}\nspec: {dryRun: true, rules: [{}]}",
        "metadata: {name: office, namespace: shop}\nspec: {rules: [{when: [{key: source.ip, values: [10.9.0.0/16], notValues: [10.9.9.0/24]}]}]}",
    ]);
    let authorizer = authorizer(&all, "shop", &labels(&[]));
    let say = |looked: Vec<Looked>| -> Vec<String> {
        let one = |looked: &Looked| {
            let (action, dry_run) = (looked.action, if looked.dry_run { " dry run" } else { "" });
            let matched = if looked.matched {
                "matches"
            } else {
                "does not match"
            };
            format!(
                "{action}{dry_run} {} {matched}: {}",
                looked.policy, looked.why
            )
        };
        looked.iter().map(one).collect()
    };
    assert_eq!(
        say(authorizer.explain(&client("cluster.local/ns/shop/sa/web").facts())),
        [
            "DENY mesh-system/sandbox does not match: rule 1: namespace shop is not sand*; rule 2: source address 10.9.0.1 is not 192.0.2.0/24, and principal cluster.local/ns/shop/sa/web is not cluster.local/ns/x/sa/y",
            "ALLOW shop/clients matches: service account shop/web (web), port 80",
            "ALLOW shop/office matches: source address 10.9.0.1 (10.9.0.0/16), source address 10.9.0.1, not 10.9.9.0/24",
            "ALLOW dry run shop/all matches: the empty rule matches everything",
            "ALLOW dry run shop/nobody does not match: it has no rules, so it matches nothing",
        ]
    );
    assert_eq!(
        say(authorizer.explain(&client("").at_ip("10.9.9.1").on_port(8080).facts())),
        [
            "DENY mesh-system/sandbox does not match: rule 1: the client has no identity (it came without a tunnel), and namespace sand* needs one; rule 2: source address 10.9.9.1 is not 192.0.2.0/24, and the client has no identity (it came without a tunnel), and principal cluster.local/ns/x/sa/y needs one",
            "ALLOW shop/clients does not match: the client has no identity (it came without a tunnel), and service account web or ops/probe needs one",
            "ALLOW shop/office does not match: source address 10.9.9.1 is excluded by 10.9.9.0/24",
            "ALLOW dry run shop/all matches: the empty rule matches everything",
            "ALLOW dry run shop/nobody does not match: it has no rules, so it matches nothing",
        ]
    );
}

#[test]
fn an_explanation_says_what_a_request_lacks() {
    let rule = "rules: [{to: [{operation: {methods: [GET], paths: [/a/*], hosts: [shop]}}], when: [{key: 'request.headers[x]', values: [y], notValues: [z]}]}]";
    let all = policies(&[
        &format!("metadata: {{name: allow, namespace: shop}}\nspec: {{{rule}}}"),
        &format!("metadata: {{name: deny, namespace: shop}}\nspec: {{action: DENY, {rule}}}"),
    ]);
    let authorizer = authorizer(&all, "shop", &labels(&[]));
    let why = |client: super::Client| -> [String; 2] {
        let looked = authorizer.explain(&client.facts());
        let say = |l: &Looked| format!("{} {}", l.matched, l.why);
        [say(&looked[0]), say(&looked[1])]
    };
    let ask =
        |method: &str, path: &str, headers: &[(&str, &str)]| client("").asks(method, path, headers);
    let fits = "true method GET, path /a/b (/a/*), host shop, header x y, header x y, not z";
    assert_eq!(why(ask("GET", "/a/b", &[("x", "y")])), [fits, fits]);
    for (client, expected) in [
        (
            ask("PUT", "/a/b", &[("x", "y")]),
            "false method PUT is not GET",
        ),
        (ask("GET", "/b", &[("x", "y")]), "false path /b is not /a/*"),
        (ask("GET", "/a/b", &[]), "false there is no header x"),
        (client("").of_host("web"), "false path / is not /a/*"),
    ] {
        assert_eq!(why(client), [expected, expected]);
    }
    assert_eq!(
        why(client("")),
        [
            "true no HTTP, so whatever the method, no HTTP, so whatever the path, no HTTP, so whatever the host, no HTTP, so whatever the header x, no HTTP, so whatever the header x",
            "false the connection does not speak HTTP, and method GET needs a request",
        ]
    );
    assert_eq!(
        why(ask("GET", "/a%2Fb", &[("x", "y")])),
        [
            "true method GET, path /a/b (/a/*), host shop, header x y, header x y, not z",
            "false path /a%2Fb is not /a/* (one way to read it)",
        ]
    );
    assert_eq!(
        why(ask("GET", "/a%00", &[("x", "y")])),
        [
            "true method GET, a path that could mean anything, host shop, header x y, header x y, not z",
            "false the path could mean anything (see docs/security.md)",
        ]
    );
}

#[test]
fn long_lists_are_cut() {
    let rules: Vec<String> = (1..=9)
        .map(|port| format!("{{to: [{{operation: {{ports: [{port}]}}}}]}}"))
        .collect();
    let many = format!(
        "metadata: {{name: rules, namespace: shop}}\nspec: {{rules: [{}]}}",
        rules.join(", ")
    );
    let long = "metadata: {name: ports, namespace: shop}\nspec: {rules: [{to: [{operation: {ports: [1, 2, 3, 4, 5, 6]}}]}]}";
    let authorizer = authorizer(&policies(&[&many, long]), "shop", &labels(&[]));
    let why: Vec<String> = authorizer
        .explain(&client("").facts())
        .into_iter()
        .map(|looked| looked.why)
        .collect();
    assert_eq!(
        why,
        [
            "port 80 is none of 1, 2, 3, 4 and 2 more",
            "rule 1: port 80 is not 1; rule 2: port 80 is not 2; rule 3: port 80 is not 3; rule 4: port 80 is not 4; and 5 more rules",
        ]
    );
}

#[test]
fn a_dry_run_tells_what_would_change() {
    let told = |documents: &[&str], principal: &str| -> Vec<String> {
        let authorizer = authorizer(&policies(documents), "shop", &labels(&[]));
        let mut told = Vec::new();
        authorizer.dry_run(&client(principal).facts(), |policy, would| {
            told.push(match would {
                WouldBe::Allowed => format!("{policy} would allow"),
                WouldBe::Denied => format!("{policy} would deny"),
            });
        });
        told
    };
    let web = "cluster.local/ns/shop/sa/web";
    let of = |name: &str, rest: &str| {
        format!(
            "metadata: {{name: {name}, namespace: shop}}\nspec: {{{rest}, rules: [{{from: [{{source: {{serviceAccounts: [web]}}}}]}}]}}"
        )
    };
    let (try_deny, try_allow) = (
        of("deny", "dryRun: true, action: DENY"),
        of("allow", "dryRun: true"),
    );
    assert_eq!(
        told(&[&try_deny, &try_allow], web),
        ["shop/deny would deny"]
    );
    assert_eq!(
        told(&[&try_deny, &try_allow], ""),
        ["shop/allow would deny"]
    );
    let closed = "metadata: {name: nobody, namespace: shop}\nspec: {}";
    assert_eq!(
        told(&[&try_deny, &try_allow, closed], web),
        ["shop/allow would allow"]
    );
    assert_eq!(
        told(&[&try_deny, &try_allow, closed], ""),
        Vec::<String>::new()
    );
}

#[test]
fn what_is_not_known_is_closed() {
    let closed = Authorizer::closed();
    let facts = client("cluster.local/ns/shop/sa/web");
    assert!(!closed.decide(&facts.facts()).is_allowed());
    assert!(closed.protects() && !closed.is_empty());
    assert_eq!(Action::default(), Action::Allow);
}
