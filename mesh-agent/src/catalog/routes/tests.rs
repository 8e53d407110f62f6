//! Tests of routes in the catalog: who they are for, what stays from one snapshot to the next, statuses.

use std::sync::Arc;

use http::{HeaderMap, Method, Uri};

use super::{Reason, RouteScope};
use crate::{
    api,
    catalog::{Catalog, CatalogOptions, Snapshot, SourceId},
    model::ResourceName,
    routing::{BackendError, RequestView, RouteKind, Rule},
};

struct World {
    catalog: Arc<Catalog>,
    source: SourceId,
    loader: api::Loader,
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let catalog = Catalog::with_options(CatalogOptions {
            node: "n1".into(),
            root_namespace: "mesh-system".into(),
            exceptions: Vec::new(),
        });
        let dir = tempfile::tempdir().unwrap();
        Self {
            source: catalog.register(),
            loader: api::Loader::new(dir.path(), api::Environment::default()),
            catalog,
            dir,
        }
    }

    fn load(&mut self, documents: &[&str]) -> Arc<Snapshot> {
        std::fs::write(self.dir.path().join("all.yaml"), documents.join("---\n")).unwrap();
        match self.loader.load() {
            Ok(outcome) => self.catalog.apply(self.source, outcome.config),
            Err(errors) => panic!("{errors:#?}"),
        };
        self.catalog.snapshot()
    }
}

const SERVICES: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIPs: [10.96.0.1]
  ports: [{name: http, port: 80}, {name: admin, port: 81}]
---
apiVersion: v1
kind: Service
metadata: {name: web-v1, namespace: shop}
spec:
  clusterIP: None
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: bare, namespace: shop}
spec: {ports: [{port: 80}]}
---
apiVersion: mesh.covet.dev/v1alpha1
kind: Workload
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {addresses: [10.1.0.1, "fd00:1::1"]}
---
apiVersion: mesh.covet.dev/v1alpha1
kind: Workload
metadata: {name: web-2, namespace: shop, labels: {app: web}}
spec: {addresses: [10.1.0.2]}
"#;

const V2: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web-v2, namespace: shop}
spec:
  clusterIPs: [10.96.0.2]
  ports: [{port: 80}]
"#;

fn route(kind: &str, name: &str, parent: &str, rules: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  parentRefs: [{parent}]\n  rules: [{rules}]\n"
    )
}

fn http(name: &str, parent: &str, rules: &str) -> String {
    route("HTTPRoute", name, parent, rules)
}

const WEB: &str = "{group: \"\", kind: Service, name: web, namespace: shop}";
const WEB_80: &str = "{group: \"\", kind: Service, name: web, namespace: shop, port: 80}";
const TO_V1: &str = "{backendRefs: [{name: web-v1, namespace: shop, port: 80}]}";
const SPLIT: &str =
    "{backendRefs: [{name: web-v1, port: 80, weight: 70}, {name: web-v2, port: 80, weight: 30}]}";

fn web() -> ResourceName {
    ResourceName::new("shop", "web")
}

/// The rule that `GET /path` takes, from clients of a namespace; `None`: no table, `Some(None)`: 404.
fn taken(snapshot: &Snapshot, client: &str, port: u16, path: &str) -> Option<Option<Arc<Rule>>> {
    let table = snapshot.routes(client, &web(), port)?;
    let (uri, headers): (Uri, _) = (path.parse().unwrap(), HeaderMap::new());
    let found = table.find(RequestView {
        method: &Method::GET,
        uri: &uri,
        headers: &headers,
    });
    Some(found.map(|found| Arc::clone(found.rule)))
}

fn label(snapshot: &Snapshot, client: &str, port: u16, path: &str) -> String {
    match taken(snapshot, client, port, path) {
        None => "default".to_owned(),
        Some(None) => "404".to_owned(),
        Some(Some(rule)) => rule.label.to_string(),
    }
}

fn status(snapshot: &Snapshot, kind: RouteKind, name: &str) -> super::RouteStatus {
    let mut all = snapshot.route_statuses();
    let found =
        all.find(|status| status.route.kind == kind && status.route.name.to_string() == name);
    (**found.unwrap()).clone()
}

