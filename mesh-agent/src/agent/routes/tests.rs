//! What is shown of routes, from a configuration.

use crate::{api, catalog::Catalog};

const WORLD: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIPs: [10.96.0.1], ports: [{name: http, port: 80}, {name: alt, port: 81}]}
---
apiVersion: v1
kind: Service
metadata: {name: v1, namespace: shop}
spec: {selector: {app: v1}, ports: [{port: 80}]}
---
apiVersion: mesh.covet.dev/v1alpha1
kind: Workload
metadata: {name: v1-0, namespace: shop, labels: {app: v1}}
spec: {addresses: [10.1.0.1]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: split, namespace: shop, creationTimestamp: "2026-01-02T03:04:05Z"}
spec:
  parentRefs: [{group: "", kind: Service, name: web, port: 80}]
  rules:
  - backendRefs: [{name: v1, port: 80, weight: 9}, {name: v2, port: 80}]
    timeouts: {request: 10s, backendRequest: 0s}
    retry: {attempts: 2}
  - name: old
    matches: [{path: {type: Exact, value: /old}}]
    filters:
    - {type: RequestRedirect, requestRedirect: {scheme: https, path: {type: ReplaceFullPath, replaceFullPath: /new}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: ours, namespace: client}
spec:
  parentRefs: [{group: "", kind: Service, name: web, namespace: shop, sectionName: alt}, {name: gw}]
  rules:
  - filters:
    - {type: RequestMirror, requestMirror: {backendRef: {name: v1, namespace: shop, port: 80}, percent: 5}}
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}], remove: [c]}}
    - {type: URLRewrite, urlRewrite: {hostname: h.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}
    backendRefs: [{name: v1, namespace: shop, port: 80}]
---
apiVersion: mesh.covet.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: ours, namespace: client}
spec:
  targetRefs: [{kind: HTTPRoute, name: ours}]
  timeouts: {request: 3s}
  redistributeUnavailable: true
"#;

fn routes(
    wanted: Option<&str>,
    namespace: Option<&str>,
) -> Result<crate::admin::api::Routes, String> {
    let catalog = Catalog::new("n1");
    let source = catalog.register();
    let (config, _) = api::parse_bytes("f", WORLD.as_bytes()).unwrap();
    catalog.apply(source, config);
    super::routes(&catalog.snapshot(), wanted, namespace)
}

#[test]
fn what_is_bound_is_in_the_order_of_precedence() {
    let all = routes(None, None).unwrap();
    let lines: Vec<String> = all
        .bound
        .iter()
        .map(|b| {
            let backends: Vec<String> = b
                .backends
                .iter()
                .map(|b| format!("{}*{}/{}", b.name, b.weight, b.endpoints))
                .collect();
            format!(
                "{}:{} {:?} {} {} [{}] -> {} | {} | {}",
                b.service,
                b.port,
                b.clients,
                b.order,
                b.rule,
                b.matches,
                backends.join(" "),
                b.filters.join(", "),
                b.settings.join(", "),
            )
        })
        .collect();
    assert_eq!(
        lines,
        [
            "shop/web:80 None 1 HTTPRoute/shop/split#1 [/old] ->  | redirect 302 https /new | ",
            "shop/web:80 None 2 HTTPRoute/shop/split#0 [/*] -> shop/v1:80*9/1 not there*1/0 |  | request 10s, attempt none, retries 2",
            "shop/web:81 Some(\"client\") 1 HTTPRoute/client/ours#0 [/*] -> shop/v1:80*1/1 | rewrite h.example /*, request headers =a -c, mirror shop/v1:80 5% | request 3s, redistributes",
        ]
    );
    assert_eq!(all.bound[0].rule_name.as_deref(), Some("old"));
    assert_eq!(
        all.bound[1].backends[1].error.as_deref(),
        Some("BackendNotFound")
    );
}

#[test]
fn what_is_rejected_says_why() {
    let all = routes(None, None).unwrap();
    let problems: Vec<String> = all
        .routes
        .iter()
        .flat_map(|route| {
            let problems = route.problems();
            problems.map(move |(condition, about, found)| {
                format!(
                    "{} {condition} {about} {}: {}",
                    route.name, found.reason, found.message
                )
            })
        })
        .collect();
    assert_eq!(
        problems,
        [
            "client/ours Accepted Gateway client/gw NoMatchingParent: in a mesh routes are bound to Services of the core group, not to Gateway client/gw",
            "shop/split ResolvedRefs - BackendNotFound: rules[0].backendRefs[1]: there is no Service shop/v2 with port 80",
        ]
    );
    assert_eq!(
        all.routes[1].created.as_deref(),
        Some("2026-01-02T03:04:05Z")
    );
    assert_eq!(all.routes[0].parents[0].parent, "Service shop/web:alt");
    assert_eq!(all.routes[0].parents[0].scope, "consumer");
}

#[test]
fn one_service_or_namespace_is_picked() {
    assert_eq!(routes(Some("web"), None).unwrap().bound.len(), 3);
    assert_eq!(
        routes(Some("shop/web"), Some("shop")).unwrap().routes.len(),
        2
    );
    let none = routes(Some("v1"), None).unwrap();
    assert!(none.bound.is_empty() && none.routes.is_empty());
    let error = routes(Some("web"), Some("client")).unwrap_err();
    assert_eq!(
        error,
        "there is no service web in namespace client; see mesh-agent services"
    );
    // The namespace is the service's or the route's.
    let client = routes(None, Some("client")).unwrap();
    assert_eq!((client.bound.len(), client.routes.len()), (0, 1));
}
