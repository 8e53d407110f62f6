//! A mesh of several nodes: each a machine with its own agent, all with one configuration and one certificate authority,
//! joined by wires on which everything can be heard.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use crate::{
    agent::Agent,
    bed::{self, NAMESPACE},
    ca::CaServer,
    config::{self, Config, Service, Workload},
    node::{Node, Pod},
    pki::{self, Authority, Credential},
    wait::eventually_some,
};

/// The trust domain unless a MeshPolicy says otherwise.
pub const TRUST_DOMAIN: &str = "cluster.local";

/// Fields drop in order: the agents first, the nodes last.
#[derive(Debug)]
pub struct Mesh {
    agents: Vec<Option<Agent>>,
    pub ca: Option<CaServer>,
    pub config: Config,
    pods: BTreeMap<String, Member>,
    services: BTreeMap<String, Service>,
    args: Vec<String>,
    nodes: Vec<Arc<Node>>,
}

#[derive(Clone, Debug)]
struct Member {
    pod: Arc<Pod>,
    node: usize,
    namespace: String,
    account: String,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Captured by its node's agent.
    Enrolled,
    /// The mesh does not know it.
    Outsider,
    /// A workload whose tunnel somebody else serves: a test peer in the place of an agent.
    Fake,
}

/// What a mesh will hold.
#[derive(Debug)]
pub struct Plan {
    nodes: usize,
    pods: Vec<(usize, String, String, String, Kind)>,
    services: Vec<(String, Vec<(u16, u16)>)>,
    files: Vec<(String, String)>,
    args: Vec<String>,
}

impl Plan {
    /// An enrolled pod of node `node`, in the namespace `shop`, with its app's name as service account.
    #[must_use]
    pub fn pod(self, node: usize, name: &str) -> Plan {
        self.pod_of(node, name, NAMESPACE, config::app_of(name))
    }

    /// Enrolled pods of one node.
    #[must_use]
    pub fn pods(self, node: usize, names: &[&str]) -> Plan {
        names.iter().fold(self, |plan, name| plan.pod(node, name))
    }

    /// An enrolled pod with namespace and service account.
    #[must_use]
    pub fn pod_of(mut self, node: usize, name: &str, namespace: &str, account: &str) -> Plan {
        let pod = (
            node,
            name.into(),
            namespace.into(),
            account.into(),
            Kind::Enrolled,
        );
        self.pods.push(pod);
        self
    }

    /// A pod that the mesh knows nothing of.
    #[must_use]
    pub fn outsider(mut self, node: usize, name: &str) -> Plan {
        let pod = (
            node,
            name.into(),
            NAMESPACE.into(),
            String::new(),
            Kind::Outsider,
        );
        self.pods.push(pod);
        self
    }

    /// A workload with protocol HBONE that no agent has: a test peer listens on its port 15008.
    #[must_use]
    pub fn fake(mut self, node: usize, name: &str) -> Plan {
        let account = config::app_of(name).to_owned();
        let pod = (node, name.into(), NAMESPACE.into(), account, Kind::Fake);
        self.pods.push(pod);
        self
    }

    /// A service over the pods of the same app in `shop`, with ports and target ports.
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

    /// The MeshPolicy of the mesh; `spec` is indented by two spaces.
    #[must_use]
    pub fn mesh_policy(self, spec: &str) -> Plan {
        let text = config::mesh_policy(spec);
        self.file("mesh-policy.yaml", &text)
    }

    /// Strict everywhere.
    #[must_use]
    pub fn strict(self) -> Plan {
        self.mesh_policy("  mtls:\n    mode: strict")
    }

    /// An AuthorizationPolicy of `shop`; `spec` is indented by two spaces.
    #[must_use]
    pub fn authorization(self, name: &str, spec: &str) -> Plan {
        let text = config::authorization(NAMESPACE, name, spec);
        self.file(&format!("authorization-{NAMESPACE}-{name}.yaml"), &text)
    }