#[test]
fn without_a_route_the_default_and_with_one_404_for_the_rest() {
    let mut world = World::new();
    let snapshot = world.load(&[SERVICES]);
    assert_eq!(label(&snapshot, "any", 80, "/a"), "default");
    let exact = format!(
        "{{matches: [{{path: {{type: Exact, value: /a}}}}], {}",
        &TO_V1[1..]
    );
    let snapshot = world.load(&[SERVICES, &http("shop/r", WEB_80, &exact)]);
    assert_eq!(label(&snapshot, "any", 80, "/a"), "HTTPRoute/shop/r#0");
    assert_eq!(label(&snapshot, "any", 80, "/b"), "404");
    assert_eq!(label(&snapshot, "any", 81, "/a"), "default", "another port");
    let snapshot = world.load(&[SERVICES]);
    assert_eq!(label(&snapshot, "any", 80, "/a"), "default");
    assert_eq!(snapshot.route_statuses().len(), 0);
}

#[test]
fn a_parent_without_port_is_every_port_and_a_name_is_one() {
    let mut world = World::new();
    let snapshot = world.load(&[SERVICES, &http("shop/r", WEB, TO_V1)]);
    assert_eq!(label(&snapshot, "any", 80, "/"), "HTTPRoute/shop/r#0");
    assert_eq!(label(&snapshot, "any", 81, "/"), "HTTPRoute/shop/r#0");
    let parent = "{group: \"\", kind: Service, name: web, sectionName: admin}";
    let snapshot = world.load(&[SERVICES, &http("shop/r", parent, TO_V1)]);
    assert_eq!(label(&snapshot, "any", 80, "/"), "default");
    assert_eq!(label(&snapshot, "any", 81, "/"), "HTTPRoute/shop/r#0");
}

#[test]
fn a_consumer_route_is_for_its_namespace_and_wins_there() {
    let mut world = World::new();
    let producer = http("shop/producer", WEB, TO_V1);
    let exact = format!("{{matches: [{{path: {{value: /a}}}}], {}", &TO_V1[1..]);
    let consumer = http("client/consumer", WEB_80, &exact);
    let snapshot = world.load(&[SERVICES, &consumer]);
    assert_eq!(
        label(&snapshot, "client", 80, "/a"),
        "HTTPRoute/client/consumer#0"
    );
    assert_eq!(label(&snapshot, "other", 80, "/a"), "default");
    assert_eq!(label(&snapshot, "shop", 80, "/a"), "default");
    let snapshot = world.load(&[SERVICES, &producer, &consumer]);
    assert_eq!(
        label(&snapshot, "client", 80, "/a"),
        "HTTPRoute/client/consumer#0"
    );
    assert_eq!(
        label(&snapshot, "client", 80, "/b"),
        "404",
        "the producer's are not merged"
    );
    assert_eq!(
        label(&snapshot, "client", 81, "/a"),
        "HTTPRoute/shop/producer#0"
    );
    assert_eq!(
        label(&snapshot, "other", 80, "/b"),
        "HTTPRoute/shop/producer#0"
    );
    let [scope] =
        [RouteKind::Http].map(|kind| status(&snapshot, kind, "client/consumer").parents[0].scope);
    assert_eq!(scope, RouteScope::Consumer);
}

