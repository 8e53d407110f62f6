//! What a change makes anew, and what workloads share.

use std::{sync::Arc, time::Instant};

use super::{Policy, ROOT, all, client, labels, policies, show, trust};
use crate::{
    api::Diff,
    model::TrustDomain,
    policy::{Authorizers, Scope, Trust, authorization::scope::Touched},
};

fn some() -> Vec<Policy> {
    policies(&[
        "metadata: {name: mesh, namespace: mesh-system}\nspec: {action: DENY, rules: [{to: [{operation: {ports: [9]}}]}]}",
        "metadata: {name: everyone, namespace: shop}\nspec: {rules: [{}]}",
        "metadata: {name: web, namespace: shop}\nspec: {selector: {matchLabels: {app: web}}, rules: [{}]}",
        "metadata: {name: front, namespace: mesh-system}\nspec: {selector: {matchLabels: {tier: front}}}",
        "metadata: {name: labelled, namespace: shop}\nspec: {selector: {matchExpressions: [{key: app, operator: Exists}]}}",
    ])
}

fn names(policies: &[Policy], namespace: &str, of: &[(&str, &str)]) -> Vec<String> {
    let authorizer = super::authorizer(policies, namespace, &labels(of));
    authorizer
        .policies()
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn scopes() {
    let policies = some();
    assert_eq!(names(&policies, "other", &[]), ["mesh-system/mesh"]);
    assert_eq!(
        names(&policies, "shop", &[("app", "web"), ("tier", "front")]),
        [
            "mesh-system/mesh",
            "mesh-system/front",
            "shop/everyone",
            "shop/labelled",
            "shop/web"
        ]
    );
    assert_eq!(
        names(&policies, "shop", &[("app", "db")]),
        ["mesh-system/mesh", "shop/everyone", "shop/labelled"]
    );
    assert_eq!(
        names(&policies, ROOT, &[("app", "web"), ("tier", "front")]),
        ["mesh-system/mesh", "mesh-system/front"]
    );
    let all = all(&policies);
    let scopes: Vec<(String, Scope)> = all
        .iter()
        .map(|policy| (policy.policy.name.to_string(), policy.scope))
        .collect();
    let expected = [
        ("mesh-system/front", Scope::Workloads),
        ("mesh-system/mesh", Scope::Mesh),
        ("shop/everyone", Scope::Namespace),
        ("shop/labelled", Scope::Workloads),
        ("shop/web", Scope::Workloads),
    ];
    assert_eq!(
        scopes,
        expected.map(|(name, scope)| (name.to_owned(), scope))
    );
    for policy in all.iter() {
        for (namespace, app) in [
            ("shop", "web"),
            ("shop", ""),
            ("other", "web"),
            (ROOT, "web"),
        ] {
            let labels = if app.is_empty() {
                labels(&[])
            } else {
                labels(&[("app", app)])
            };
            let authorizer = all.authorizer(namespace, &labels, &mut Authorizers::default());
            assert_eq!(
                authorizer.policies().contains(&&policy.policy.name),
                policy.applies(namespace, &labels),
                "{} {namespace} {app}",
                policy.policy.name
            );
        }
    }
}

#[test]
fn workloads_with_the_same_policies_share_them() {
    let all = all(&some());
    let mut cache = Authorizers::default();
    let mut of = |namespace, of| all.authorizer(namespace, &labels(of), &mut cache);
    let web = of("shop", &[("app", "web")]);
    assert!(Arc::ptr_eq(
        &web,
        &of("shop", &[("app", "web"), ("version", "2")])
    ));
    assert!(!Arc::ptr_eq(&web, &of("shop", &[("app", "db")])));
    assert!(
        Arc::ptr_eq(&of("a", &[]), &of("b", &[])),
        "only those of the mesh"
    );
    // Nothing that is not used is kept.
    drop(web);
    cache.sweep();
    let count = Arc::strong_count(&all.authorizer("shop", &labels(&[("app", "web")]), &mut cache));
    assert_eq!(count, 2, "made anew: the cache has one, the test the other");
}

#[test]
fn a_change_touches_its_namespace_and_the_root_everyone() {
    let policies = some();
    let mut all = all(&policies);
    let touched = |all: &mut super::AuthorizationPolicies, removed: &[Policy], added: &[Policy]| {
        all.update(&Diff::between(removed, added), &trust())
    };
    let shop = Touched::Namespaces([Arc::from("shop")].into());
    assert_eq!(touched(&mut all, &policies[1..3], &[]), shop);
    let rest = all
        .iter()
        .map(|policy| policy.policy.name.to_string())
        .collect::<Vec<_>>();
    assert_eq!(
        rest,
        ["mesh-system/front", "mesh-system/mesh", "shop/labelled"]
    );
    assert_eq!(touched(&mut all, &policies[4..], &policies[1..2]), shop);
    assert_eq!(touched(&mut all, &policies[3..4], &[]), Touched::Everyone);
    assert_eq!(touched(&mut all, &[], &[]), Touched::Namespaces([].into()));
}

#[test]
fn another_trust_domain_changes_what_principals_mean() {
    let policies = policies(&[
        "metadata: {name: a, namespace: shop}\nspec: {rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]}",
    ]);
    let mut all = all(&policies);
    let old = client("old.example/ns/shop/sa/web");
    let verdict = |all: &super::AuthorizationPolicies| {
        let authorizer = all.authorizer("shop", &labels(&[]), &mut Authorizers::default());
        show(authorizer.decide(&old.facts()))
    };
    assert_eq!(verdict(&all), "allow by shop/a");
    let trust = Trust {
        domain: TrustDomain::default(),
        aliases: Vec::new(),
    };
    assert_eq!(
        all.update(&Diff::between(&[], &[]), &trust),
        Touched::Everyone
    );
    assert_eq!(verdict(&all), "deny");
}

/// Ten thousand workloads in ten namespaces, a thousand policies: a hundred for each namespace, half with selectors.
#[test]
fn a_large_mesh() {
    let documents: Vec<String> = (0..1000)
        .map(|at| {
            let selector = match at % 20 >= 10 {
                true => format!("selector: {{matchLabels: {{app: a{}}}}}, ", at / 20),
                false => String::new(),
            };
            format!(
                "metadata: {{name: p{at}, namespace: n{}}}\nspec: {{{selector}rules: [{{from: [{{source: {{serviceAccounts: [s{at}]}}}}]}}]}}",
                at % 10
            )
        })
        .collect();
    let documents: Vec<&str> = documents.iter().map(String::as_str).collect();
    let policies = policies(&documents);
    let started = Instant::now();
    let all = all(&policies);
    let mut cache = Authorizers::default();
    let authorizers: Vec<_> = (0..10_000)
        .map(|at| {
            let labels = labels(&[("app", &format!("a{}", at / 10 % 100))]);
            all.authorizer(&format!("n{}", at % 10), &labels, &mut cache)
        })
        .collect();
    let took = started.elapsed();
    assert_eq!(authorizers[0].policies().len(), 51);
    // 50 sets with one selected policy, and one without, in each namespace.
    let mut different: Vec<_> = authorizers.iter().map(Arc::as_ptr).collect();
    different.sort_unstable();
    different.dedup();
    assert_eq!(different.len(), 510);
    // Far more than it takes without optimization on a busy machine; a product of the two would take minutes.
    assert!(took.as_secs() < 10, "{took:?}");
}
