//! Every kind of bad YAML with the whole message: line, column, field, what was expected.

use crate::api::{ConfigError, parse_bytes};

pub(super) fn errors(text: &str) -> Vec<String> {
    match parse_bytes("f", text.as_bytes()) {
        Ok((config, _)) => panic!("accepted {} resources of:\n{text}", config.resources()),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

pub(super) fn warnings(text: &str) -> Vec<String> {
    match parse_bytes("f", text.as_bytes()) {
        Ok((_, warnings)) => warnings.iter().map(ToString::to_string).collect(),
        Err(errors) => panic!("{errors:#?}\nof:\n{text}"),
    }
}

/// Each text with all of its errors.
fn check(table: &[(&str, &[&str])]) {
    let mut wrong = Vec::new();
    for (text, expected) in table {
        let got = errors(text);
        if got != *expected {
            wrong.push(format!(
                "{text}\n  expected {expected:#?}\n  got      {got:#?}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn yaml() {
    check(&[
        (
            "a: [b\nc: {}\n",
            &["f:2:2: not valid YAML: illegal placement of ':' indicator"],
        ),
        (
            "kind: x\nmetadata:\n\tname: x\n",
            &["f:3:2: not valid YAML: tabs disallowed within this context (block indentation)"],
        ),
        (
            "- a\n",
            &["f:1:1: expected a resource (a mapping), got a list"],
        ),
        (
            "just text\n",
            &["f:1:1: expected a resource (a mapping), got \"just text\""],
        ),
        (
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n  name: b\n",
            &["f:5:3: metadata.name: field given twice, first 1 line above"],
        ),
        (
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: !secret a\n",
            &["f:4:17: metadata.name: YAML tag !secret is not supported"],
        ),
        (
            "apiVersion: v1\nkind: Namespace\nmetadata: &m\n  name: a\n  labels:\n    <<: *m\n",
            &["f:6:5: metadata.labels: merge keys are not supported: write the fields out"],
        ),
        (
            "apiVersion: v1\nkind: Namespace\nmetadata: &a {name: *a}\n",
            &["f:3:21: metadata.name: alias refers to itself"],
        ),
        (
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  ? [a]\n  : b\n",
            &["f:4:5: metadata: expected a string as key, got a list or mapping"],
        ),
    ]);
}

#[test]
fn kinds() {
    check(&[
        (
            "metadata: {name: a}\n",
            &[
                "f:1:1: apiVersion: required field is missing",
                "f:1:1: kind: required field is missing",
            ],
        ),
        (
            "apiVersion: v1\nkind: 7\n",
            &[
                "f:2:7: kind: expected Namespace, Service, EndpointSlice, Workload, MeshPolicy, TrafficPolicy, AuthorizationPolicy, HTTPRoute, GRPCRoute, got 7",
            ],
        ),
        (
            "apiVersion: mesh.covet.dev/v1alpha1\nkind: Worload\n",
            &[
                "f:2:7: kind: expected one of Namespace, Service, EndpointSlice, Workload, MeshPolicy, TrafficPolicy, AuthorizationPolicy, HTTPRoute, GRPCRoute, got \"Worload\"",
            ],
        ),
        (
            "apiVersion: mesh.covet.dev/v9\nkind: Workload\n",
            &[
                "f:1:13: apiVersion: expected mesh.covet.dev/v1alpha1 for a Workload, got \"mesh.covet.dev/v9\"",
            ],
        ),
        (
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n",
            &[
                "f:1:13: apiVersion: expected mesh.covet.dev/v1alpha1 for an AuthorizationPolicy, got \"security.istio.io/v1\"",
            ],
        ),
        (
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n",
            &[
                "f:2:7: kind: PeerAuthentication is not supported: write a MeshPolicy (mesh.covet.dev/v1alpha1) with spec.mtls",
            ],
        ),
        (
            "apiVersion: gateway.networking.k8s.io/v1\nkind: TLSRoute\n",
            &[
                "f:2:7: kind: TLSRoute is not yet supported: this version has HTTPRoute and GRPCRoute",
            ],
        ),
        (
            "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Namespace\n  metadata: {name: A}\n- 3\n",
            &[
                "f:6:20: items[0].metadata.name: expected at most 253 lower-case letters, digits, '-' and '.', each part beginning and ending with a letter or digit, got \"A\"",
                "f:7:3: items[1]: expected a resource (a mapping), got 3",
            ],
        ),
        (
            "apiVersion: v1\nkind: List\n",
            &["f:1:1: items: expected a list of resources, got nothing"],
        ),
    ]);
}

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec:\n";

fn service(spec: &str) -> String {
    format!("{SERVICE}{spec}")
}

pub(super) fn check_owned(table: &[(String, &[&str])]) {
    let table: Vec<(&str, &[&str])> = table.iter().map(|(text, e)| (text.as_str(), *e)).collect();
    check(&table);
}

#[test]
fn services() {
    check_owned(&[
        (
            service("  clusterIPs: [10.0.0.1]\n  selecter: {a: b}\n  ports: [{port: 80}]\n"),
            &[
                "f:6:3: spec.selecter: unknown field, did you mean selector? expected one of clusterIP, clusterIPs, internalTrafficPolicy, ipFamilies, ipFamilyPolicy, ports, publishNotReadyAddresses, selector, sessionAffinity, sessionAffinityConfig, trafficDistribution, type",
            ],
        ),
        (
            service(
                "  clusterIP: 10.0.0.1\n  selector: {a: b}\n  ports:\n  - port: 70000\n  - {port: 80, targetPort: 0}\n  - {port: x, protocol: UDP}\n",
            ),
            &[
                "f:8:11: spec.ports[0].port: expected 1..=65535, got 70000",
                "f:9:28: spec.ports[1].targetPort: expected 1..=65535, got 0",
                "f:10:12: spec.ports[2].port: expected 1..=65535, got \"x\"",
                "f:10:25: spec.ports[2].protocol: UDP is not supported, the mesh carries TCP only: expected TCP",
            ],
        ),
        (
            service("  type: NodePort\n  externalIPs: []\n  clusterIP: 10.0.0.300\n"),
            &[
                "f:5:9: spec.type: NodePort is not supported, the mesh serves inside the cluster only: expected ClusterIP",
                "f:6:3: spec.externalIPs: not supported: only clusterIPs are virtual addresses of the mesh",
                "f:7:14: spec.clusterIP: expected an IPv4 or IPv6 address, or None, got \"10.0.0.300\"",
            ],
        ),
        (
            service("  clusterIP: 224.0.0.1\n  ports: [{port: 1}]\n"),
            &[
                "f:5:14: spec.clusterIP: expected a unicast address, neither loopback nor link-local, or None, got \"224.0.0.1\"",
            ],
        ),
        (
            service(
                "  clusterIP: 10.0.0.2\n  clusterIPs: [10.0.0.1, 10.0.0.3]\n  selector: {a: b}\n",
            ),
            &[
                "f:4:1: spec.ports: required field is missing: only a headless service may be without ports",
                "f:5:14: spec.clusterIP: expected 10.0.0.1, the first of clusterIPs, got 10.0.0.2",
                "f:6:26: spec.clusterIPs[1]: expected one address of each IP family, got two of one",
            ],
        ),
        (
            service(
                "  clusterIP: 10.0.0.2\n  ports:\n  - {name: a, port: 80}\n  - {name: a, port: 80, targetPort: web}\n  - {port: 81}\n",
            ),
            &[
                "f:8:12: spec.ports[1].name: name \"a\" is given twice",
                "f:8:21: spec.ports[1].port: port 80 is given twice",
                "f:8:37: spec.ports[1].targetPort: a name needs a selector: without one, EndpointSlices say the endpoints' ports",
                "f:9:5: spec.ports[2].name: required field is missing: a service with several ports needs a name for each",
            ],
        ),
        (
            service(
                "  clusterIP: 10.0.0.2\n  ipFamilies: [IPv6]\n  selector: {a: b}\n  ports: [{port: 1}]\n",
            ),
            &["f:6:16: spec.ipFamilies[0]: expected IPv4, the family of 10.0.0.2, got IPv6"],
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: s}\n".into(),
            &["f:1:1: spec: required field is missing"],
        ),
        (service(" \n"), &["f:4:1: spec: required field is missing"]),
        (
            format!(
                "{}---\n{}",
                service("  clusterIP: 10.0.0.1\n  ports: [{port: 1}]\n"),
                service("  clusterIP: 10.0.0.1\n  ports: [{port: 1}]\n")
            ),
            &[
                "f:10:18: metadata.name: Service default/s is defined twice, first in Service default/s (f:3)",
                "f:12:14: spec.clusterIP: 10.0.0.1 is already the address of Service default/s (f:4)",
            ],
        ),
    ]);
}

const WORKLOAD: &str = "apiVersion: mesh.covet.dev/v1alpha1\nkind: Workload\nmetadata: {name: w, labels: {app: web}}\nspec:\n";

#[test]
fn workloads_and_slices() {
    let workload = |spec: &str| format!("{WORKLOAD}{spec}");
    let other = WORKLOAD.replace("name: w", "name: other");
    check_owned(&[
        (workload("  node: n1\n"), &["f:4:1: spec.addresses: required field is missing"]),
        (workload("  addresses: []\n"), &["f:5:14: spec.addresses: expected 1 to 16 entries, got 0"]),
        (workload("  addresses: 10.0.0.1\n  weight: -1\n"), &[
            "f:5:14: spec.addresses: expected a list, got \"10.0.0.1\"",
            "f:6:11: spec.weight: expected 0..=1000000, got -1",
        ]),
        (workload("  addresses: [127.0.0.1, \"fe80::1\", \"::ffff:10.0.0.1\", 10.0.0.1, 10.0.0.1]\n  netns: run/x\n  ports: {UPPER: 1, a: 0}\n"), &[
            "f:5:15: spec.addresses[0]: expected a unicast address, neither loopback nor link-local, got \"127.0.0.1\"",
            "f:5:26: spec.addresses[1]: expected a unicast address, neither loopback nor link-local, got \"fe80::1\"",
            "f:5:37: spec.addresses[2]: expected an IPv4 address written as IPv4, got \"::ffff:10.0.0.1\"",
            "f:6:10: spec.netns: expected an absolute path, got \"run/x\"",
            "f:7:11: spec.ports.UPPER: expected as key at most 15 lower-case letters, digits and single '-', with at least one letter, got \"UPPER\"",
            "f:7:24: spec.ports.a: expected 1..=65535, got 0",
        ]),
        (workload("  addresses: [10.0.0.1, 10.0.0.1]\n  protocol: hbone\n"), &[
            "f:6:13: spec.protocol: expected one of TCP, HBONE, got \"hbone\"",
        ]),
        (workload("  addresses: [10.0.0.1, 10.0.0.1]\n"), &["f:5:25: spec.addresses[1]: address 10.0.0.1 is given twice"]),
        (WORKLOAD.replace("app: web", "mesh.covet.dev/enabled: \"yes\"") + "  addresses: [10.0.0.1]\n", &[
            "f:3:54: metadata.labels[\"mesh.covet.dev/enabled\"]: expected \"true\" or \"false\", got \"yes\"",
        ]),
        (WORKLOAD.replace("app: web", "mesh.covet.dev/enabled: true, a b: c") + "  addresses: [10.0.0.1]\n", &[
            "f:3:54: metadata.labels[\"mesh.covet.dev/enabled\"]: expected a string, got the boolean true: put it in quotes",
            "f:3:60: metadata.labels[\"a b\"]: expected as key a name of at most 63 letters, digits, '-', '_' and '.', with an optional DNS prefix and '/', got \"a b\"",
        ]),
        (format!("{}---\n{other}  addresses: [10.0.0.2]\n  netns: /run/netns/x\n---\n{}", workload("  addresses: [10.0.0.1]\n  netns: /run/netns/x\n"), service("  clusterIP: 10.0.0.1\n  selector: {app: web}\n  ports: [{port: 1, targetPort: http}]\n")), &[
            "f:5:15: spec.addresses[0]: 10.0.0.1 is already the address of Service default/s (f:18)",
            "f:13:10: spec.netns: /run/netns/x already belongs to Workload default/w (f:6)",
            "f:21:33: spec.ports[0].targetPort: no selected workload has a port named \"http\", expected a number: the selected workloads name no ports",
        ]),
        ("apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: e}\naddressType: IPv6\nendpoints:\n- addresses: [10.0.0.1]\n- {}\nports:\n- {port: 1}\n- {port: 2, protocol: SCTP}\n".into(), &[
            "f:7:3: endpoints[1].addresses: required field is missing",
            "f:10:23: ports[1].protocol: SCTP is not supported, the mesh carries TCP only: expected TCP",
        ]),
        ("apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: e}\naddressType: IPv6\nendpoints:\n- addresses: [10.0.0.1]\nports:\n- {port: 1}\n- {port: 2}\n".into(), &[
            "f:6:15: endpoints[0].addresses[0]: expected an IPv6 address as addressType says, got 10.0.0.1",
            "f:9:3: ports[1].name: name \"\" is given twice",
        ]),
        (service("  clusterIP: 10.0.0.1\n  ports: [{port: 1}]\n---\n") + "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: e}\naddressType: IPv4\nendpoints: [{addresses: [10.0.0.1]}]\n", &[
            "f:12:26: endpoints[0].addresses[0]: 10.0.0.1 is the virtual address of Service default/s (f:4)",
        ]),
    ]);
}

#[test]
fn policies() {
    let mesh = |name: &str, namespace: &str, spec: &str| {
        format!(
            "apiVersion: mesh.covet.dev/v1alpha1\nkind: MeshPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n{spec}"
        )
    };
    check_owned(&[
        (
            mesh(
                "a",
                "x",
                "  mtls: {mode: Strict, portModes: {8080: disable, x: strict}}\n  sameNode: direct\n  failPolicy: ajar\n  drainTimeout: 30\n  exclude: {ports: [0], cidrs: [10.0.0.0/33]}\n  outbound: {mode: alow}\n",
            ),
            &[
                "f:5:16: spec.mtls.mode: expected one of strict, permissive, disable, got \"Strict\"",
                "f:5:51: spec.mtls.portModes.x: expected as key a port, 1..=65535, got \"x\"",
                "f:6:13: spec.sameNode: direct is not yet supported, traffic within a node takes the tunnel as well: expected mtls",
                "f:7:15: spec.failPolicy: expected one of closed, open, got \"ajar\"",
                "f:8:17: spec.drainTimeout: expected a string, got 30: put it in quotes",
                "f:9:21: spec.exclude.ports[0]: expected 1..=65535, got 0",
                "f:9:33: spec.exclude.cidrs[0]: expected a range such as 10.0.0.0/8 or fd00::/8, got \"10.0.0.0/33\"",
                "f:10:20: spec.outbound.mode: expected one of allow, registered-only, got \"alow\"",
            ],
        ),
        (
            mesh(
                "a",
                "x",
                "  drainTimeout: 1.5s\n  outbound: {mode: allow, exceptions: [10.0.0.1]}\n",
            ),
            &[
                "f:5:17: spec.drainTimeout: expected a duration such as 500ms, 10s or 1m30s, got \"1.5s\"",
            ],
        ),
        (
            mesh(
                "a",
                "x",
                "  outbound: {mode: allow, exceptions: [10.0.0.1]}\n",
            ),
            &[
                "f:5:27: spec.outbound.exceptions: exceptions mean nothing with mode allow, which passes everything",
            ],
        ),
        (
            mesh(
                "a",
                "x",
                "  failPolicy: open\n  selector:\n    matchExpressions:\n    - {key: a, operator: In}\n    - {key: a, operator: Exists, values: [b]}\n",
            ),
            &[
                "f:8:7: spec.selector.matchExpressions[0].values: expected at least one value for In, got none",
                "f:9:34: spec.selector.matchExpressions[1].values: expected no values for Exists, got 1",
            ],
        ),
        (
            format!(
                "{}---\n{}---\n{}---\n{}",
                mesh("a", "mesh-system", "  failPolicy: open\n"),
                mesh("b", "mesh-system", "  failPolicy: open\n"),
                mesh("c", "x", "  failPolicy: open\n"),
                mesh("d", "x", "  drainTimeout: 1s\n")
            ),
            &[
                "f:9:18: metadata.name: the mesh already has MeshPolicy mesh-system/a (f:3) at the same level",
                "f:21:18: metadata.name: namespace x already has MeshPolicy x/c (f:15) at the same level",
            ],
        ),
        (
            format!(
                "{WORKLOAD}  addresses: [10.0.0.1]\n---\n{}---\n{}",
                mesh(
                    "a",
                    "default",
                    "  failPolicy: open\n  selector: {matchLabels: {app: web}}\n"
                ),
                mesh(
                    "b",
                    "default",
                    "  drainTimeout: 1s\n  selector: {matchExpressions: [{key: app, operator: Exists}]}\n"
                )
            ),
            &[
                "f:19:3: spec.selector: Workload default/w already has MeshPolicy default/a (f:9) at the same level",
            ],
        ),
    ]);
}

#[test]
fn odd_but_legal() {
    let headless = service("  clusterIP: None\n  selector: {app: nobody}\n");
    assert_eq!(
        warnings(&headless),
        ["f:6:3: spec.selector: no workload of namespace default has these labels"]
    );
    assert_eq!(
        warnings(&service("  ports: [{port: 1}]\n")),
        [
            "f:4:1: spec: the service has neither a selector nor an EndpointSlice, so no endpoints",
            "f:4:1: spec.clusterIPs: the service has no virtual address, so nothing can dial it: in files nobody assigns clusterIPs",
        ]
    );
    let policy = "apiVersion: mesh.covet.dev/v1alpha1\nkind: MeshPolicy\nmetadata: {name: m, namespace: x}\nspec:\n  failPolicy: open\n";
    assert_eq!(
        warnings(policy),
        ["f:5:15: spec.failPolicy: there is no enrolled workload that this could apply to"]
    );
    assert_eq!(
        warnings(&format!("{policy}  selector: {{matchLabels: {{a: b}}}}\n")),
        ["f:6:3: spec.selector: the selector matches no workload of namespace x"]
    );
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: e, labels: {kubernetes.io/service-name: s}}\naddressType: IPv4\n";
    assert_eq!(
        warnings(slice),
        [
            "f:3:58: metadata.labels[\"kubernetes.io/service-name\"]: there is no Service default/s: the slice does nothing"
        ]
    );
}

#[test]
fn an_error_says_what_was_expected() {
    let text = service("  clusterIP: 10.0.0.1\n  ports: [{port: 70000}]\n");
    let Err(errors) = parse_bytes("dir/f.yaml", text.as_bytes()) else {
        panic!("accepted");
    };
    let expected = ConfigError {
        file: "dir/f.yaml".into(),
        line: 6,
        column: 18,
        field: "spec.ports[0].port".into(),
        message: "expected 1..=65535, got 70000".into(),
        expected: Some("1..=65535".into()),
    };
    assert_eq!(errors, [expected]);
}

/// What `kubectl get -o yaml` gives of an ordinary Service, and what else is legal.
#[test]
fn what_a_cluster_carries_is_accepted() {
    let text = r#"
%YAML 1.2
---
apiVersion: v1
kind: List
metadata: {resourceVersion: ""}
items:
- apiVersion: v1
  kind: Service
  metadata:
    annotations: {kubectl.kubernetes.io/last-applied-configuration: "{}"}
    creationTimestamp: "2026-01-01T00:00:00Z"
    labels: {app.kubernetes.io/name: web}
    name: web
    namespace: shop
    resourceVersion: "4711"
    uid: 1f8e
  spec:
    clusterIP: 10.96.3.4
    clusterIPs: [10.96.3.4]
    internalTrafficPolicy: Cluster
    ipFamilies: [IPv4]
    ipFamilyPolicy: SingleStack
    ports: [{name: http, port: 80, protocol: TCP, targetPort: 8080, appProtocol: kubernetes.io/h2c}]
    selector:
    sessionAffinity: ClientIP
    sessionAffinityConfig: {clientIP: {timeoutSeconds: 10800}}
    type: ClusterIP
  status: {loadBalancer: {}}
...
---
# nothing but a comment
---
{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
 "metadata": {"name": "web-x", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
 "endpoints": [{"addresses": ["10.1.2.3"], "conditions": {"ready": true, "serving": true, "terminating": false},
   "nodeName": "n1", "targetRef": {"kind": "Pod", "name": "p"}, "hints": {"forZones": [{"name": "z"}]}}],
 "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]}
"#;
    assert_eq!(warnings(text), Vec::<String>::new());
}

fn authorization(spec: &str) -> String {
    format!(
        "apiVersion: mesh.covet.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: a, namespace: x}}\nspec:\n{spec}"
    )
}

const PRINCIPAL: &str = "a principal such as cluster.local/ns/shop/sa/web, with '*' at one end at most (cluster.local/ns/shop/*), or '*'";
const PATH: &str =
    "a path such as /api/users, with '*' at one end at most (/api/*, *.json), or '*'";
const HOST: &str =
    "a host (shop.example, shop.example:8080), with '*' at one end at most (*.example), or '*'";

#[test]
fn authorization_policies() {
    let source =
        |text: &str| authorization(&format!("  rules:\n  - from:\n    - source: {{{text}}}\n"));
    let bad_principal = |text: &str, suffix: &str| {
        vec![format!(
            "f:7:29: spec.rules[0].from[0].source.principals[0]: expected {PRINCIPAL}{suffix}, got \"{text}\""
        )]
    };
    let mut table: Vec<(String, Vec<String>)> = [
        ("spiffe://cluster.local/ns/a/sa/b", ", without spiffe://"),
        ("web", ""),
        ("cluster.local/ns/a/sa", ""),
        ("cluster.local/ns/A/sa/b", ""),
        ("cluster.local/sa/b/ns/*", ""),
        ("cluster.local/ns/*/sa/b", ""),
        ("*/ns/a/*", ""),
        ("cluster.local/ns//*", ""),
        ("cluster.local/ns/a/sa/b/*", ""),
        ("*/sb/web", ""),
        ("**", ""),
        ("", ""),
    ]
    .into_iter()
    .map(|(text, suffix)| {
        (
            source(&format!("principals: [\"{text}\"]")),
            bad_principal(text, suffix),
        )
    })
    .collect();
    let good = [
        "*/sa/web",
        "*a/web",
        "cluster.local/n*",
        "*/a/sa/web",
        "cluster.local*",
        "*",
        "cluster.local/ns/a*",
    ];
    for text in good {
        warnings(&source(&format!("principals: [\"{text}\"]")));
    }
    let of = |text: String, messages: &[&str]| {
        (text, messages.iter().map(ToString::to_string).collect())
    };
    table.extend([
        of(
            source("namespaces: [A, \"a*b\"], notNamespaces: []"),
            &[
                "f:7:29: spec.rules[0].from[0].source.namespaces[0]: expected a namespace, with '*' at one end at most, or '*', got \"A\"",
                "f:7:32: spec.rules[0].from[0].source.namespaces[1]: expected a namespace, with '*' at one end at most, or '*', got \"a*b\"",
                "f:7:55: spec.rules[0].from[0].source.notNamespaces: expected at least one entry, got 0",
            ],
        ),
        of(
            source("serviceAccounts: [\"web*\", a/b/c]"),
            &[
                "f:7:34: spec.rules[0].from[0].source.serviceAccounts[0]: expected namespace/service-account, or service-account alone for one of the policy's namespace; without '*', got \"web*\"",
                "f:7:42: spec.rules[0].from[0].source.serviceAccounts[1]: expected namespace/service-account, or service-account alone for one of the policy's namespace; without '*', got \"a/b/c\"",
            ],
        ),
        of(
            source("ipBlocks: [10.0.0.0/33, x]"),
            &[
                "f:7:27: spec.rules[0].from[0].source.ipBlocks[0]: expected a range such as 10.0.0.0/8 or fd00::/8, got \"10.0.0.0/33\"",
                "f:7:40: spec.rules[0].from[0].source.ipBlocks[1]: expected a range such as 10.0.0.0/8 or fd00::/8, got \"x\"",
            ],
        ),
        of(
            source("notIpBlocks: [\"::ffff:10.0.0.0/104\"]"),
            &["f:7:30: spec.rules[0].from[0].source.notIpBlocks[0]: expected an IPv4 range written as IPv4, got ::ffff:10.0.0.0/104"],
        ),
        of(
            source(""),
            &["f:7:7: spec.rules[0].from[0].source: the source names nothing: leave out from to match every source"],
        ),
        of(
            source("requestPrincipals: [a], remoteIpBlocks: [10.0.0.1]"),
            &[
                "f:7:16: spec.rules[0].from[0].source.requestPrincipals: not supported: the agent verifies no tokens (JWT)",
                "f:7:40: spec.rules[0].from[0].source.remoteIpBlocks: not supported: the agent trusts no X-Forwarded-For; source.ipBlocks are about the client's own address",
            ],
        ),
        of(
            authorization("  rules:\n  - to:\n    - operation: {ports: [0, 65536, \"http\", \"0\", \"+80\"]}\n"),
            &[
                "f:7:27: spec.rules[0].to[0].operation.ports[0]: expected 1..=65535, got 0",
                "f:7:30: spec.rules[0].to[0].operation.ports[1]: expected 1..=65535, got 65536",
                "f:7:37: spec.rules[0].to[0].operation.ports[2]: expected a port, 1..=65535, got \"http\"",
                "f:7:45: spec.rules[0].to[0].operation.ports[3]: expected a port, 1..=65535, got \"0\"",
                "f:7:50: spec.rules[0].to[0].operation.ports[4]: expected a port, 1..=65535, got \"+80\"",
            ],
        ),
        of(
            authorization("  rules:\n  - to:\n    - operation: {methods: [get, 'G*T'], paths: [a, '/a/../b', '/a?b', '/{*}'], hosts: [h/a, 'h.']}\n    - operation: {ports: [1]}\n    - operation: {notMethods: [\"\"], notPaths: ['/a%00'], notHosts: [\"\"]}\n"),
            &[
                "f:7:29: spec.rules[0].to[0].operation.methods[0]: expected a method in capitals (GET), with '*' at one end at most, or '*', got \"get\"",
                "f:7:34: spec.rules[0].to[0].operation.methods[1]: expected a method in capitals (GET), with '*' at one end at most, or '*', got \"G*T\"",
                &format!("f:7:50: spec.rules[0].to[0].operation.paths[0]: expected {PATH}, got \"a\""),
                &format!("f:7:53: spec.rules[0].to[0].operation.paths[1]: expected {PATH}, in its normal form: without '//', '/./' and '/../', which no request has when it is compared, got \"/a/../b\""),
                &format!("f:7:64: spec.rules[0].to[0].operation.paths[2]: expected {PATH}, without a query: policies do not see it, got \"/a?b\""),
                &format!("f:7:72: spec.rules[0].to[0].operation.paths[3]: expected {PATH}; templates ({{*}}, {{**}}) are not supported, got \"/{{*}}\""),
                &format!("f:7:89: spec.rules[0].to[0].operation.hosts[0]: expected {HOST}, got \"h/a\""),
                &format!("f:7:94: spec.rules[0].to[0].operation.hosts[1]: expected {HOST}, without a final dot, got \"h.\""),
                "f:9:32: spec.rules[0].to[2].operation.notMethods[0]: expected a method in capitals (GET), with '*' at one end at most, or '*', got \"\"",
                &format!("f:9:48: spec.rules[0].to[2].operation.notPaths[0]: expected {PATH}: this one has a malformed or forbidden encoding, got \"/a%00\""),
                &format!("f:9:69: spec.rules[0].to[2].operation.notHosts[0]: expected {HOST}, got \"\""),
            ],
        ),
        of(
            authorization("  rules:\n  - when:\n    - {key: \"request.headers[:path]\", values: [b]}\n    - {key: \"request.headers[Host]\", values: [b]}\n    - {key: \"request.auth.claims[iss]\", values: [b]}\n    - {key: \"request.headers[a]\", values: [\"a*b\", \" a\"]}\n    - {key: \"request.headers[x-forwarded-client-cert]\", values: [b]}\n"),
            &[
                "f:7:13: spec.rules[0].when[0].key: request.headers[:path] is not supported",
                "f:8:13: spec.rules[0].when[1].key: policies do not decide by this header: HTTP/2 has none; use to.operation.hosts",
                "f:9:13: spec.rules[0].when[2].key: request.auth.claims[iss] is not supported",
                "f:10:44: spec.rules[0].when[3].values[0]: expected a value of a header, with '*' at one end at most, or '*' for any, got \"a*b\"",
                "f:10:51: spec.rules[0].when[3].values[1]: expected a value of a header, with '*' at one end at most, or '*' for any, got \" a\"",
                "f:11:13: spec.rules[0].when[4].key: policies do not decide by this header: the client could write anything, and the application gets what the agent proved; use from.source.principals",
            ],
        ),
        of(
            authorization("  rules:\n  - to:\n    - operation: {}\n"),
            &["f:7:7: spec.rules[0].to[0].operation: the operation names nothing: leave out to to match every operation"],
        ),
        of(
            authorization("  rules:\n  - when:\n    - {key: source.port, values: [\"1\"]}\n    - {key: \"request.headers[a]\", values: [b]}\n    - {key: source.ip}\n    - {key: destination.port, values: [\"http\"]}\n    - {key: source.principal, notValues: [web]}\n"),
            &[
                "f:7:13: spec.rules[0].when[0].key: expected one of source.principal, source.namespace, source.serviceAccount, source.ip, destination.ip, destination.port, request.headers[name], got \"source.port\"",
                "f:9:7: spec.rules[0].when[2].values: required field is missing: a condition needs values or notValues",
                "f:10:40: spec.rules[0].when[3].values[0]: expected a port, 1..=65535, got \"http\"",
                &format!("f:11:43: spec.rules[0].when[4].notValues[0]: expected {PRINCIPAL}, got \"web\""),
            ],
        ),
        of(
            authorization("  action: AUDIT\n  targetRefs: []\n  rules:\n  - from: []\n  - form: []\n"),
            &[
                "f:5:11: spec.action: AUDIT is not supported: expected ALLOW or DENY",
                "f:6:3: spec.targetRefs: not yet supported: a policy is for workloads, which spec.selector names",
                "f:8:11: spec.rules[0].from: expected at least one entry, got 0",
                "f:9:5: spec.rules[1].form: unknown field, did you mean from? expected one of from, to, when",
            ],
        ),
        of(
            authorization("  selector: {matchExpressions: [{key: a, operator: In}]}\n"),
            &["f:5:33: spec.selector.matchExpressions[0].values: expected at least one value for In, got none"],
        ),
        of(
            format!("{}---\n{}", authorization("  rules: []\n"), authorization("  rules: []\n")),
            &["f:9:18: metadata.name: AuthorizationPolicy x/a is defined twice, first in AuthorizationPolicy x/a (f:3)"],
        ),
    ]);
    let table: Vec<(String, Vec<&str>)> = table
        .iter()
        .map(|(text, e)| (text.clone(), e.iter().map(String::as_str).collect()))
        .collect();
    let table: Vec<(&str, &[&str])> = table
        .iter()
        .map(|(text, e)| (text.as_str(), e.as_slice()))
        .collect();
    check(&table);
}

#[test]
fn trust_domains_and_modes() {
    let mesh = |namespace: &str, spec: &str| {
        format!(
            "apiVersion: mesh.covet.dev/v1alpha1\nkind: MeshPolicy\nmetadata: {{name: m, namespace: {namespace}}}\nspec:\n{spec}"
        )
    };
    check_owned(&[
        (
            mesh(
                "x",
                "  trustDomain: a.example\n  trustDomainAliases: [b.example]\n",
            ),
            &[
                "f:5:16: spec.trustDomain: there is one trust domain for the mesh: only the MeshPolicy of namespace mesh-system without a selector may set trustDomain",
                "f:6:3: spec.trustDomainAliases: there is one trust domain for the mesh: only the MeshPolicy of namespace mesh-system without a selector may set trustDomainAliases",
            ],
        ),
        (
            mesh("mesh-system", "  selector: {}\n  trustDomain: a.example\n"),
            &[
                "f:6:16: spec.trustDomain: there is one trust domain for the mesh: only the MeshPolicy of namespace mesh-system without a selector may set trustDomain",
            ],
        ),
        (
            mesh("mesh-system", "  trustDomain: spiffe://a\n"),
            &[
                "f:5:16: spec.trustDomain: expected a trust domain: at most 255 lower-case letters, digits, '.', '-' and '_', beginning and ending with a letter or digit, without spiffe://, got \"spiffe://a\"",
            ],
        ),
        (
            mesh(
                "mesh-system",
                "  trustDomain: a\n  trustDomainAliases: [b, a, b]\n",
            ),
            &[
                "f:6:27: spec.trustDomainAliases[1]: a is given twice",
                "f:6:30: spec.trustDomainAliases[2]: b is given twice",
            ],
        ),
        (
            mesh("x", "  mtls: {portModes: {80: strict}}\n"),
            &[
                "f:5:10: spec.mtls.portModes: ports are those of certain workloads: a policy for all of a scope cannot have modes for them",
            ],
        ),
        (
            mesh("x", "  ca: {}\n"),
            &[
                "f:5:3: spec.ca: not yet supported: the certificate authority is an option of the agent",
            ],
        ),
    ]);
}

#[test]
fn odd_but_legal_where_security_is_concerned() {
    let web = "apiVersion: mesh.covet.dev/v1alpha1\nkind: Workload\nmetadata: {name: web, namespace: x, labels: {app: web, mesh.covet.dev/enabled: \"true\"}}\nspec: {addresses: [10.0.0.1], protocol: TCP}\n---\n";
    let mesh = |spec: &str| {
        format!(
            "---\napiVersion: mesh.covet.dev/v1alpha1\nkind: MeshPolicy\nmetadata: {{name: m, namespace: mesh-system}}\nspec: {{{spec}}}\n"
        )
    };
    let open = mesh("failPolicy: open");
    let closed_by = |why: &str, line: u32| {
        vec![format!(
            "f:{line}:20: spec.failPolicy: open holds outbound only for Workload x/web: inbound stays closed while no agent runs, because of {why}"
        )]
    };
    let allow = authorization("  rules: [{}]\n");
    assert_eq!(
        warnings(&format!("{web}{allow}{open}")),
        closed_by("an AuthorizationPolicy", 15)
    );
    let dry_run = authorization("  dryRun: true\n");
    assert_eq!(
        warnings(&format!("{web}{dry_run}{open}")),
        Vec::<String>::new()
    );
    let elsewhere = allow.replace("namespace: x", "namespace: y");
    assert_eq!(
        warnings(&format!("{web}{elsewhere}{open}")),
        Vec::<String>::new()
    );
    let selected = authorization("  selector: {matchLabels: {app: web}}\n");
    assert_eq!(
        warnings(&format!("{web}{selected}{open}")),
        closed_by("an AuthorizationPolicy", 15)
    );
    let strict = mesh("failPolicy: open, mtls: {mode: strict}");
    let mut both = vec!["f:4:41: spec.protocol: others reach it plainly, and its mTLS mode is strict: it refuses the whole mesh".to_owned()];
    both.extend(closed_by("mTLS mode strict", 10));
    assert_eq!(warnings(&format!("{web}{strict}")), both);

    assert_eq!(
        warnings(&authorization("  action: DENY\n")),
        [
            "f:4:1: spec: a policy without rules matches nothing, so this DENY denies nobody: a rule {} would match everything"
        ]
    );
    assert_eq!(
        warnings(&authorization("  selector: {matchLabels: {app: nobody}}\n")),
        ["f:5:3: spec.selector: the selector matches no workload of namespace x"]
    );
    let stranger = authorization(
        "  rules: [{from: [{source: {principals: [other.example/ns/a/sa/b, cluster.local/*]}}]}]\n",
    );
    assert_eq!(
        warnings(&stranger),
        [
            "f:5:42: spec.rules[0].from[0].source.principals[0]: nobody of trust domain other.example can connect: that of the mesh is cluster.local"
        ]
    );
    let alias = mesh("trustDomain: m.example, trustDomainAliases: [other.example, cluster.local]");
    assert_eq!(
        warnings(&format!("{stranger}{alias}")),
        Vec::<String>::new()
    );
}
