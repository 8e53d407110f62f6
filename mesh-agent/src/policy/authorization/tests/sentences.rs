//! traffic.md, "Authorization", sentence by sentence.

use super::{Client, authorizer, client, labels, policies, show};

const WEB: &str = "cluster.local/ns/shop/sa/web";
const DB: &str = "cluster.local/ns/shop/sa/db";
const NONE: &str = "";

/// `documents` are for a workload of namespace shop with label app=web.
fn check(documents: &[&str], table: &[(Client, &str)]) {
    let authorizer = authorizer(&policies(documents), "shop", &labels(&[("app", "web")]));
    for (client, expected) in table {
        let verdict = show(authorizer.decide(&client.facts()));
        assert_eq!(
            verdict, *expected,
            "{:?} {} {}",
            client.id, client.ip, client.port
        );
    }
}

/// An ALLOW policy `shop/p` with this spec.
fn allow(spec: &str) -> String {
    format!("metadata: {{name: p, namespace: shop}}\nspec: {{{spec}}}")
}

/// Whom an ALLOW policy of one rule lets through.
fn rule(rule: &str, table: &[(Client, bool)]) {
    let document = allow(&format!("rules: [{rule}]"));
    let documents = [document.as_str()];
    let policies = policies(&documents);
    let authorizer = authorizer(&policies, "shop", &labels(&[("app", "web")]));
    for (client, expected) in table {
        let allowed = authorizer.decide(&client.facts()).is_allowed();
        assert_eq!(
            allowed, *expected,
            "{rule}: {:?} {} {}",
            client.id, client.ip, client.port
        );
    }
}

#[test]
fn a_policy_applies_in_its_namespace_or_from_the_root_namespace() {
    for (namespace, expected) in [
        ("shop", "deny"),
        ("mesh-system", "deny"),
        ("other", "allow"),
    ] {
        let document = format!("metadata: {{name: p, namespace: {namespace}}}\nspec: {{}}");
        check(&[&document], &[(client(WEB), expected)]);
    }
}

#[test]
fn and_its_selector_is_absent_or_matches_the_destination() {
    for (selector, expected) in [
        ("matchLabels: {app: web}", "deny"),
        ("", "deny"),
        ("matchLabels: {app: db}", "allow"),
        ("matchLabels: {app: web, tier: front}", "allow"),
        (
            "matchExpressions: [{key: app, operator: In, values: [web, db]}]",
            "deny",
        ),
        (
            "matchExpressions: [{key: app, operator: DoesNotExist}]",
            "allow",
        ),
        (
            "matchLabels: {app: web}, matchExpressions: [{key: tier, operator: Exists}]",
            "allow",
        ),
    ] {
        for namespace in ["shop", "mesh-system"] {
            let document = format!(
                "metadata: {{name: p, namespace: {namespace}}}\nspec: {{selector: {{{selector}}}}}"
            );
            check(&[&document], &[(client(WEB), expected)]);
        }
    }
}

#[test]
fn any_deny_that_matches_denies_whatever_allows() {
    let allow = "metadata: {name: a, namespace: shop}\nspec: {rules: [{}]}";
    // Names and scopes in another order, and a DENY beside one that does not match.
    for (name, namespace) in [
        ("a-deny", "shop"),
        ("z-deny", "shop"),
        ("deny", "mesh-system"),
    ] {
        let deny = format!(
            "metadata: {{name: {name}, namespace: {namespace}}}\nspec: {{action: DENY, rules: [{{from: [{{source: {{principals: [{WEB}]}}}}]}}]}}"
        );
        let other = "metadata: {name: b-deny, namespace: shop}\nspec: {action: DENY, rules: [{to: [{operation: {ports: [9]}}]}]}";
        let by = format!("deny by {namespace}/{name}");
        check(
            &[allow, &deny, other],
            &[
                (client(WEB), &by),
                (client(DB), "allow by shop/a"),
                (client(NONE), "allow by shop/a"),
            ],
        );
    }
}

