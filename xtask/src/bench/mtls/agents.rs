//! Our subject: an agent on each node, which find their certificates in one authority.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::pods::{CLIENTS, ColdPod, MESH_CLIENT, MESH_SERVER, SERVERS};
use crate::bench::bed::{Bed, netns_path};
use crate::bench::proxies::{AgentRun, Proxies};
use crate::bench::resources::{Folder, NAMESPACE, service, workload};
use crate::bench::works::PORTS;

/// Virtual address of the service over the mesh's server.
pub(in crate::bench) const VIP: &str = "10.97.0.1";

/// That service, with the ports of all works.
pub(super) fn all_ports() -> String {
    service(
        "load",
        VIP,
        &PORTS.map(|p| (p, p)),
        &[MESH_SERVER.to_owned()],
    )
}

/// Plain text is refused: what arrives has been in a tunnel.
const STRICT: &str = "apiVersion: mesh.covet.dev/v1alpha1
kind: MeshPolicy
metadata:
  name: mesh
  namespace: mesh-system
spec:
  mtls: {mode: strict}
";

pub(in crate::bench) struct Agents {
    program: PathBuf,
    folder: Folder,
    /// Workloads of the servers' node.
    servers: usize,
}

impl Agents {
    /// Writes their configuration, with the service over the mesh's server, and starts both.
    pub(in crate::bench) fn start(
        bed: &Bed,
        program: &Path,
        service: &str,
        cold: &[ColdPod],
        proxies: &mut Proxies,
    ) -> Result<Self> {
        let folder = Folder::new(bed.dir.join("etc/config"))?;
        folder.put("namespace.yaml", NAMESPACE)?;
        folder.put("mesh.yaml", STRICT)?;
        let pod = |node: &str, name: &str, addresses: &[String], account: &str| {
            let netns = netns_path(&bed.ns(name));
            workload(&bed.ns(node), name, addresses, &netns, account)
        };
        let mut pods = pod(CLIENTS, "mesh", &[MESH_CLIENT.to_owned()], "client")
            + &pod(SERVERS, "mesh-server", &[MESH_SERVER.to_owned()], "server");
        for one in cold {
            pods += &pod(SERVERS, &one.name, &one.addresses, "server");
        }
        folder.put("pods.yaml", &pods)?;
        folder.put("load.yaml", service)?;
        let agents = Self {
            program: program.to_path_buf(),
            folder,
            servers: 1 + cold.len(),
        };
        agents.run(bed, SERVERS, proxies)?;
        agents.run(bed, CLIENTS, proxies)?;
        Ok(agents)
    }

    /// Another agent in place of the one of the clients' node: it has no tunnel yet.
    pub(super) fn renew_client(&self, bed: &Bed, proxies: &mut Proxies) -> Result<()> {
        proxies.end_agent(bed, CLIENTS);
        self.run(bed, CLIENTS, proxies)
    }

    fn run(&self, bed: &Bed, node: &'static str, proxies: &mut Proxies) -> Result<()> {
        // The built-in authority in one folder for both: the first makes it, the second finds it.
        let state = bed.dir.join("state");
        let state = state.to_str().context("a path that is not UTF-8")?;
        let run = AgentRun {
            node,
            program: &self.program,
            config: &self.folder.dir,
            args: vec!["--state-dir".to_owned(), state.to_owned()],
            pods: if node == CLIENTS { 1 } else { self.servers },
        };
        proxies.start_agent(bed, "mesh", &run)
    }
}