#[test]
fn grpc_beats_http_in_its_group_and_the_loser_says_so() {
    let mut world = World::new();
    let on_both = http("shop/h", WEB, TO_V1);
    let on_80 = http("shop/only", WEB_80, TO_V1);
    let consumer = http("client/h", WEB_80, TO_V1);
    let grpc = route("GRPCRoute", "shop/g", WEB_80, TO_V1);
    let snapshot = world.load(&[SERVICES, &on_both, &on_80, &consumer, &grpc]);
    assert_eq!(label(&snapshot, "any", 80, "/a/b"), "GRPCRoute/shop/g#0");
    assert_eq!(label(&snapshot, "any", 81, "/a/b"), "HTTPRoute/shop/h#0");
    assert_eq!(
        label(&snapshot, "client", 80, "/a/b"),
        "HTTPRoute/client/h#0",
        "another group"
    );

    let lost = status(&snapshot, RouteKind::Http, "shop/only");
    assert!(!lost.parents[0].accepted.status);
    assert_eq!(lost.parents[0].accepted.reason, Reason::Conflicted);
    assert_eq!(
        lost.parents[0].accepted.message,
        "port 80 has GRPCRoute shop/g"
    );
    let partly = status(&snapshot, RouteKind::Http, "shop/h");
    assert!(partly.parents[0].accepted.status);
    assert_eq!(partly.parents[0].ports, [81]);
    assert_eq!(
        partly.parents[0].accepted.message,
        "port 80 has GRPCRoute shop/g"
    );
    assert!(
        status(&snapshot, RouteKind::Http, "client/h").parents[0]
            .accepted
            .status
    );

    let snapshot = world.load(&[SERVICES, &on_both, &on_80, &consumer]);
    let won = status(&snapshot, RouteKind::Http, "shop/only");
    assert_eq!(
        (won.parents[0].accepted.status, &won.parents[0].ports[..]),
        (true, &[80][..])
    );
    assert_eq!(label(&snapshot, "any", 80, "/a/b"), "HTTPRoute/shop/h#0");
}

#[test]
fn parents_that_cannot_be_bound_are_status_and_come_to_life() {
    let mut world = World::new();
    let parents = "{group: \"\", kind: Service, name: web-v2}, {name: gw}, {group: \"\", kind: Service, name: web, port: 82}, {group: \"\", kind: Service, name: bare}";
    let route = http("shop/r", parents, TO_V1);
    let snapshot = world.load(&[SERVICES, &route]);
    let found = status(&snapshot, RouteKind::Http, "shop/r");
    let messages: Vec<&str> = found
        .parents
        .iter()
        .map(|p| p.accepted.message.as_str())
        .collect();
    assert_eq!(
        messages,
        [
            "there is no Service shop/web-v2",
            "in a mesh routes are bound to Services of the core group, not to Gateway shop/gw",
            "Service shop/web has no port 82",
            "Service shop/bare has no virtual address, and traffic to the addresses of its pods is not routed",
        ]
    );
    for parent in &found.parents {
        assert_eq!(parent.accepted.reason, Reason::NoMatchingParent);
        assert!(!parent.accepted.status);
    }
    let snapshot = world.load(&[SERVICES, V2, &route]);
    let found = status(&snapshot, RouteKind::Http, "shop/r");
    assert!(found.parents[0].accepted.status);
    assert!(
        snapshot
            .routes("any", &ResourceName::new("shop", "web-v2"), 80)
            .is_some()
    );
}

#[test]
fn backends_are_resolved_when_services_come_and_go() {
    let mut world = World::new();
    let rules = "{backendRefs: [{name: web-v1, port: 80}, {name: web-v2, port: 80}, {name: web-v1, port: 81}, {group: x.io, kind: Bucket, name: b, weight: 0}]}";
    let route = http("shop/r", WEB, rules);
    let snapshot = world.load(&[SERVICES, &route]);
    let rule = taken(&snapshot, "any", 80, "/").unwrap().unwrap();
    let services: Vec<_> = rule
        .backends
        .iter()
        .map(|backend| backend.service.clone())
        .collect();
    assert_eq!(
        services,
        [
            Ok((ResourceName::new("shop", "web-v1"), 80)),
            Err(BackendError::NotFound),
            Err(BackendError::NotFound),
            Err(BackendError::InvalidKind),
        ]
    );
    let found = status(&snapshot, RouteKind::Http, "shop/r").resolved_refs;
    assert_eq!((found.status, found.reason), (false, Reason::InvalidKind));
    assert_eq!(
        found.message,
        "rules[0].backendRefs[1]: there is no Service shop/web-v2 with port 80; rules[0].backendRefs[2]: there is no Service shop/web-v1 with port 81; rules[0].backendRefs[3]: Bucket shop/b is no Service"
    );
    let snapshot = world.load(&[SERVICES, V2, &route]);
    let rule = taken(&snapshot, "any", 80, "/").unwrap().unwrap();
    assert_eq!(
        rule.backends[1].service,
        Ok((ResourceName::new("shop", "web-v2"), 80))
    );
}