#[test]
fn without_allow_policies_the_rest_is_allowed() {
    let deny = "metadata: {name: d, namespace: shop}\nspec: {action: DENY, rules: [{to: [{operation: {ports: [9]}}]}]}";
    check(
        &[deny],
        &[
            (client(NONE), "allow"),
            (client(WEB).on_port(9), "deny by shop/d"),
        ],
    );
    check(&[], &[(client(NONE), "allow")]);
}

#[test]
fn else_any_allow_that_matches_allows_else_it_is_denied() {
    let of = |name: &str, principal: &str| {
        format!(
            "metadata: {{name: {name}, namespace: shop}}\nspec: {{action: ALLOW, rules: [{{from: [{{source: {{principals: [{principal}]}}}}]}}]}}"
        )
    };
    check(
        &[&of("one", WEB), &of("two", DB)],
        &[
            (client(WEB), "allow by shop/one"),
            (client(DB), "allow by shop/two"),
            (client("cluster.local/ns/shop/sa/other"), "deny"),
            (client(NONE), "deny"),
        ],
    );
}

#[test]
fn a_rule_is_from_and_to_and_when() {
    let text = format!(
        "{{from: [{{source: {{principals: [{WEB}]}}}}], to: [{{operation: {{ports: [80]}}}}], when: [{{key: source.ip, values: [10.9.0.0/24]}}]}}"
    );
    rule(
        &text,
        &[
            (client(WEB), true),
            (client(DB), false),
            (client(WEB).on_port(81), false),
            (client(WEB).at_ip("10.9.1.1"), false),
        ],
    );
}

#[test]
fn fields_of_a_source_are_and_sources_are_or() {
    let text = "{from: [{source: {namespaces: [shop], ipBlocks: [10.9.0.0/24]}}, {source: {namespaces: [ops]}}]}";
    rule(
        text,
        &[
            (client(WEB), true),
            (client(WEB).at_ip("10.8.0.1"), false),
            (client("cluster.local/ns/ops/sa/a").at_ip("10.8.0.1"), true),
            (client("cluster.local/ns/x/sa/a"), false),
        ],
    );
}

#[test]
fn lists_inside_are_or() {
    rule(
        &format!(
            "{{from: [{{source: {{principals: [{WEB}, {DB}]}}}}], to: [{{operation: {{ports: [80, \"81\"]}}}}, {{operation: {{ports: [90]}}}}]}}"
        ),
        &[
            (client(WEB), true),
            (client(DB).on_port(81), true),
            (client(DB).on_port(90), true),
            (client(DB).on_port(82), false),
            (client("cluster.local/ns/shop/sa/x"), false),
        ],
    );
    rule(
        "{when: [{key: source.namespace, values: [shop, ops]}]}",
        &[
            (client(WEB), true),
            (client("cluster.local/ns/x/sa/a"), false),
        ],
    );
}

#[test]
fn rules_of_a_policy_are_or_and_conditions_are_and() {
    let document = allow(
        "rules: [{to: [{operation: {ports: [80]}}]}, {from: [{source: {namespaces: [ops]}}]}]",
    );
    check(
        &[&document],
        &[
            (client(NONE), "allow by shop/p"),
            (
                client("cluster.local/ns/ops/sa/a").on_port(1),
                "allow by shop/p",
            ),
            (client(WEB).on_port(1), "deny"),
        ],
    );
    rule(
        "{when: [{key: source.namespace, values: [shop]}, {key: destination.port, values: ['80']}]}",
        &[
            (client(WEB), true),
            (client(WEB).on_port(1), false),
            (client(NONE), false),
        ],
    );
    // Two demands on one attribute.
    rule(
        "{from: [{source: {namespaces: ['s*']}}], when: [{key: source.namespace, values: ['*p'], notValues: [ship]}]}",
        &[
            (client(WEB), true),
            (client("cluster.local/ns/ship/sa/a"), false),
            (client("cluster.local/ns/sea/sa/a"), false),
            (client("cluster.local/ns/lap/sa/a"), false),
        ],
    );
}

