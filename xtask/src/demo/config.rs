//! The resources of the demo: what a cluster would take, in a directory of files.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Virtual addresses of the service `web`: nothing on the network has them.
pub(super) const VIP: &str = "10.96.0.80";
pub(super) const VIP6: &str = "fd96::80";

/// The directory that the agent watches.
pub(super) struct Config {
    dir: PathBuf,
}

impl Config {
    pub(super) fn new(dir: PathBuf) -> Result<Self> {
        fs::create_dir_all(&dir)?;
        Ok(Self { dir })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Replaces a file at once, as an editor does.
    pub(super) fn put(&self, file: &str, text: &str) -> Result<()> {
        let staged = self.dir.with_extension("staged");
        fs::write(&staged, text).with_context(|| format!("{}", staged.display()))?;
        fs::rename(&staged, self.dir.join(file))?;
        Ok(())
    }

    pub(super) fn namespace(&self, enabled: bool) -> Result<()> {
        self.put("namespace.yaml", &namespace(enabled))
    }

    pub(super) fn workload(
        &self,
        node: &str,
        name: &str,
        app: &str,
        host: u8,
        netns: &Path,
    ) -> Result<()> {
        self.put(
            &format!("{name}.yaml"),
            &workload(node, name, app, host, netns),
        )
    }

    pub(super) fn service(&self, port: u32) -> Result<()> {
        self.put("service.yaml", &service(port))
    }
}

pub(super) fn namespace(enabled: bool) -> String {
    format!(
        "apiVersion: v1
kind: Namespace
metadata:
  name: shop
  labels:
    mesh.covet.dev/enabled: \"{enabled}\"
"
    )
}

fn workload(node: &str, name: &str, app: &str, host: u8, netns: &Path) -> String {
    format!(
        "apiVersion: mesh.covet.dev/v1alpha1
kind: Workload
metadata:
  name: {name}
  namespace: shop
  labels:
    app: {app}
spec:
  node: {node}
  addresses: [\"10.88.0.{host}\", \"fd88::{host}\"]
  netns: {netns}
",
        netns = netns.display()
    )
}

pub(super) fn service(port: u32) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: shop
spec:
  clusterIPs: [\"{VIP}\", \"{VIP6}\"]
  selector:
    app: web
  ports:
  - name: http-web
    port: {port}
    targetPort: 8080
  - name: tcp-echo
    port: 7000
    targetPort: 7000
"
    )
}
