//! Tests of the catalog: queries, merging, and that a change rebuilds only what it touches.

use std::{net::IpAddr, sync::Arc};

use super::{Catalog, CatalogOptions, SourceId};
use crate::{
    api,
    model::{self, Enrolment, MtlsMode, NotEnrolled, ResourceName, TunnelProtocol},
    policy::{Authorizer, Facts},
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
        Arc::ptr_eq(&v6.state, &web.state),
        "the state is the service's"
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
    assert!(Arc::ptr_eq(&old.state, &new.state));
    let web = ResourceName::new("shop", "web");
    let by_name = after.service_state(&web).unwrap();
    assert!(Arc::ptr_eq(by_name, &new.state));
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

#[test]
fn an_earlier_source_wins() {
    let catalog = catalog();
    let (mut first, mut second) = (Source::new(&catalog), Source::new(&catalog));
    let workload = |name: &str, address: &str, weight: u32| {
        format!(
            "apiVersion: mesh.covet.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {name}, namespace: shop, labels: {{app: web}}}}\n\
             spec: {{addresses: [{address}], weight: {weight}}}\n---\n"
        )
    };
    second.load(
        &(workload("a", "10.0.0.1", 9)
            + &workload("b", "10.0.0.2", 9)
            + &workload("c", "10.0.0.3", 9)),
    );
    // The selector of one source reaches workloads of the other.
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80}]}\n---\n";
    first.load(
        &(service.to_owned() + &workload("a", "10.0.0.9", 1) + &workload("x", "10.0.0.2", 1)),
    );
    let snapshot = catalog.snapshot();
    let endpoints: Vec<String> = snapshot
        .upstream(ip("10.96.0.1"), 80)
        .unwrap()
        .endpoints
        .iter()
        .map(|e| {
            format!(
                "{} {}",
                e.endpoint.workload.as_ref().unwrap().name,
                e.endpoint.address
            )
        })
        .collect();
    assert_eq!(
        endpoints,
        ["x 10.0.0.2:80", "c 10.0.0.3:80", "a 10.0.0.9:80"]
    );
    let said = second.load(&(workload("a", "10.0.0.1", 9) + &workload("b", "10.0.0.2", 9)));
    assert_eq!(
        said,
        [
            "Workload shop/b has address 10.0.0.2 of Workload shop/x",
            "Workload shop/a is defined by an earlier source",
        ]
    );
    assert!(
        catalog
            .snapshot()
            .workload_by_address(ip("10.0.0.3"))
            .is_none()
    );
}

/// A model of the incremental builder: a catalog that is built from nothing for each version.
#[test]
fn edits_in_steps_lead_where_a_fresh_start_does() {
    let steps: Vec<String> = vec![
        SHOP.into(),
        SHOP.replace(
            "app: web}}\nspec: {node: n2",
            "app: other}}\nspec: {node: n2",
        ),
        SHOP.replace("10.1.0.9]}\n- ", "10.1.0.2]}\n- "),
        SHOP.replace(
            "spec: {addresses: [10.1.0.9]}",
            "spec: {addresses: [10.1.0.77]}",
        ),
        SHOP.replace(
            "name: web-1, namespace: shop",
            "name: web-9, namespace: shop",
        ),
        // Two services and two workloads change places.
        SHOP.replace("10.96.0.1,", "10.96.0.7,")
            .replace("[10.96.0.2]", "[10.96.0.1]"),
        SHOP.replace("[10.1.0.1,", "[10.1.0.50,")
            .replace("[10.1.0.2]", "[10.1.0.1]"),
        SHOP.replace("\"true\"", "\"false\""),
        SHOP.replace("port: 81", "port: 8181"),
        SHOP.replace(
            "kubernetes.io/service-name: db",
            "kubernetes.io/service-name: web",
        ),
        format!(
            "{SHOP}---\napiVersion: mesh.covet.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: t, namespace: shop}}\nspec: {{targetRefs: [{{kind: Service, name: web}}], limits: {{maxConnections: 3}}}}\n"
        ),
        format!(
            "{SHOP}---\napiVersion: mesh.covet.dev/v1alpha1\nkind: MeshPolicy\nmetadata: {{name: t, namespace: shop}}\nspec: {{failPolicy: open}}\n"
        ),
        format!("{SHOP}{AUTHORIZATION}"),
        format!("{SHOP}{AUTHORIZATION}").replace("selector: {matchLabels: {app: web}}, ", ""),
        format!("{SHOP}{AUTHORIZATION}{TRUST}"),
        format!("{SHOP}{AUTHORIZATION}").replace(
            "web-2, namespace: shop, labels: {app: web}",
            "web-2, namespace: shop",
        ),
        format!("{SHOP}{AUTHORIZATION}").replace(
            "name: all, namespace: mesh-system",
            "name: all, namespace: shop",
        ),
        String::new(),
        SHOP.into(),
    ];
    let stepwise = catalog();
    let mut source = Source::new(&stepwise);
    for (number, step) in steps.iter().enumerate() {
        let edge = number == 0 || number == steps.len() - 1;
        assert!(edge || step != SHOP, "step {number} changes nothing");
        source.load(step);
        let fresh = catalog();
        Source::new(&fresh).load(step);
        assert_eq!(world(&stepwise), world(&fresh), "step {number}");
    }
}