#[test]
fn not_negates() {
    rule(
        &format!("{{from: [{{source: {{notPrincipals: [{WEB}]}}}}]}}"),
        &[
            (client(WEB), false),
            (client(DB), true),
            (client(NONE), true),
        ],
    );
    rule(
        "{from: [{source: {notNamespaces: [shop, ops]}}]}",
        &[
            (client(WEB), false),
            (client("cluster.local/ns/x/sa/a"), true),
            (client(NONE), true),
        ],
    );
    rule(
        "{from: [{source: {notServiceAccounts: [web]}}]}",
        &[
            (client(WEB), false),
            (client(DB), true),
            (client("cluster.local/ns/x/sa/web"), true),
        ],
    );
    rule(
        "{from: [{source: {ipBlocks: [10.0.0.0/8], notIpBlocks: [10.9.0.0/16, 10.8.0.1]}}]}",
        &[
            (client(NONE), false),
            (client(NONE).at_ip("10.8.0.1"), false),
            (client(NONE).at_ip("10.8.0.2"), true),
            (client(NONE).at_ip("11.0.0.1"), false),
        ],
    );
    rule(
        "{to: [{operation: {notPorts: [80]}}]}",
        &[(client(NONE), false), (client(NONE).on_port(81), true)],
    );
    // Alternatives of which one leaves out what the other has.
    rule(
        "{to: [{operation: {notPorts: [80, 81]}}, {operation: {ports: [80]}}]}",
        &[
            (client(NONE), true),
            (client(NONE).on_port(81), false),
            (client(NONE).on_port(82), true),
        ],
    );
    rule(
        "{to: [{operation: {ports: [80], notPorts: [80]}}]}",
        &[(client(NONE), false), (client(NONE).on_port(81), false)],
    );
    rule(
        "{when: [{key: destination.ip, notValues: [10.0.0.0/8]}]}",
        &[(client(NONE), false)],
    );
}

#[test]
fn an_empty_rule_matches_all() {
    rule(
        "{}",
        &[(client(NONE), true), (client(WEB).on_port(1), true)],
    );
}

#[test]
fn a_policy_without_rules_matches_nothing() {
    check(
        &[&allow("")],
        &[(client(WEB), "deny"), (client(NONE), "deny")],
    );
    check(&[&allow("rules: []")], &[(client(WEB), "deny")]);
    check(&[&allow("action: DENY")], &[(client(WEB), "allow")]);
}

#[test]
fn principals_are_exact_or_have_a_star_at_one_end() {
    for (pattern, matches) in [
        (WEB, true),
        (DB, false),
        ("cluster.local/ns/shop/*", true),
        ("cluster.local/ns/sho*", true),
        ("cluster.local/ns/shop/sa/web*", true),
        ("cluster.local/ns/shop/sa/webb*", false),
        ("cluster.local/ns/x/*", false),
        ("*/sa/web", true),
        ("*b", true),
        ("*/sa/eb", false),
        ("*cluster.local/ns/shop/sa/web", true),
        ("*", true),
    ] {
        rule(
            &format!("{{from: [{{source: {{principals: [\"{pattern}\"]}}}}]}}"),
            &[(client(WEB), matches)],
        );
    }
    // A namespace is not the beginning of a longer one.
    rule(
        "{from: [{source: {namespaces: [shop]}}]}",
        &[
            (client("cluster.local/ns/shop2/sa/web"), false),
            (client(WEB), true),
        ],
    );
}

#[test]
fn service_accounts_are_of_the_policys_namespace_unless_they_name_one() {
    rule(
        "{from: [{source: {serviceAccounts: [web, ops/web]}}]}",
        &[
            (client(WEB), true),
            (client("cluster.local/ns/ops/sa/web"), true),
            (client("cluster.local/ns/x/sa/web"), false),
            (client(DB), false),
        ],
    );
    let root = "metadata: {name: p, namespace: mesh-system}\nspec: {rules: [{from: [{source: {serviceAccounts: [web]}}]}]}";
    check(
        &[root],
        &[
            (client(WEB), "deny"),
            (
                client("cluster.local/ns/mesh-system/sa/web"),
                "allow by mesh-system/p",
            ),
        ],
    );
}

