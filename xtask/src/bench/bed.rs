//! The machine of a bench: namespaces for nodes and pods, a folder for configuration and logs, and who runs on which
//! CPU. Which nodes and pods there are is up to each bench.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::process::pinned;
use crate::sh;

/// CPU of clients and servers, and of whatever stands between them.
pub(super) const LOAD_CPU: u32 = 0;
pub(super) const PROXY_CPU: u32 = 1;

pub(super) struct Bed {
    id: String,
    /// Configuration and logs.
    pub(super) dir: PathBuf,
    pub(super) mesh_load: PathBuf,
    namespaces: Vec<String>,
    /// Until the run is known to be good.
    keep_logs: bool,
}

impl Bed {
    pub(super) fn new(bench: &str, mesh_load: PathBuf) -> Result<Self> {
        let id = format!("cm-{bench}-{}", std::process::id());
        let dir = std::env::temp_dir().join(&id);
        // Apart from the configuration: the agent watches that folder and its parent.
        std::fs::create_dir_all(dir.join("logs"))?;
        Ok(Self {
            id,
            dir,
            mesh_load,
            namespaces: Vec::new(),
            keep_logs: true,
        })
    }

    /// A namespace that forwards between its wires.
    pub(super) fn add_node(&mut self, name: &str) -> Result<String> {
        self.add_namespace(name, &["net.ipv4.ip_forward=1"])
    }

    /// A namespace with a wire `eth0` to the bridge `br0` of a node.
    pub(super) fn add_pod(
        &mut self,
        name: &str,
        node: &str,
        wire: &str,
        address: &str,
        gateway: &str,
    ) -> Result<String> {
        let ns = self.add_namespace(name, &["net.ipv4.tcp_tw_reuse=1"])?;
        batch(
            node,
            &format!(
                "link add {wire} type veth peer name eth0 netns {ns}
                 link set {wire} master br0
                 link set {wire} up"
            ),
        )?;
        batch(
            &ns,
            &format!(
                "link set lo up
                 addr add {address} dev eth0
                 link set eth0 up
                 route add default via {gateway}"
            ),
        )?;
        Ok(ns)
    }

    /// The namespace of a node or a pod; of a node also the name that its agent has.
    pub(super) fn ns(&self, name: &str) -> String {
        format!("{}-{name}", self.id)
    }

    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{name}.log"))
    }

    pub(super) fn add_namespace(&mut self, name: &str, sysctls: &[&str]) -> Result<String> {
        let ns = self.ns(name);
        sh::output(Command::new("ip").args(["netns", "add", &ns]))?;
        self.namespaces.push(ns.clone());
        if !sysctls.is_empty() {
            let mut sysctl = pinned(PROXY_CPU, &ns, "sysctl");
            sh::output(sysctl.arg("-qw").args(sysctls))?;
        }
        Ok(ns)
    }

    /// Deletes namespaces that were added after the first `count`.
    pub(super) fn remove_namespaces_after(&mut self, count: usize) {
        for ns in self.namespaces.split_off(count.min(self.namespaces.len())) {
            let _ = sh::output(Command::new("ip").args(["netns", "delete", &ns]));
        }
    }

    pub(super) fn namespaces(&self) -> usize {
        self.namespaces.len()
    }

    pub(super) fn keep_logs(&mut self, keep: bool) {
        self.keep_logs = keep;
    }

    /// The load generator in a pod, on the load's CPU.
    pub(super) fn load(&self, pod: &str) -> Command {
        pinned(LOAD_CPU, &self.ns(pod), &self.mesh_load)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.remove_namespaces_after(0);
        if self.keep_logs {
            println!("logs: {}", self.dir.join("logs").display());
        } else {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// Lines for `ip -batch` in a namespace.
pub(super) fn batch(ns: &str, lines: &str) -> Result<()> {
    let lines: Vec<_> = lines.lines().map(str::trim).collect();
    let file = std::env::temp_dir().join(format!("{ns}.ip"));
    std::fs::write(&file, lines.join("\n")).with_context(|| file.display().to_string())?;
    let done = sh::output(Command::new("ip").args(["-n", ns, "-batch"]).arg(&file));
    let _ = std::fs::remove_file(&file);
    done.map(drop)
}

/// Where a pod's namespace is.
pub(super) fn netns_path(ns: &str) -> PathBuf {
    Path::new("/run/netns").join(ns)
}
