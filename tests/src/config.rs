//! A directory of resources for an agent, and the documents tests need often.

use std::{
    fmt::Write as _,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use crate::{node::Pod, run};

/// A configuration directory. Files appear and change by rename, as an editor or a ConfigMap would do it.
#[derive(Debug)]
pub struct Config {
    dir: PathBuf,
    staging: PathBuf,
}

impl Config {
    pub fn new() -> Config {
        let base = run::folder().join(run::unique());
        let config = Config {
            dir: base.join("config"),
            staging: base.join("staging"),
        };
        fs::create_dir_all(&config.dir).expect("make the configuration directory");
        fs::create_dir_all(&config.staging).expect("make the staging directory");
        config
    }

    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Writes one file of the directory at once.
    pub fn put(&self, file: &str, text: &str) {
        let staged = self.staging.join(file);
        fs::write(&staged, text).expect("write a configuration file");
        fs::rename(&staged, self.dir.join(file)).expect("rename a configuration file");
    }

    pub fn remove(&self, file: &str) {
        fs::remove_file(self.dir.join(file)).expect("remove a configuration file");
    }

    /// Namespace `name`, enrolled or not.
    pub fn namespace(&self, name: &str, enabled: bool) {
        self.put(&format!("namespace-{name}.yaml"), &namespace(name, enabled));
    }

    pub fn workload(&self, workload: &Workload) {
        self.put(
            &format!("workload-{}-{}.yaml", workload.namespace, workload.name),
            &workload.yaml(),
        );
    }

    pub fn service(&self, service: &Service) {
        self.put(
            &format!("service-{}-{}.yaml", service.namespace, service.name),
            &service.yaml(),
        );
    }

    /// A MeshPolicy in the root namespace; `spec` is indented by two spaces.
    pub fn mesh_policy(&self, spec: &str) {
        self.put("mesh-policy.yaml", &mesh_policy(spec));
    }

    /// An AuthorizationPolicy; `spec` is indented by two spaces.
    pub fn authorization(&self, namespace: &str, name: &str, spec: &str) {
        self.put(
            &format!("authorization-{namespace}-{name}.yaml"),
            &authorization(namespace, name, spec),
        );
    }

    /// Takes an AuthorizationPolicy back.
    pub fn no_authorization(&self, namespace: &str, name: &str) {
        self.remove(&format!("authorization-{namespace}-{name}.yaml"));
    }

    /// A TrafficPolicy of one service; `spec` is indented by two spaces.
    pub fn traffic_policy(&self, namespace: &str, service: &str, spec: &str) {
        self.put(
            &format!("traffic-{service}.yaml"),
            &traffic_policy(namespace, service, spec),
        );
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::new()
    }
}

pub fn namespace(name: &str, enabled: bool) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  labels:\n    mesh.covet.dev/enabled: \"{enabled}\"\n"
    )
}

pub fn mesh_policy(spec: &str) -> String {
    format!(
        "apiVersion: mesh.covet.dev/v1alpha1\nkind: MeshPolicy\nmetadata:\n  name: mesh\n  namespace: mesh-system\nspec:\n{spec}\n"
    )
}

/// A MeshPolicy of any scope; `spec` is indented by two spaces.
pub fn scoped_mesh_policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: mesh.covet.dev/v1alpha1\nkind: MeshPolicy\nmetadata:\n  name: {name}\n  namespace: {namespace}\nspec:\n{spec}\n"
    )
}

pub fn authorization(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: mesh.covet.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata:\n  name: {name}\n  namespace: {namespace}\nspec:\n{spec}\n"
    )
}

pub fn traffic_policy(namespace: &str, service: &str, spec: &str) -> String {
    format!(
        "apiVersion: mesh.covet.dev/v1alpha1\nkind: TrafficPolicy\nmetadata:\n  name: {service}\n  namespace: {namespace}\nspec:\n  targetRefs:\n  - group: \"\"\n    kind: Service\n    name: {service}\n{spec}\n"
    )
}