#[test]
fn ip_blocks_are_of_both_families() {
    rule(
        "{from: [{source: {ipBlocks: [10.9.0.0/16, 192.0.2.7, \"fd00:9::/32\"]}}]}",
        &[
            (client(NONE).at_ip("10.9.255.255"), true),
            (client(NONE).at_ip("10.10.0.0"), false),
            (client(NONE).at_ip("192.0.2.7"), true),
            (client(NONE).at_ip("192.0.2.8"), false),
            (client(NONE).at_ip("fd00:9:1::1"), true),
            (client(NONE).at_ip("fd00:a::1"), false),
            // As an application on a socket of both families sees an IPv4 client.
            (client(NONE).at_ip("::ffff:10.9.0.1"), true),
        ],
    );
    rule(
        "{from: [{source: {ipBlocks: [0.0.0.0/0]}}]}",
        &[(client(NONE), true), (client(NONE).at_ip("fd00::1"), false)],
    );
    rule(
        "{from: [{source: {ipBlocks: [\"::/0\"]}}]}",
        &[
            (client(NONE), false),
            (client(NONE).at_ip("::ffff:10.9.0.1"), false),
            (client(NONE).at_ip("fd00::1"), true),
        ],
    );
}

#[test]
fn a_positive_principal_never_matches_a_client_without_identity() {
    for source in [
        "principals: [\"*\"]",
        "namespaces: [\"*\"]",
        "serviceAccounts: [web]",
        "principals: [\"*\"], notPrincipals: [cluster.local/ns/x/sa/x]",
    ] {
        let text = format!("{{from: [{{source: {{{source}}}}}]}}");
        rule(&text, &[(client(NONE), false), (client(WEB), true)]);
    }
    rule(
        "{when: [{key: source.principal, values: [\"*\"]}]}",
        &[(client(NONE), false)],
    );
    // The way to hold back plain text.
    rule(
        "{from: [{source: {notPrincipals: [\"*\"]}}]}",
        &[(client(NONE), true), (client(WEB), false)],
    );
}

#[test]
fn dry_run_decides_nothing() {
    check(
        &[
            "metadata: {name: d, namespace: shop}\nspec: {dryRun: true, action: DENY, rules: [{}]}",
            "metadata: {name: a, namespace: shop}\nspec: {dryRun: true}",
        ],
        &[(client(WEB), "allow"), (client(NONE), "allow")],
    );
}

#[test]
fn principals_of_one_trust_domain_of_the_mesh_are_those_of_all() {
    let (own, alias, other) = (
        WEB,
        "old.example/ns/shop/sa/web",
        "other.example/ns/shop/sa/web",
    );
    for written in [own, alias, "cluster.local/ns/shop/*", "old.example/*"] {
        rule(
            &format!("{{from: [{{source: {{principals: [\"{written}\"]}}}}]}}"),
            &[
                (client(own), true),
                (client(alias), true),
                (client(other), false),
            ],
        );
        rule(
            &format!("{{from: [{{source: {{notPrincipals: [\"{written}\"]}}}}]}}"),
            &[
                (client(own), false),
                (client(alias), false),
                (client(other), true),
            ],
        );
    }
    // Compared as they are written.
    rule(
        "{from: [{source: {principals: [\"old.ex*\", \"*.example/ns/shop/sa/db\"]}}]}",
        &[
            (client(own), false),
            (client(alias), true),
            (client(DB), false),
            (client("other.example/ns/shop/sa/db"), true),
        ],
    );
    rule(
        "{from: [{source: {namespaces: [shop]}}]}",
        &[(client(own), true), (client(alias), true)],
    );
}

#[test]
fn the_order_of_policies_means_nothing() {
    let mut documents = vec![
        "metadata: {name: a, namespace: shop}\nspec: {rules: [{from: [{source: {namespaces: [shop]}}]}]}",
        "metadata: {name: b, namespace: mesh-system}\nspec: {action: DENY, rules: [{to: [{operation: {ports: [9]}}]}]}",
        "metadata: {name: c, namespace: shop}\nspec: {selector: {matchLabels: {app: web}}, rules: [{to: [{operation: {ports: [7]}}]}]}",
    ];
    for _ in 0..documents.len() {
        documents.rotate_left(1);
        check(
            &documents,
            &[
                (client(WEB), "allow by shop/a"),
                (client(WEB).on_port(9), "deny by mesh-system/b"),
                (client(NONE).on_port(7), "allow by shop/c"),
                (client(NONE).on_port(8), "deny"),
            ],
        );
    }
}
