//! The resources that agents are given in a bench, and the folder that they watch.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A folder of configuration.
pub(super) struct Folder {
    pub(super) dir: PathBuf,
}

impl Folder {
    pub(super) fn new(dir: PathBuf) -> Result<Self> {
        fs::create_dir_all(&dir)?;
        Ok(Self { dir })
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
}

/// All resources of a bench are in this one.
pub(super) const NAMESPACE: &str = "apiVersion: v1
kind: Namespace
metadata:
  name: bench
  labels:
    mesh.covet.dev/enabled: \"true\"
";

pub(super) fn workload(
    node: &str,
    name: &str,
    addresses: &[String],
    netns: &Path,
    account: &str,
) -> String {
    format!(
        "---
apiVersion: mesh.covet.dev/v1alpha1
kind: Workload
metadata:
  name: {name}
  namespace: bench
spec:
  node: {node}
  addresses: {addresses:?}
  netns: {netns}
  serviceAccount: {account}
",
        netns = netns.display()
    )
}

/// A service without selector and its endpoints; `ports` are (service's, endpoint's).
pub(super) fn service(name: &str, vip: &str, ports: &[(u16, u16)], endpoints: &[String]) -> String {
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
