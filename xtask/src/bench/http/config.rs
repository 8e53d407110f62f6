//! The agent's configuration: one client that is captured, and a service over the server, which is outside the mesh. Three
//! rules by path and header with retries, as the peers have them.

use std::path::PathBuf;

use anyhow::Result;

use super::pods::{MESH_CLIENT, NODE, SERVER};
use crate::bench::bed::{Bed, netns_path};
use crate::bench::resources::{Folder, NAMESPACE, workload};

/// Virtual address of the service.
pub(super) const VIP: &str = "10.97.0.1";

const SERVICE: &str = "apiVersion: v1
kind: Service
metadata: {name: load, namespace: bench}
spec:
  clusterIPs: [\"VIP\"]
  ports:
  - {name: http, port: 8080, targetPort: 8080, appProtocol: http}
  - {name: http2, port: 8081, targetPort: 8081, appProtocol: kubernetes.io/h2c}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: load-1
  namespace: bench
  labels: {kubernetes.io/service-name: load}
addressType: IPv4
ports:
- {name: http, port: 8080}
- {name: http2, port: 8081}
endpoints:
- addresses: [\"SERVER\"]
";

pub(super) fn write(bed: &Bed) -> Result<PathBuf> {
    let folder = Folder::new(bed.dir.join("etc/config"))?;
    folder.put("namespace.yaml", NAMESPACE)?;
    let netns = netns_path(&bed.ns("mesh"));
    let addresses = [MESH_CLIENT.to_owned()];
    let pod = workload(&bed.ns(NODE), "mesh", &addresses, &netns, "default");
    folder.put("pods.yaml", &pod)?;
    folder.put("load.yaml", &service(SERVER))?;
    Ok(folder.dir)
}

/// The service over a server, and its routes.
pub(super) fn service(server: &str) -> String {
    let service = SERVICE.replace("VIP", VIP).replace("SERVER", server);
    [service, route(8080), route(8081)].join("---\n")
}

fn route(port: u16) -> String {
    let to = format!(
        "    backendRefs: [{{name: load, port: {port}}}]
    retry: {{attempts: 2, codes: [502, 503, 504]}}
"
    );
    format!(
        "{head}  rules:
  - matches: [{{path: {{value: /cart}}, headers: [{{name: x-tier, value: gold}}]}}]
{to}  - matches: [{{path: {{value: /cart}}, headers: [{{name: x-tier, value: silver}}]}}]
{to}  - matches: [{{path: {{value: /admin}}}}]
{to}",
        head = route_head(&format!("load-{port}"), port)
    )
}

/// A route of a port of the service, up to its rules.
pub(super) fn route_head(name: &str, port: u16) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {name}, namespace: bench}}
spec:
  parentRefs: [{{group: \"\", kind: Service, name: load, port: {port}}}]
"
    )
}
