//! The pods and resources of this demo.

use std::path::Path;

/// Virtual addresses of the services `web` and `api`.
pub(super) const WEB: &str = "10.96.0.80";
pub(super) const API: &str = "10.96.0.81";

#[derive(Clone, Copy)]
pub(super) struct Pod {
    pub(super) name: &'static str,
    app: &'static str,
    version: &'static str,
    pub(super) host: u8,
}

pub(super) const CLIENT: Pod = pod("client", "client", "v1", 10);
pub(super) const WEB_1: Pod = pod("web-1", "web", "v1", 11);
pub(super) const WEB_2: Pod = pod("web-2", "web", "v1", 12);
pub(super) const CANARY: Pod = pod("web-3", "web", "v2", 13);
pub(super) const API_1: Pod = pod("api-1", "api", "v1", 14);
pub(super) const SERVERS: [Pod; 4] = [WEB_1, WEB_2, CANARY, API_1];
pub(super) const PODS: [Pod; 5] = [CLIENT, WEB_1, WEB_2, CANARY, API_1];

const fn pod(name: &'static str, app: &'static str, version: &'static str, host: u8) -> Pod {
    Pod {
        name,
        app,
        version,
        host,
    }
}

impl Pod {
    pub(super) fn workload(self, node: &str, netns: &Path) -> String {
        format!(
            "apiVersion: mesh.covet.dev/v1alpha1
kind: Workload
metadata:
  name: {name}
  namespace: shop
  labels: {{app: {app}, version: {version}}}
spec:
  node: {node}
  addresses: [\"10.88.0.{host}\", \"fd88::{host}\"]
  netns: {netns}
",
            name = self.name,
            app = self.app,
            version = self.version,
            host = self.host,
            netns = netns.display()
        )
    }
}

/// `web` is what clients dial; `web-v1` and `web-v2` are the versions behind it.
pub(super) fn services() -> String {
    [
        service("web", WEB, "app: web"),
        service("web-v1", "10.96.0.82", "app: web, version: v1"),
        service("web-v2", "10.96.0.83", "app: web, version: v2"),
        service("api", API, "app: api"),
    ]
    .concat()
}

fn service(name: &str, vip: &str, selector: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec:
  clusterIPs: [\"{vip}\"]
  selector: {{{selector}}}
  ports: [{{name: http, port: 80, targetPort: 8080}}]
"
    )
}

/// The route `name`, bound to the service of that name.
fn route(name: &str, rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {name}, namespace: shop}}
spec:
  parentRefs: [{{group: \"\", kind: Service, name: {name}}}]
  rules:
{rules}"
    )
}

const SPLIT: &str = "  - name: everybody
    backendRefs:
    - {name: web-v1, port: 80, weight: 90}
    - {name: web-v2, port: 80, weight: 10}
";

const TESTERS: &str = "  - name: testers
    matches: [{headers: [{name: x-tester, value: \"true\"}]}]
    backendRefs: [{name: web-v2, port: 80}]
";

pub(super) fn canary() -> String {
    route("web", SPLIT)
}

pub(super) fn testers() -> String {
    route("web", &[TESTERS, SPLIT].concat())
}

pub(super) fn mirror() -> String {
    route(
        "web",
        "  - name: mirrored
    filters:
    - type: RequestMirror
      requestMirror: {backendRef: {name: web-v2, port: 80}}
    backendRefs: [{name: web-v1, port: 80}]
",
    )
}

/// Everything to version 1, each request once.
pub(super) fn once() -> String {
    route(
        "web",
        "  - name: once
    backendRefs: [{name: web-v1, port: 80}]
",
    )
}

pub(super) fn retried() -> String {
    route(
        "web",
        "  - name: retried
    backendRefs: [{name: web-v1, port: 80}]
    retry: {attempts: 2, codes: [503], backoff: 10ms}
",
    )
}

pub(super) fn timed() -> String {
    route(
        "api",
        "  - name: timed
    backendRefs: [{name: api, port: 80}]
    timeouts: {request: 500ms}
",
    )
}

fn policy(service: &str, spec: &str) -> String {
    format!(
        "apiVersion: mesh.covet.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: {service}, namespace: shop}}
spec:
  targetRefs: [{{kind: Service, name: {service}}}]
{spec}"
    )
}

pub(super) fn breaker() -> String {
    policy(
        "web-v1",
        "  circuitBreaker: {failureThreshold: 5, recoveryTimeout: 2s, successThreshold: 2}
",
    )
}

/// Requests that the limit allows in [`PER`].
pub(super) const LIMIT: usize = 5;

pub(super) fn limited() -> String {
    policy(
        "api",
        &format!(
            "  rateLimits:
  - {{name: per-client, requests: {LIMIT}, per: 5s, key: {{sourceAddress: true}}}}
"
        ),
    )
}
