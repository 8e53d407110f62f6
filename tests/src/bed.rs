//! A test bed: one node, its pods, their configuration, and the agent, made in one go.
//!
//! With `MESH_TESTS_MESH=off` the same bed comes without an agent: a scenario that passes so is a scenario that means
//! what it says, and what it then finds with an agent is the agent's doing.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use crate::{
    agent::Agent,
    config::{self, Config, Service, Workload},
    node::{Node, Pod},
    prereq,
    wait::eventually_some,
};

/// The mesh namespace of every pod of a bed.
pub const NAMESPACE: &str = "shop";

/// True unless MESH_TESTS_MESH=off.
pub fn mesh_is_on() -> bool {
    std::env::var("MESH_TESTS_MESH").as_deref() != Ok("off")
}

/// Skips a test that has no meaning without a mesh.
pub fn needs_mesh() {
    if !mesh_is_on() {
        prereq::skip("means nothing without a mesh");
    }
}

/// One node with everything on it. Fields drop in order: the agent first, the node last.
#[derive(Debug)]
pub struct Bed {
    agent: Option<Agent>,
    pub config: Config,
    pods: BTreeMap<String, Arc<Pod>>,
    services: BTreeMap<String, BedService>,
    pub node: Arc<Node>,
}

#[derive(Clone, Debug)]
struct BedService {
    vips: [IpAddr; 2],
    ports: Vec<(u16, u16)>,
    app: String,
}

impl BedService {
    fn document(&self) -> Service {
        Service {
            namespace: NAMESPACE.into(),
            name: self.app.clone(),
            vips: self.vips.to_vec(),
            ports: self
                .ports
                .iter()
                .map(|(port, target)| (*port, target.to_string()))
                .collect(),
            app: self.app.clone(),
            client_ip_affinity: false,
        }
    }
}

/// What a bed will hold.
#[derive(Debug)]
pub struct Plan {
    pods: Vec<(String, bool)>,
    services: Vec<(String, Vec<(u16, u16)>)>,
    files: Vec<(String, String)>,
}

impl Plan {
    /// An enrolled pod; its workload has the label `app`: the name without trailing digits.
    #[must_use]
    pub fn pod(mut self, name: &str) -> Plan {
        self.pods.push((name.into(), true));
        self
    }

    /// Enrolled pods.
    #[must_use]
    pub fn pods(self, names: &[&str]) -> Plan {
        names.iter().fold(self, |plan, name| plan.pod(name))
    }

    /// A pod that the mesh knows nothing of.
    #[must_use]
    pub fn outsider(mut self, name: &str) -> Plan {
        self.pods.push((name.into(), false));
        self
    }

    /// A service over the pods of the same app, with ports and target ports.
    #[must_use]
    pub fn service(mut self, app: &str, ports: &[(u16, u16)]) -> Plan {
        self.services.push((app.into(), ports.to_vec()));
        self
    }

    /// A file of the configuration directory.
    #[must_use]
    pub fn file(mut self, name: &str, text: &str) -> Plan {
        self.files.push((name.into(), text.into()));
        self
    }

    /// A MeshPolicy; `spec` is indented by two spaces.
    #[must_use]
    pub fn mesh_policy(self, spec: &str) -> Plan {
        let text = config::mesh_policy(spec);
        self.file("mesh-policy.yaml", &text)
    }

    /// A TrafficPolicy of a service; `spec` is indented by two spaces.
    #[must_use]
    pub fn traffic_policy(self, service: &str, spec: &str) -> Plan {
        let text = config::traffic_policy(NAMESPACE, service, spec);
        self.file(&format!("traffic-{service}.yaml"), &text)
    }

    /// Makes it all and starts the agent.
    pub fn start(self) -> Bed {
        let mut bed = self.prepare();
        bed.start_agent();
        bed
    }

    /// Makes it all but the agent.
    pub fn prepare(self) -> Bed {
        let node = Node::new();
        let config = Config::new();
        config.namespace(NAMESPACE, true);
        let mut pods = BTreeMap::new();
        for (name, enrolled) in &self.pods {
            let pod = node.pod(name);
            if *enrolled {
                config.workload(&Workload::of(&pod, NAMESPACE, node.name()));
            }
            pods.insert(name.clone(), pod);
        }
        let mut services = BTreeMap::new();
        for (at, (app, ports)) in self.services.iter().enumerate() {
            let service = BedService {
                vips: vips(at as u16 + 1),
                ports: ports.clone(),
                app: app.clone(),
            };
            config.service(&service.document());
            services.insert(app.clone(), service);
        }
        for (name, text) in &self.files {
            config.put(name, text);
        }
        Bed {
            agent: None,
            config,
            pods,
            services,
            node,
        }
    }
}