#[test]
fn what_a_change_does_not_touch_stays_with_its_split() {
    let mut world = World::new();
    let (split, other) = (
        http("shop/split", WEB_80, SPLIT),
        http("shop/zz", WEB_80, TO_V1),
    );
    let before = world.load(&[SERVICES, V2, &split]);
    let rule = taken(&before, "any", 80, "/").unwrap().unwrap();
    let first: Vec<usize> = (0..5)
        .map(|_| rule.pick(false, |_| true).unwrap())
        .collect();

    let after = world.load(&[SERVICES, V2, &split, &other]);
    let same = taken(&after, "any", 80, "/").unwrap().unwrap();
    assert!(
        Arc::ptr_eq(&rule, &same),
        "another route of the service came"
    );
    let reworded = split.replace("spec:", "spec: # a remark");
    let after = world.load(&[SERVICES, V2, &reworded, &other]);
    let same = taken(&after, "any", 80, "/").unwrap().unwrap();
    assert!(Arc::ptr_eq(&rule, &same), "nothing that counts is new");

    let endpoints = SERVICES.replace("10.1.0.2", "10.1.0.3");
    let table = Arc::clone(after.routes("any", &web(), 80).unwrap());
    let after = world.load(&[&endpoints, V2, &reworded, &other]);
    assert!(
        Arc::ptr_eq(&table, after.routes("any", &web(), 80).unwrap()),
        "only endpoints"
    );

    // The backend goes: another rule, but the split goes on.
    let after = world.load(&[&endpoints, &reworded, &other]);
    let next = taken(&after, "any", 80, "/").unwrap().unwrap();
    assert!(!Arc::ptr_eq(&rule, &next));
    let rest: Vec<usize> = (0..5)
        .map(|_| next.pick(false, |_| true).unwrap())
        .collect();
    let seven = first.iter().chain(&rest).filter(|pick| **pick == 0).count();
    assert_eq!(seven, 7, "{first:?} {rest:?}");
}

#[test]
fn an_older_route_goes_first() {
    let mut world = World::new();
    let aged = |name: &str, created: &str| {
        http(name, WEB_80, TO_V1).replace(
            "namespace: shop}",
            &format!("namespace: shop, creationTimestamp: {created}}}"),
        )
    };
    let (old, young) = (
        aged("shop/z", "2026-01-01T00:00:00Z"),
        aged("shop/a", "2026-01-01T00:00:01Z"),
    );
    let snapshot = world.load(&[SERVICES, &old, &young]);
    assert_eq!(label(&snapshot, "any", 80, "/"), "HTTPRoute/shop/z#0");
}

#[test]
fn a_policy_of_a_route_reaches_its_rules() {
    let mut world = World::new();
    let route = http("shop/r", WEB_80, TO_V1);
    let policy = "apiVersion: mesh.covet.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: p, namespace: shop}\nspec:\n  targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}]\n  timeouts: {request: 3s}\n";
    let snapshot = world.load(&[SERVICES, &route]);
    assert!(
        taken(&snapshot, "any", 80, "/")
            .unwrap()
            .unwrap()
            .policy
            .is_none()
    );
    let snapshot = world.load(&[SERVICES, &route, policy]);
    let rule = taken(&snapshot, "any", 80, "/").unwrap().unwrap();
    let timeout = rule.policy.as_ref().unwrap().timeouts.request;
    assert_eq!(timeout, Some(std::time::Duration::from_secs(3)));
    let snapshot = world.load(&[SERVICES, &route]);
    assert!(
        taken(&snapshot, "any", 80, "/")
            .unwrap()
            .unwrap()
            .policy
            .is_none()
    );
}