    /// More options for every agent.
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Plan {
        self.args.extend(args.iter().map(ToString::to_string));
        self
    }

    /// Makes it all and starts the agents; waits until every pod is enrolled.
    pub fn start(self) -> Mesh {
        let mut mesh = self.prepare();
        mesh.start_agents();
        mesh
    }

    /// Makes it all, the certificate authority included; no agent runs.
    pub fn prepare(self) -> Mesh {
        bed::needs_mesh();
        let nodes: Vec<_> = (0..self.nodes).map(|_| Node::new()).collect();
        for (at, a) in nodes.iter().enumerate() {
            for b in &nodes[at + 1..] {
                Node::link(a, b);
            }
        }
        let config = Config::new();
        let mut mesh = Mesh {
            agents: nodes.iter().map(|_| None).collect(),
            ca: None,
            config,
            pods: BTreeMap::new(),
            services: BTreeMap::new(),
            args: self.args,
            nodes,
        };
        let namespaces: BTreeSet<_> = self.pods.iter().map(|pod| pod.2.clone()).collect();
        for namespace in namespaces {
            mesh.config.namespace(&namespace, true);
        }
        for (node, name, namespace, account, kind) in self.pods {
            let member = Member {
                pod: mesh.nodes[node].pod(&name),
                node,
                namespace,
                account,
                kind,
            };
            mesh.pods.insert(name.clone(), member);
            if kind != Kind::Outsider {
                mesh.config.workload(&mesh.workload(&name));
            }
        }
        for (at, (app, ports)) in self.services.into_iter().enumerate() {
            let service = Service {
                namespace: NAMESPACE.into(),
                name: app.clone(),
                vips: bed::vips(at as u16 + 1).to_vec(),
                ports: ports
                    .iter()
                    .map(|(port, target)| (*port, target.to_string()))
                    .collect(),
                app: app.clone(),
                client_ip_affinity: false,
            };
            mesh.config.service(&service);
            mesh.services.insert(app, service);
        }
        for (name, text) in &self.files {
            mesh.config.put(name, text);
        }
        // One node needs no authority beside its agent.
        if mesh.nodes.len() > 1 {
            mesh.ca = Some(CaServer::start(&mesh.nodes[0], &mesh.config));
        }
        mesh
    }
}

impl Mesh {
    /// A mesh of so many nodes.
    pub fn plan(nodes: usize) -> Plan {
        Plan {
            nodes,
            pods: Vec::new(),
            services: Vec::new(),
            files: Vec::new(),
            args: Vec::new(),
        }
    }

    /// The agent of a node as it would be started.
    pub fn prepare_agent(&self, node: usize, args: &[&str]) -> Agent {
        self.prepare_agent_with(node, &self.config, args)
    }

    /// As [`Mesh::prepare_agent`], with a configuration that is not the mesh's.
    pub fn prepare_agent_with(&self, node: usize, config: &Config, args: &[&str]) -> Agent {
        let mut all: Vec<String> = match &self.ca {
            Some(ca) => ca.agent_args(self.nodes[node].name()),
            None => Vec::new(),
        };
        all.extend(self.args.iter().cloned());
        all.extend(args.iter().map(ToString::to_string));
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        Agent::prepare(&self.nodes[node], config, &all)
    }

    /// Starts every agent that does not run yet, and waits.
    pub fn start_agents(&mut self) {
        for node in 0..self.nodes.len() {
            if self.agents[node].is_none() {
                let agent = self.prepare_agent(node, &[]);
                agent.run();
                self.agents[node] = Some(agent);
            }
        }
        for node in 0..self.nodes.len() {
            self.agent(node).wait_ready();
            self.agent(node).wait_enrolled(&self.enrolled_on(node));
        }
        self.wait_certificates();
    }

    /// Starts the agent of one node, with more options; does not wait for anything.
    pub fn run_agent(&mut self, node: usize, args: &[&str]) {
        let agent = self.prepare_agent(node, args);
        agent.run();
        self.agents[node] = Some(agent);
    }