/// Virtual addresses of the n-th service of a bed.
pub fn vips(n: u16) -> [IpAddr; 2] {
    let [hi, lo] = n.to_be_bytes();
    [
        Ipv4Addr::new(172, 31, hi, lo).into(),
        Ipv6Addr::new(0xfd02, 0, 0, 0, 0, 0, 0, n).into(),
    ]
}

impl Bed {
    pub fn plan() -> Plan {
        Plan {
            pods: Vec::new(),
            services: Vec::new(),
            files: Vec::new(),
        }
    }

    /// A bed of enrolled pods.
    pub fn with(pods: &[&str]) -> Bed {
        Bed::plan().pods(pods).start()
    }

    /// Starts the agent and waits until every workload with a namespace here is enrolled. Nothing when the mesh is off.
    pub fn start_agent(&mut self) {
        if mesh_is_on() {
            let agent = Agent::start(&self.node, &self.config);
            agent.wait_enrolled(&self.enrolled_names());
            self.agent = Some(agent);
        } else {
            prereq::namespaces();
        }
    }

    /// As [`Bed::start_agent`], with an agent that the test prepared itself.
    pub fn start_this(&mut self, agent: Agent) {
        agent.run();
        agent.wait_ready();
        agent.wait_enrolled(&self.enrolled_names());
        self.agent = Some(agent);
    }

    /// The workload document of one of the bed's pods.
    pub fn workload(&self, pod: &str) -> Workload {
        Workload::of(self.pod(pod), NAMESPACE, self.node.name())
    }

    /// The document of one of the bed's services.
    pub fn service_document(&self, app: &str) -> Service {
        self.services[app].document()
    }

    /// Starts the agent while no workload is to be enrolled.
    pub fn start_unenrolled(&mut self) {
        self.agent = Some(Agent::start(&self.node, &self.config));
    }

    fn enrolled_names(&self) -> Vec<String> {
        self.pods
            .keys()
            .filter(|name| {
                self.config
                    .path()
                    .join(format!("workload-{NAMESPACE}-{name}.yaml"))
                    .exists()
            })
            .map(|name| format!("{NAMESPACE}/{name}"))
            .collect()
    }

    /// The agent; skips the test when the mesh is off.
    pub fn agent(&self) -> &Agent {
        needs_mesh();
        let agent = self
            .agent
            .as_ref()
            .expect("the bed's agent was not started");
        agent.attach();
        agent
    }

    /// The agent, if there is one.
    pub fn maybe_agent(&self) -> Option<&Agent> {
        self.agent.as_ref().inspect(|agent| agent.attach())
    }

    pub fn pod(&self, name: &str) -> &Arc<Pod> {
        self.pods
            .get(name)
            .unwrap_or_else(|| panic!("the bed has no pod {name}"))
    }

    /// Takes a pod out of the bed: its namespace goes when the last holder drops it.
    pub fn take_pod(&mut self, name: &str) -> Arc<Pod> {
        self.pods.remove(name).expect("the bed has the pod")
    }

    pub fn has_mesh(&self) -> bool {
        self.agent.is_some()
    }

    /// Where a client dials a service: its virtual address, or without a mesh its first backend.
    pub fn service(&self, app: &str, v6: bool, port: u16) -> SocketAddr {
        let service = &self.services[app];
        if self.has_mesh() {
            return SocketAddr::new(service.vips[usize::from(v6)], port);
        }
        let target = service
            .ports
            .iter()
            .find(|(p, _)| *p == port)
            .map_or(port, |(_, target)| *target);
        let backend = self
            .pods
            .values()
            .find(|pod| config::app_of(&pod.name) == service.app)
            .expect("the service has a pod");
        backend.addr(v6, target)
    }

    /// Enrols or releases one of the bed's pods by its own label; does not wait.
    pub fn set_enrolled(&self, pod: &str, enrolled: bool) {
        let mut workload = self.workload(pod);
        workload
            .labels
            .push(("mesh.covet.dev/enabled".into(), enrolled.to_string()));
        self.config.workload(&workload);
    }

    /// Waits until the agent has taken the configuration over, as seen by what it lists.
    pub fn wait_state(&self, pod: &str, state: &str) {
        let Some(agent) = self.maybe_agent() else {
            return;
        };
        let name = format!("{NAMESPACE}/{pod}");
        eventually_some(
            &format!("{name} {state}"),
            Duration::from_secs(15),
            || match agent.workload_state(&name) {
                Some(found) if found == state => Ok(()),
                found => Err(format!("{found:?}")),
            },
        );
    }
}