const AUTHORIZATION: &str = "---
apiVersion: mesh.covet.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: web, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, rules: [{from: [{source: {principals: [cluster.local/ns/shop/*]}}]}]}
---
apiVersion: mesh.covet.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: all, namespace: mesh-system}
spec: {action: DENY, rules: [{from: [{source: {namespaces: [x]}}]}]}
";

const TRUST: &str = "---
apiVersion: mesh.covet.dev/v1alpha1
kind: MeshPolicy
metadata: {name: mesh, namespace: mesh-system}
spec: {trustDomain: mesh.example, trustDomainAliases: [cluster.local, old.example]}
";

fn verdict(authorizer: &Authorizer, principal: &str) -> String {
    let id = format!("spiffe://{principal}").parse().unwrap();
    let facts = Facts {
        source: Some(&id),
        source_ip: ip("10.9.0.1"),
        destination_ip: ip("10.1.0.1"),
        destination_port: 80,
        http: None,
    };
    format!("{:?}", authorizer.decide(&facts))
}

#[test]
fn authorizers_change_with_what_they_are_made_of_and_with_nothing_else() {
    let catalog = catalog();
    let mut source = Source::new(&catalog);
    let of = |name: &str| {
        catalog
            .snapshot()
            .authorizer(&ResourceName::new("shop", name))
    };
    let local = SHOP.replace("node: n2", "node: n1").replace(
        "cm-none-1, ports: {http: 8081}",
        "cm-none-2, ports: {http: 8081}",
    );
    source.load(&local);
    assert!(of("web-1").is_empty() && of("db-0").is_empty());
    assert!(
        Arc::ptr_eq(&of("web-1"), &of("db-0")),
        "nothing is shared as well"
    );

    source.load(&format!("{local}{AUTHORIZATION}"));
    let (web, db) = (of("web-1"), of("db-0"));
    assert!(Arc::ptr_eq(&web, &of("web-2")));
    assert_eq!((web.policies().len(), db.policies().len()), (2, 1));
    assert!(web.protects() && db.protects());

    // Another workload, or another policy of another workload, touches nothing here.
    let edited = local.replace("weight: 3", "weight: 4");
    source.load(&format!("{edited}{AUTHORIZATION}"));
    assert!(Arc::ptr_eq(&web, &of("web-1")) && Arc::ptr_eq(&db, &of("db-0")));
    let elsewhere = "---\napiVersion: mesh.covet.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: x}\nspec: {}\n";
    source.load(&format!("{edited}{AUTHORIZATION}{elsewhere}"));
    assert!(Arc::ptr_eq(&web, &of("web-1")) && Arc::ptr_eq(&db, &of("db-0")));

    // A label moves one workload out of a selector, and the other stays.
    let moved = local.replace(
        "web-2, namespace: shop, labels: {app: web}",
        "web-2, namespace: shop",
    );
    source.load(&format!("{moved}{AUTHORIZATION}"));
    assert!(Arc::ptr_eq(&web, &of("web-1")));
    assert!(Arc::ptr_eq(&db, &of("web-2")));

    // The text of a policy.
    let before = of("web-1");
    source.load(&format!(
        "{moved}{}",
        AUTHORIZATION.replace("ns/shop/*", "ns/ops/*")
    ));
    assert!(!Arc::ptr_eq(&before, &of("web-1")) && Arc::ptr_eq(&db, &of("db-0")));
    let client = "cluster.local/ns/ops/sa/a";
    assert!(verdict(&before, client).starts_with("Deny"));
    assert!(verdict(&of("web-1"), client).starts_with("Allow"));

    // A workload that went, and one that never was.
    source.load(AUTHORIZATION);
    assert!(verdict(&of("web-1"), client).starts_with("Deny(None)"));
}

#[test]
fn a_workload_of_another_node_is_judged_as_well() {
    let catalog = catalog();
    let mut source = Source::new(&catalog);
    source.load(&format!("{SHOP}{AUTHORIZATION}"));
    let snapshot = catalog.snapshot();
    let web_2 = ResourceName::new("shop", "web-2");
    assert_eq!(
        snapshot.workload(&web_2).unwrap().node.as_deref(),
        Some("n2")
    );
    assert_eq!(snapshot.authorizer(&web_2).policies().len(), 2);
    let policy = snapshot.authorization_policies().last().unwrap();
    let of: Vec<String> = snapshot
        .workloads_of(policy)
        .map(|w| w.name.to_string())
        .collect();
    assert_eq!(
        of,
        ["shop/web-1"],
        "web-2 has the label and is not of this node"
    );
}

#[test]
fn identities_are_of_the_trust_domain_of_the_mesh() {
    let catalog = catalog();
    let mut source = Source::new(&catalog);
    let identity = || {
        let snapshot = catalog.snapshot();
        let web = snapshot
            .workload(&ResourceName::new("shop", "web-1"))
            .unwrap();
        web.identity.to_string()
    };
    source.load(SHOP);
    assert_eq!(identity(), "spiffe://cluster.local/ns/shop/sa/default");
    source.load(&format!("{SHOP}{TRUST}"));
    assert_eq!(identity(), "spiffe://mesh.example/ns/shop/sa/default");
    let snapshot = catalog.snapshot();
    assert_eq!(snapshot.trust_domain().as_str(), "mesh.example");
    assert_eq!(snapshot.trust_aliases().len(), 2);
    source.load(SHOP);
    assert_eq!(identity(), "spiffe://cluster.local/ns/shop/sa/default");
}

/// A trust domain alone, with no workload that it changes, is news: certificates of others are judged by it.
#[test]
fn a_trust_domain_alone_is_a_change() {
    let catalog = catalog();
    let mut source = Source::new(&catalog);
    source.load("");
    let before = catalog.snapshot().version;
    source.load(TRUST);
    assert_eq!(catalog.snapshot().version, before + 1);
    assert_eq!(catalog.snapshot().trust_domain().as_str(), "mesh.example");
}

#[test]
fn who_takes_tunnels() {
    let catalog = catalog();
    let mut source = Source::new(&catalog);
    source.load(SHOP);
    let protocol = |name| {
        let snapshot = catalog.snapshot();
        snapshot
            .workload(&ResourceName::new("shop", name))
            .unwrap()
            .protocol
    };
    // Enrolled here, enrolled on another node, without a network namespace.
    assert_eq!(protocol("web-1"), TunnelProtocol::Hbone);
    assert_eq!(protocol("web-2"), TunnelProtocol::Hbone);
    assert_eq!(protocol("db-0"), TunnelProtocol::Tcp);
    source.load(&SHOP.replace("\"true\"", "\"false\""));
    assert_eq!(protocol("web-1"), TunnelProtocol::Tcp);
    source.load(
        &SHOP
            .replace("{node: n1, ", "{node: n1, protocol: TCP, ")
            .replace(
                "spec: {addresses: [10.1.0.9]}",
                "spec: {addresses: [10.1.0.9], protocol: HBONE}",
            ),
    );
    assert_eq!(protocol("web-1"), TunnelProtocol::Tcp);
    assert_eq!(protocol("db-0"), TunnelProtocol::Hbone);
}

#[test]
fn modes_come_from_the_narrowest_policy() {
    let catalog = catalog();
    let mut source = Source::new(&catalog);
    let policy = |name: &str, namespace: &str, spec: &str| {
        format!(
            "---\napiVersion: mesh.covet.dev/v1alpha1\nkind: MeshPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
        )
    };
    let modes = |name: &str| {
        let snapshot = catalog.snapshot();
        let workload = snapshot.workload(&ResourceName::new("shop", name)).unwrap();
        [80, 8080, 9090].map(|port| workload.policy.mtls_of(port))
    };
    use MtlsMode::{Disable, Permissive, Strict};
    source.load(SHOP);
    assert_eq!(modes("web-1"), [Permissive; 3]);
    let mesh = policy("m", "mesh-system", "mtls: {mode: strict}");
    source.load(&format!("{SHOP}{mesh}"));
    assert_eq!(modes("web-1"), [Strict; 3]);
    let namespace = policy("n", "shop", "mtls: {mode: disable}");
    source.load(&format!("{SHOP}{mesh}{namespace}"));
    assert_eq!(
        (modes("web-1"), modes("db-0")),
        ([Disable; 3], [Disable; 3])
    );
    let ports = policy(
        "w",
        "shop",
        "selector: {matchLabels: {app: web}}, mtls: {portModes: {8080: permissive, '9090': strict}}",
    );
    source.load(&format!("{SHOP}{mesh}{namespace}{ports}"));
    assert_eq!(
        (modes("web-1"), modes("db-0")),
        ([Disable, Permissive, Strict], [Disable; 3])
    );
    let both = ports.replace("mtls: {", "mtls: {mode: strict, ");
    source.load(&format!("{SHOP}{mesh}{namespace}{both}"));
    assert_eq!(modes("web-1"), [Strict, Permissive, Strict]);
}

/// All that the queries of a snapshot say.
fn world(catalog: &Catalog) -> String {
    let snapshot = catalog.snapshot();
    let mut lines = Vec::new();
    lines.push(format!(
        "{} {:?}",
        snapshot.trust_domain(),
        snapshot.trust_aliases()
    ));
    for policy in snapshot.authorization_policies() {
        let of: Vec<_> = snapshot.workloads_of(policy).map(|w| &w.name).collect();
        lines.push(format!("{} {:?} {of:?}", policy.policy.name, policy.scope));
    }
    for workload in snapshot.workloads() {
        lines.push(format!("{workload:?}"));
        let authorizer = snapshot.authorizer(&workload.name);
        lines.push(format!("{:?}", authorizer.policies()));
        for client in [
            "cluster.local/ns/shop/sa/default",
            "old.example/ns/shop/sa/default",
            "cluster.local/ns/x/sa/y",
        ] {
            lines.push(verdict(&authorizer, client));
        }
        for address in &workload.addresses {
            let owner = snapshot.workload_by_address(*address).unwrap();
            assert!(Arc::ptr_eq(owner, workload));
        }
    }
    for service in snapshot.services() {
        lines.push(format!("{service:?}"));
        for (vip, port, upstream) in snapshot.upstreams_of(service) {
            if let Some(vip) = vip {
                assert!(Arc::ptr_eq(snapshot.service_by_vip(vip).unwrap(), service));
            }
            assert!(Arc::ptr_eq(&upstream.service, service));
            let endpoints: Vec<_> = upstream.endpoints.iter().map(|e| &e.endpoint).collect();
            lines.push(format!("{vip:?} {port} {endpoints:?}"));
        }
    }
    let mut vips: Vec<IpAddr> = snapshot.vips().collect();
    vips.sort();
    lines.push(format!("{vips:?}"));
    lines.join("\n")
}

/// 10,000 services with 50,000 endpoints, half of them by selector, half in slices.
#[test]
fn a_large_mesh() {
    use std::fmt::Write as _;
    const SERVICES: u32 = 10_000;
    let address =
        |base: u32, n: u32| std::net::Ipv4Addr::from((base << 24) + ((n / 250) << 8) + n % 250 + 1);
    let mut text = String::new();
    for s in 0..SERVICES {
        let vip = address(11, s);
        let by_selector = s % 2 == 0;
        let selector = if by_selector {
            format!(", selector: {{app: a{s}}}")
        } else {
            String::new()
        };
        writeln!(text, "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{s}}}\nspec: {{clusterIP: {vip}, ports: [{{port: 80, targetPort: 8080}}]{selector}}}").unwrap();
        let endpoints = (0..5).map(|e| address(12, s * 5 + e));
        if by_selector {
            for endpoint in endpoints {
                writeln!(text, "---\napiVersion: mesh.covet.dev/v1alpha1\nkind: Workload\nmetadata: {{name: w{}, labels: {{app: a{s}}}}}\nspec: {{addresses: [{endpoint}]}}", u32::from(endpoint)).unwrap();
            }
        } else {
            let list: Vec<String> = endpoints.map(|e| format!("{{addresses: [{e}]}}")).collect();
            writeln!(text, "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: e{s}, labels: {{kubernetes.io/service-name: s{s}}}}}\naddressType: IPv4\nports: [{{port: 8080}}]\nendpoints: [{}]", list.join(", ")).unwrap();
        }
    }
    let catalog = catalog();
    let mut source = Source::new(&catalog);
    source.load(&text);
    let before = catalog.snapshot();
    assert_eq!(
        (before.services().len(), before.vips().len()),
        (10_000, 10_000)
    );
    let endpoints: usize = before.services().map(|s| s.ports[0].endpoints.len()).sum();
    assert_eq!(endpoints, 50_000);
    for s in [0, 1, 4_999, 9_998, 9_999] {
        let upstream = before.upstream(address(11, s).into(), 80).unwrap();
        let addresses: Vec<_> = upstream
            .endpoints
            .iter()
            .map(|e| e.endpoint.address.ip())
            .collect();
        let expected: Vec<IpAddr> = (0..5).map(|e| address(12, s * 5 + e).into()).collect();
        assert_eq!(addresses, expected);
    }

    // One endpoint of one service changes: nothing else may be made anew.
    let old = format!("[{}]", address(12, 777 * 5));
    assert_eq!(text.matches(&old).count(), 1);
    source.load(&text.replace(&old, "[13.0.0.1]"));
    let after = catalog.snapshot();
    let mut made_anew = Vec::new();
    for (old, new) in before.services().zip(after.services()) {
        if !Arc::ptr_eq(old, new) {
            made_anew.push(new.name.to_string());
        }
    }
    assert_eq!(made_anew, ["default/s777"]);
    assert!(
        before
            .workloads()
            .zip(after.workloads())
            .all(|(old, new)| Arc::ptr_eq(old, new))
    );
    let upstream = after.upstream(address(11, 777).into(), 80).unwrap();
    assert_eq!(
        upstream.endpoints[4].endpoint.address.to_string(),
        "13.0.0.1:8080"
    );
}

/// Preference for near endpoints: of the policy, else of the service, else of hints that every endpoint has.
#[test]
fn near_endpoints_first() {
    use model::{Locality, Prefer};
    let catalog = catalog();
    let mut source = Source::new(&catalog);
    let mut prefers = |service: &str, policy: &str, endpoints: &str| {
        source.load(&format!(
            r#"
apiVersion: v1
kind: Service
metadata: {{name: db, namespace: shop}}
spec: {{clusterIPs: [10.96.0.2], ports: [{{port: 5432}}], {service}}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: db-1, namespace: shop, labels: {{kubernetes.io/service-name: db}}}}
addressType: IPv4
endpoints: [{endpoints}]
ports: [{{port: 15432}}]
---
apiVersion: mesh.covet.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: db, namespace: shop}}
spec: {{targetRefs: [{{kind: Service, name: db}}], loadBalancer: {{{policy}}}}}
"#
        ));
        let snapshot = catalog.snapshot();
        let upstream = snapshot.upstream(ip("10.96.0.2"), 5432).unwrap();
        let places: Vec<String> = upstream
            .endpoints
            .iter()
            .map(|e| {
                let (zone, node) = (&e.endpoint.zone, &e.endpoint.node);
                [zone, node].map(|o| o.as_deref().unwrap_or("-")).join("/")
            })
            .collect();
        let Locality { prefer, threshold } = upstream.service.traffic.load_balancer.locality;
        (prefer, threshold, places.join(" "))
    };
    let plain =
        "{addresses: [10.1.0.8], zone: z1, nodeName: n1}, {addresses: [10.1.0.9], zone: z2}";
    let hinted = "{addresses: [10.1.0.8], zone: z1, hints: {forZones: [{name: z3}]}}, {addresses: [10.1.0.9], zone: z2, hints: {forZones: [{name: z2}, {name: z1}]}}";
    let by_node = "{addresses: [10.1.0.8], zone: z1, hints: {forNodes: [{name: n7}]}}";
    let half = "{addresses: [10.1.0.8], hints: {forZones: [{name: z3}]}}, {addresses: [10.1.0.9]}";
    let near = |prefer, places: &str| (prefer, 70, places.to_owned());

    let none = (Prefer::None, 0, "z1/n1 z2/-".to_owned());
    assert_eq!(prefers("", "", plain), none);
    let close = prefers("trafficDistribution: PreferClose", "", plain);
    assert_eq!(close, near(Prefer::Zone, "z1/n1 z2/-"));
    let node = prefers("trafficDistribution: PreferSameNode", "", plain);
    assert_eq!(node, near(Prefer::Node, "z1/n1 z2/-"));
    assert_eq!(prefers("", "", hinted), near(Prefer::Zone, "z3/- z2/-"));
    assert_eq!(prefers("", "", by_node), near(Prefer::Node, "z1/n7"));
    assert_eq!(prefers("", "", half).0, Prefer::None);
    let policy = "locality: {prefer: node, threshold: 5}";
    let wins = prefers("trafficDistribution: PreferClose", policy, hinted);
    assert_eq!((wins.0, wins.1), (Prefer::Node, 5));
    let off = prefers(
        "trafficDistribution: PreferClose",
        "locality: {prefer: none}",
        hinted,
    );
    assert_eq!(off.0, Prefer::None);
}