    /// Starts an agent that the test prepared itself; waits until its pods are enrolled and have certificates.
    pub fn start_prepared(&mut self, node: usize, agent: Agent) {
        agent.run();
        self.agents[node] = Some(agent);
        self.start_agents();
    }

    fn enrolled_on(&self, node: usize) -> Vec<String> {
        self.pods
            .values()
            .filter(|m| m.node == node && m.kind == Kind::Enrolled)
            .map(|m| format!("{}/{}", m.namespace, m.pod.name))
            .collect()
    }

    /// Waits until every enrolled pod's identity has a certificate.
    pub fn wait_certificates(&self) {
        for (node, agent) in self.agents.iter().enumerate() {
            let Some(agent) = agent else { continue };
            let mut wanted: BTreeSet<String> = self
                .pods
                .values()
                .filter(|m| m.node == node && m.kind == Kind::Enrolled)
                .map(|m| pki::spiffe(TRUST_DOMAIN, &m.namespace, &m.account))
                .collect();
            eventually_some("certificates", Duration::from_secs(20), || {
                for cert in agent.json(&["certs"])["identities"]
                    .as_array()
                    .ok_or("no list")?
                {
                    if cert["state"] == "valid" {
                        wanted.remove(cert["identity"].as_str().unwrap_or_default());
                    }
                }
                if wanted.is_empty() {
                    Ok(())
                } else {
                    Err(format!("missing: {wanted:?}"))
                }
            });
        }
    }

    pub fn node(&self, at: usize) -> &Arc<Node> {
        &self.nodes[at]
    }

    pub fn agent(&self, node: usize) -> &Agent {
        let agent = self.agents[node].as_ref().expect("the agent runs");
        agent.attach();
        agent
    }

    /// Takes an agent out: it ends when dropped.
    pub fn take_agent(&mut self, node: usize) -> Agent {
        self.agents[node].take().expect("the agent runs")
    }

    fn member(&self, name: &str) -> &Member {
        self.pods
            .get(name)
            .unwrap_or_else(|| panic!("the mesh has no pod {name}"))
    }

    pub fn pod(&self, name: &str) -> &Arc<Pod> {
        &self.member(name).pod
    }

    /// The agent of a pod's node.
    pub fn agent_of(&self, pod: &str) -> &Agent {
        self.agent(self.member(pod).node)
    }

    /// `namespace/name` of a pod's workload.
    pub fn name_of(&self, pod: &str) -> String {
        format!("{}/{pod}", self.member(pod).namespace)
    }

    /// `spiffe://...` of a pod's workload.
    pub fn identity(&self, pod: &str) -> String {
        let member = self.member(pod);
        pki::spiffe(TRUST_DOMAIN, &member.namespace, &member.account)
    }

    /// The document of a pod's workload.
    pub fn workload(&self, pod: &str) -> Workload {
        let member = self.member(pod);
        let mut workload = Workload::of(
            &member.pod,
            &member.namespace,
            self.nodes[member.node].name(),
        );
        workload.service_account = Some(member.account.clone());
        if member.kind == Kind::Fake {
            workload.netns = None;
            workload.protocol = Some("HBONE".into());
        }
        workload
    }

    /// Where a client dials a service.
    pub fn service(&self, app: &str, v6: bool, port: u16) -> SocketAddr {
        SocketAddr::new(self.services[app].vips[usize::from(v6)], port)
    }

    /// The authority that this mesh trusts, with its key: for peers with certificates of the right chain.
    pub fn authority(&self) -> Authority {
        match &self.ca {
            Some(ca) => ca.authority(),
            None => self.agent(0).built_in_authority(),
        }
    }

    /// A certificate with a pod's identity, of the right chain.
    pub fn credential(&self, pod: &str) -> Credential {
        self.authority().issue(&self.identity(pod))
    }
}