/// A Workload document.
#[derive(Clone, Debug)]
pub struct Workload {
    pub namespace: String,
    pub name: String,
    pub labels: Vec<(String, String)>,
    pub node: String,
    pub addresses: Vec<IpAddr>,
    pub netns: Option<PathBuf>,
    pub service_account: Option<String>,
    /// `HBONE` or `TCP`; absent: as the workload's own agent has it.
    pub protocol: Option<String>,
    pub weight: Option<u32>,
    pub ports: Vec<(String, u16)>,
}

impl Workload {
    /// The workload of a pod: label `app` is its name without trailing digits.
    pub fn of(pod: &Pod, namespace: &str, node: &str) -> Workload {
        Workload {
            namespace: namespace.into(),
            name: pod.name.clone(),
            labels: vec![("app".into(), app_of(&pod.name).into())],
            node: node.into(),
            addresses: vec![pod.v4.into(), pod.v6.into()],
            netns: Some(pod.path()),
            service_account: None,
            protocol: None,
            weight: None,
            ports: Vec::new(),
        }
    }

    pub fn yaml(&self) -> String {
        let mut out = format!(
            "apiVersion: mesh.covet.dev/v1alpha1\nkind: Workload\nmetadata:\n  name: {}\n  namespace: {}\n",
            self.name, self.namespace
        );
        if !self.labels.is_empty() {
            out.push_str("  labels:\n");
            for (key, value) in &self.labels {
                let _ = writeln!(out, "    {key}: \"{value}\"");
            }
        }
        let _ = writeln!(out, "spec:\n  node: {}\n  addresses:", self.node);
        for address in &self.addresses {
            let _ = writeln!(out, "  - \"{address}\"");
        }
        if let Some(netns) = &self.netns {
            let _ = writeln!(out, "  netns: {}", netns.display());
        }
        if let Some(account) = &self.service_account {
            let _ = writeln!(out, "  serviceAccount: {account}");
        }
        if let Some(protocol) = &self.protocol {
            let _ = writeln!(out, "  protocol: {protocol}");
        }
        if let Some(weight) = self.weight {
            let _ = writeln!(out, "  weight: {weight}");
        }
        if !self.ports.is_empty() {
            out.push_str("  ports:\n");
            for (name, port) in &self.ports {
                let _ = writeln!(out, "    {name}: {port}");
            }
        }
        out
    }
}

/// The name without trailing digits and dash: `web-1` and `web1` are of the app `web`.
pub fn app_of(name: &str) -> &str {
    name.trim_end_matches(|c: char| c.is_ascii_digit())
        .trim_end_matches('-')
}

/// A Service document that selects `app: NAME`.
#[derive(Clone, Debug)]
pub struct Service {
    pub namespace: String,
    pub name: String,
    pub vips: Vec<IpAddr>,
    /// Port and target port (a number, or the name of a workload's port).
    pub ports: Vec<(u16, String)>,
    pub app: String,
    pub client_ip_affinity: bool,
}

impl Service {
    pub fn yaml(&self) -> String {
        let mut out = format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: {}\n  namespace: {}\nspec:\n",
            self.name, self.namespace
        );
        if let Some(first) = self.vips.first() {
            let _ = writeln!(out, "  clusterIP: \"{first}\"\n  clusterIPs:");
            for vip in &self.vips {
                let _ = writeln!(out, "  - \"{vip}\"");
            }
        }
        let _ = writeln!(out, "  selector:\n    app: {}\n  ports:", self.app);
        for (port, target) in &self.ports {
            let _ = writeln!(
                out,
                "  - name: p{port}\n    port: {port}\n    targetPort: {target}"
            );
        }
        if self.client_ip_affinity {
            out.push_str("  sessionAffinity: ClientIP\n");
        }
        out
    }
}
