//! Routes as an agent answers.

use crate::admin::api::{BoundMatch, Route, RouteBackend, RouteCondition, RouteParent, Routes};

fn backend(name: &str, weight: u32, endpoints: usize) -> RouteBackend {
    RouteBackend {
        name: name.into(),
        weight,
        endpoints,
        error: None,
    }
}

fn condition(status: bool, reason: &str, message: &str) -> RouteCondition {
    RouteCondition {
        status,
        reason: reason.into(),
        message: message.into(),
    }
}

fn parent(parent: &str, accepted: RouteCondition) -> RouteParent {
    RouteParent {
        parent: parent.into(),
        scope: "producer".into(),
        ports: Vec::new(),
        accepted,
    }
}

pub(super) fn routes() -> Routes {
    let testers = BoundMatch {
        service: "shop/cart".into(),
        port: 80,
        clients: None,
        order: 1,
        rule: "HTTPRoute/shop/cart#0".into(),
        rule_name: Some("testers".into()),
        matches: "/* x-canary=true".into(),
        backends: vec![backend("shop/cart-v2:80", 1, 1)],
        filters: vec!["request headers =x-api -x-debug".into()],
        settings: vec!["request 10s".into(), "retries 2".into()],
    };
    let split = BoundMatch {
        order: 2,
        rule: "HTTPRoute/shop/cart#1".into(),
        rule_name: None,
        matches: "/*".into(),
        backends: vec![
            backend("shop/cart-v1:80", 90, 3),
            backend("shop/cart-v2:80", 9, 0),
            RouteBackend {
                error: Some("BackendNotFound".into()),
                ..backend("not there", 1, 0)
            },
        ],
        filters: vec!["mirror shop/cart-next:80 5%".into()],
        ..testers.clone()
    };
    let ours = BoundMatch {
        clients: Some("checkout".into()),
        order: 1,
        rule: "HTTPRoute/checkout/cart#0".into(),
        ..split.clone()
    };
    let redirect = BoundMatch {
        service: "shop/web".into(),
        port: 8080,
        order: 1,
        rule: "HTTPRoute/shop/web#0".into(),
        matches: "GET /old".into(),
        backends: Vec::new(),
        filters: vec!["redirect 301 https /new".into()],
        settings: Vec::new(),
        ..split.clone()
    };
    let nothing = BoundMatch {
        order: 2,
        matches: "~/x[0-9]+".into(),
        filters: Vec::new(),
        ..redirect.clone()
    };
    let good = condition(true, "Accepted", "");
    let resolved = condition(true, "ResolvedRefs", "");
    Routes {
        bound: vec![testers, split, ours, redirect, nothing],
        routes: vec![
            Route {
                kind: "HTTPRoute".into(),
                name: "shop/cart".into(),
                created: None,
                parents: vec![
                    parent("Service shop/cart:80", good.clone()),
                    parent(
                        "Service shop/stock",
                        condition(true, "Accepted", "port 9000 has GRPCRoute shop/stock"),
                    ),
                ],
                resolved_refs: condition(
                    false,
                    "BackendNotFound",
                    "rules[1].backendRefs[2]: there is no Service shop/cart-v3 with port 80",
                ),
            },
            Route {
                kind: "HTTPRoute".into(),
                name: "shop/late".into(),
                created: None,
                parents: vec![parent(
                    "Service shop/gone",
                    condition(false, "NoMatchingParent", "there is no Service shop/gone"),
                )],
                resolved_refs: resolved,
            },
        ],
    }
}