#[test]
fn a_service_without_virtual_address_is_a_backend_with_state_of_its_own() {
    let mut world = World::new();
    let snapshot = world.load(&[SERVICES]);
    let name = ResourceName::new("shop", "web-v1");
    let addresses = |snapshot: &Snapshot, ipv6| -> Vec<String> {
        let upstream = snapshot.backend(&name, 80, ipv6).unwrap();
        let endpoints = upstream.endpoints.iter();
        endpoints.map(|e| e.endpoint.address.to_string()).collect()
    };
    assert_eq!(
        addresses(&snapshot, false),
        ["10.1.0.1:8080", "10.1.0.2:8080"]
    );
    assert_eq!(addresses(&snapshot, true), ["[fd00:1::1]:8080"]);
    assert!(snapshot.backend(&name, 81, false).is_none());
    let bare = ResourceName::new("shop", "bare");
    assert!(
        snapshot
            .backend(&bare, 80, true)
            .unwrap()
            .endpoints
            .is_empty()
    );

    let kept = Arc::clone(&snapshot.backend(&name, 80, false).unwrap().endpoints[0].state);
    let after = world.load(&[&SERVICES.replace("10.1.0.2", "10.1.0.3")]);
    let upstream = after.backend(&name, 80, false).unwrap();
    assert_eq!(
        upstream.endpoints[1].endpoint.address.to_string(),
        "10.1.0.3:8080"
    );
    assert!(Arc::ptr_eq(&kept, &upstream.endpoints[0].state));
    let gone = world.load(&[V2]);
    assert!(gone.backend(&name, 80, false).is_none());
    let by_vip = gone.backend(&ResourceName::new("shop", "web-v2"), 80, true);
    assert!(by_vip.is_some(), "IPv4 only, dialled by IPv6");
}

/// All that can be seen of routes, but for the versions.
fn seen(snapshot: &Snapshot) -> String {
    let mut lines = Vec::new();
    for (service, routes) in snapshot.routed_services() {
        for (port, clients, table) in routes.iter() {
            for listed in table.iter() {
                lines.push(format!(
                    "{service} {port} {clients:?} {} {} {:?} {:?}",
                    listed.rule.label, listed.matched, listed.rule.backends, listed.rule.policy
                ));
            }
        }
    }
    // Services are in no order; sorting keeps that of the matches out of it, which other tests hold.
    lines.sort();
    lines.extend(
        snapshot
            .route_statuses()
            .map(|status| format!("{status:?}")),
    );
    lines.join("\n")
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(64))]

    /// Whatever comes and goes in whatever order, what is left is as if it had been there from the start.
    #[test]
    fn steps_lead_where_a_fresh_start_does(steps in proptest::collection::vec(proptest::prelude::any::<u16>(), 1..8)) {
        let policy = "apiVersion: mesh.covet.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: p, namespace: shop}\nspec:\n  targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: h}]\n  timeouts: {request: 3s}\n".to_owned();
        let pool = [
            SERVICES.to_owned(),
            SERVICES.replace("name: admin, port: 81", "name: admin, port: 82"),
            V2.to_owned(),
            http("shop/h", WEB, SPLIT),
            http("shop/i", WEB_80, TO_V1),
            http("client/h", WEB, TO_V1),
            http("client/i", "{group: \"\", kind: Service, name: web-v2, namespace: shop}", TO_V1),
            route("GRPCRoute", "shop/g", WEB_80, TO_V1),
            route("GRPCRoute", "client/g", WEB, TO_V1),
            policy,
        ];
        let mut world = World::new();
        for step in steps {
            let mut documents: Vec<&str> = Vec::new();
            for (nth, document) in pool.iter().enumerate() {
                // The first two are the same services with other ports.
                let other = nth == 1 && step & 1 != 0;
                if step & (1 << nth) != 0 && !other {
                    documents.push(document);
                }
            }
            let steps = seen(&world.load(&documents));
            proptest::prop_assert_eq!(steps, seen(&World::new().load(&documents)));
        }
    }
}
