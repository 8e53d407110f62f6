//! The resources of this demo.

use crate::demo::stage as first;

/// A pod: which node it is on, who it is.
#[derive(Clone, Copy)]
pub(super) struct Pod {
    pub(super) name: &'static str,
    /// 0 or 1.
    pub(super) node: usize,
    host: u8,
    /// False: the mesh does not know it.
    pub(super) member: bool,
}

pub(super) const CLIENT: Pod = pod("client", 0, 10, true);
pub(super) const BATCH: Pod = pod("batch", 0, 11, true);
pub(super) const STRANGER: Pod = pod("stranger", 0, 12, false);
pub(super) const WEB: Pod = pod("web", 1, 10, true);
pub(super) const PODS: [Pod; 4] = [CLIENT, BATCH, STRANGER, WEB];

const fn pod(name: &'static str, node: usize, host: u8, member: bool) -> Pod {
    Pod {
        name,
        node,
        host,
        member,
    }
}

impl Pod {
    /// Number of its node's network.
    pub(super) fn net(self) -> u8 {
        net(self.node)
    }

    pub(super) fn host(self) -> u8 {
        self.host
    }

    pub(super) fn v4(self) -> String {
        format!("10.88.{}.{}", self.net(), self.host)
    }

    pub(super) fn identity(self) -> String {
        format!("spiffe://cluster.local/ns/shop/sa/{}", self.name)
    }

    pub(super) fn workload(self, id: &str, netns: &std::path::Path) -> String {
        format!(
            "apiVersion: mesh.covet.dev/v1alpha1
kind: Workload
metadata:
  name: {name}
  namespace: shop
  labels:
    app: {name}
spec:
  node: {node}
  serviceAccount: {name}
  addresses: [\"{v4}\", \"fd88:0:0:{net}::{host}\"]
  netns: {netns}
",
            name = self.name,
            node = node_name(id, self.node),
            v4 = self.v4(),
            net = self.net(),
            host = self.host,
            netns = netns.display()
        )
    }
}

pub(super) fn net(node: usize) -> u8 {
    [1, 2][node]
}

/// `demo-ID-a`, `demo-ID-b`.
pub(super) fn node_name(id: &str, node: usize) -> String {
    format!("{}-{}", first::node_name(id), ["a", "b"][node])
}

pub(super) const STRICT: &str = "apiVersion: mesh.covet.dev/v1alpha1
kind: MeshPolicy
metadata:
  name: mesh
  namespace: mesh-system
spec:
  mtls:
    mode: strict
";

/// Only the client may connect to web.
pub(super) fn only_the_client(dry_run: bool) -> String {
    let dry_run = if dry_run { "  dryRun: true\n" } else { "" };
    format!(
        "apiVersion: mesh.covet.dev/v1alpha1
kind: AuthorizationPolicy
metadata:
  name: web-callers
  namespace: shop
spec:
  selector:
    matchLabels:
      app: web
  action: ALLOW
{dry_run}  rules:
  - from:
    - source:
        principals: [cluster.local/ns/shop/sa/client]
"
    )
}
