//! The agent's configuration in the bench.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::bed::{Bed, MESH_SERVER, SERVER, netns_path};

/// Virtual addresses of the services over the captured and the uncaptured server, and of the one that changes.
pub(super) const VIP: &str = "10.97.0.1";
pub(super) const VIP_BOTH: &str = "10.97.0.2";
pub(super) const VIP_SWITCH: &str = "10.97.0.3";
/// Port of the service that changes, and the two that it can lead to.
pub(super) const SWITCH_PORT: u16 = 7020;
pub(super) const SWITCH_TARGETS: [u16; 2] = [7021, 7022];

const PORTS: [u16; 10] = [7000, 7001, 7010, 7011, 7012, 7013, 7014, 7015, 7016, 7017];
/// Services in one file of the large configuration, and endpoints of each.
const FILE: usize = 100;
const ENDPOINTS: usize = 5;

pub(super) struct Config {
    pub(super) dir: PathBuf,
}

impl Config {
    pub(super) fn new(bed: &Bed) -> Result<Self> {
        let dir = bed.dir.join("etc/config");
        fs::create_dir_all(&dir)?;
        let config = Self { dir };
        config.put("namespace.yaml", NAMESPACE)?;
        let mut pods = String::new();
        for (name, address, mesh) in [
            ("mesh", "10.99.0.12", "true"),
            ("meshserver", MESH_SERVER, "true"),
        ] {
            let netns = netns_path(&bed.ns(name));
            pods += &workload(bed.node(), name, address, &netns, mesh);
        }
        config.put("pods.yaml", &pods)?;
        config.put(
            "load.yaml",
            &[
                service("load", VIP, &PORTS.map(|p| (p, p)), &[SERVER.to_owned()]),
                service(
                    "both",
                    VIP_BOTH,
                    &PORTS.map(|p| (p, p)),
                    &[MESH_SERVER.to_owned()],
                ),
            ]
            .concat(),
        )?;
        config.switch(SWITCH_TARGETS[0])?;
        Ok(config)
    }

    /// Replaces a file at once, as an editor does.
    pub(super) fn put(&self, file: &str, text: &str) -> Result<()> {
        let staged = self.dir.with_extension("staged");
        fs::write(&staged, text).with_context(|| staged.display().to_string())?;
        fs::rename(&staged, self.dir.join(file))?;
        Ok(())
    }

    pub(super) fn remove(&self, file: &str) -> Result<()> {
        fs::remove_file(self.dir.join(file)).with_context(|| file.to_owned())
    }

    /// Leads the service that changes to a port.
    pub(super) fn switch(&self, target: u16) -> Result<()> {
        let ports = [(SWITCH_PORT, target)];
        self.put(
            "switch.yaml",
            &service("switch", VIP_SWITCH, &ports, &[SERVER.to_owned()]),
        )
    }

    /// `count` more services that nobody dials, with five endpoints each.
    pub(super) fn crowd(&self, count: usize) -> Result<()> {
        let all: Vec<usize> = (0..count).collect();
        for (file, services) in all.chunks(FILE).enumerate() {
            let mut text = String::new();
            for &n in services {
                let vip = format!("10.{}.{}.{}", 100 + n / 62_500, n / 250 % 250, n % 250 + 1);
                let endpoint = |e: usize| {
                    let at = n * ENDPOINTS + e;
                    format!(
                        "10.{}.{}.{}",
                        120 + at / 62_500,
                        at / 250 % 250,
                        at % 250 + 1
                    )
                };
                let endpoints: Vec<_> = (0..ENDPOINTS).map(endpoint).collect();
                text += &service(&format!("crowd-{n}"), &vip, &[(80, 8080)], &endpoints);
            }
            self.put(&format!("crowd-{file:03}.yaml"), &text)?;
        }
        Ok(())
    }

    pub(super) fn disperse(&self) -> Result<()> {
        for entry in fs::read_dir(&self.dir)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with("crowd-") {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

const NAMESPACE: &str = "apiVersion: v1
kind: Namespace
metadata:
  name: bench
  labels:
    mesh.covet.dev/enabled: \"true\"
";

pub(super) fn workload(node: &str, name: &str, address: &str, netns: &Path, mesh: &str) -> String {
    format!(
        "---
apiVersion: mesh.covet.dev/v1alpha1
kind: Workload
metadata:
  name: {name}
  namespace: bench
  labels:
    mesh.covet.dev/enabled: \"{mesh}\"
spec:
  node: {node}
  addresses: [\"{address}\"]
  netns: {netns}
",
        netns = netns.display()
    )
}

/// A service without selector and its endpoints; `ports` are (service's, endpoint's).
fn service(name: &str, vip: &str, ports: &[(u16, u16)], endpoints: &[String]) -> String {
    let mut text = format!(
        "---
apiVersion: v1
kind: Service
metadata:
  name: {name}
  namespace: bench
spec:
  clusterIPs: [\"{vip}\"]
  ports:
"
    );
    for (port, target) in ports {
        let _ = writeln!(
            text,
            "  - {{name: p{port}, port: {port}, targetPort: {target}}}"
        );
    }
    let _ = write!(
        text,
        "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {name}-1
  namespace: bench
  labels:
    kubernetes.io/service-name: {name}
addressType: IPv4
ports:
"
    );
    for (port, target) in ports {
        let _ = writeln!(text, "- {{name: p{port}, port: {target}}}");
    }
    text += "endpoints:\n";
    for address in endpoints {
        let _ = writeln!(text, "- addresses: [\"{address}\"]");
    }
    text
}
