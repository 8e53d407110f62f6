//! Tests of the catalog: queries, merging, and that a change rebuilds only what it touches.

use std::{net::IpAddr, sync::Arc};

use super::{Catalog, CatalogOptions, SourceId};
use crate::{
    api,
    model::{Enrolment, NotEnrolled, ResourceName},
};

fn catalog() -> Arc<Catalog> {
    Catalog::with_options(CatalogOptions {
        node: "n1".into(),
        root_namespace: "mesh-system".into(),
        exceptions: Vec::new(),
    })
}

/// A source that reads one file again and again, as the directory loader does.
struct Source {
    catalog: Arc<Catalog>,
    id: SourceId,
    loader: api::Loader,
    dir: tempfile::TempDir,
}

impl Source {
    fn new(catalog: &Arc<Catalog>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            catalog: Arc::clone(catalog),
            id: catalog.register(),
            loader: api::Loader::new(dir.path(), api::Environment::default()),
            dir,
        }
    }

    fn load(&mut self, text: &str) -> Vec<String> {
        std::fs::write(self.dir.path().join("all.yaml"), text).unwrap();
        let outcome = match self.loader.load() {
            Ok(outcome) => outcome,
            Err(errors) => panic!("{errors:#?}"),
        };
        self.catalog.apply(self.id, outcome.config)
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

const SHOP: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {mesh.covet.dev/enabled: "true"}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIPs: [10.96.0.1, "fd00:96::1"]
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: http}
  - {name: admin, port: 81, targetPort: 9000}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec:
  clusterIPs: [10.96.0.2]
  ports: [{port: 5432}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-1, namespace: shop, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
endpoints:
- {addresses: [10.1.0.9]}
- {addresses: [10.1.0.8], conditions: {ready: false}}
- {addresses: [10.1.0.7], zone: z2}
ports: [{port: 15432}]
---
apiVersion: mesh.covet.dev/v1alpha1
kind: Workload
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {node: n1, addresses: [10.1.0.1, "fd00:1::1"], netns: /run/netns/cm-none-1, weight: 3, ports: {http: 8080}}
---
apiVersion: mesh.covet.dev/v1alpha1
kind: Workload
metadata: {name: web-2, namespace: shop, labels: {app: web}}
spec: {node: n2, addresses: [10.1.0.2], netns: /run/netns/cm-none-1, ports: {http: 8081}}
---
apiVersion: mesh.covet.dev/v1alpha1
kind: Workload
metadata: {name: db-0, namespace: shop}
spec: {addresses: [10.1.0.9]}
"#;

#[test]
fn queries() {
    let catalog = catalog();
    Source::new(&catalog).load(SHOP);
    let snapshot = catalog.snapshot();
    assert_eq!(snapshot.version, 1);

    let web = snapshot.upstream(ip("10.96.0.1"), 80).unwrap();
    let addresses: Vec<String> = web
        .endpoints
        .iter()
        .map(|e| e.endpoint.address.to_string())
        .collect();
    assert_eq!(addresses, ["10.1.0.1:8080", "10.1.0.2:8081"]);
    assert_eq!(web.endpoints[0].endpoint.weight, 3);
    let v6 = snapshot.upstream(ip("fd00:96::1"), 81).unwrap();
    assert_eq!(v6.endpoints.len(), 1, "the family of the virtual address");
    assert_eq!(
        v6.endpoints[0].endpoint.address.to_string(),
        "[fd00:1::1]:9000"
    );
    assert!(
        Arc::ptr_eq(&v6.limits, &web.limits),
        "limits are the service's"
    );

    let db = snapshot.upstream(ip("10.96.0.2"), 5432).unwrap();
    let endpoints: Vec<_> = db.endpoints.iter().map(|e| &e.endpoint).collect();
    assert_eq!(endpoints.len(), 2, "one is not ready");
    assert_eq!(endpoints[0].address.to_string(), "10.1.0.7:15432");
    assert_eq!(endpoints[0].zone.as_deref(), Some("z2"));
    assert_eq!(
        endpoints[1].workload,
        Some(ResourceName::new("shop", "db-0"))
    );

    assert!(snapshot.upstream(ip("10.96.0.1"), 82).is_none());
    assert!(snapshot.upstream(ip("10.96.0.9"), 80).is_none());
    assert_eq!(
        &*snapshot.service_by_vip(ip("fd00:96::1")).unwrap().name.name,
        "web"
    );
    let local: Vec<&str> = snapshot.local_workloads().map(|w| &*w.name.name).collect();
    assert_eq!(local, ["db-0", "web-1"]);
    assert_eq!(snapshot.vips().count(), 3);

    let why = |name| {
        snapshot
            .workload(&ResourceName::new("shop", name))
            .unwrap()
            .enrolment
    };
    assert_eq!(why("web-1"), Enrolment::Enrolled);
    assert_eq!(why("web-2"), Enrolment::NotEnrolled(NotEnrolled::OtherNode));
    assert_eq!(why("db-0"), Enrolment::NotEnrolled(NotEnrolled::NoNetns));
}

#[test]
fn a_change_rebuilds_only_what_it_touches() {
    let catalog = catalog();
    let mut source = Source::new(&catalog);
    source.load(SHOP);
    let before = catalog.snapshot();
    let mut versions = catalog.subscribe();
    source.load(&SHOP.replace("weight: 3", "weight: 5"));
    let after = catalog.snapshot();
    assert_eq!(*versions.borrow_and_update(), 2);

    let upstream =
        |of: &super::Snapshot, vip, port| Arc::clone(of.upstream(ip(vip), port).unwrap());
    let (old, new) = (
        upstream(&before, "10.96.0.1", 80),
        upstream(&after, "10.96.0.1", 80),
    );
    assert!(!Arc::ptr_eq(&old, &new));
    assert_eq!(new.endpoints[0].endpoint.weight, 5);
    for (old, new) in old.endpoints.iter().zip(&new.endpoints) {
        assert!(
            Arc::ptr_eq(&old.state, &new.state),
            "run-time state goes on"
        );
    }
    assert!(Arc::ptr_eq(&old.limits, &new.limits));
    assert!(Arc::ptr_eq(&old.ejections, &new.ejections));

    let (old, new) = (
        upstream(&before, "10.96.0.2", 5432),
        upstream(&after, "10.96.0.2", 5432),
    );
    assert!(Arc::ptr_eq(&old, &new), "another service is left alone");
    let workload = |of: &super::Snapshot, name| {
        Arc::clone(of.workload(&ResourceName::new("shop", name)).unwrap())
    };
    assert!(Arc::ptr_eq(
        &workload(&before, "web-2"),
        &workload(&after, "web-2")
    ));
    assert!(!Arc::ptr_eq(
        &workload(&before, "web-1"),
        &workload(&after, "web-1")
    ));

    source.load(&format!(
        "# a comment\n\n{}",
        SHOP.replace("weight: 3", "weight: 5")
    ));
    assert_eq!(catalog.snapshot().version, 2, "nothing changed");
}

#[test]
fn netns_cookies() {
    let catalog = catalog();
    let name = ResourceName::new("shop", "web-1");
    catalog.bind_netns(7, name.clone());
    assert_eq!(catalog.workload_by_netns(7), Some(name));
    catalog.unbind_netns(7);
    assert_eq!(catalog.workload_by_netns(7), None);
}
