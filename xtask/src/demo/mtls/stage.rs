//! Everything this demo makes, in one place; removed by `clean_up`, also after a failure or Ctrl-C.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::config::{self, Pod};
use crate::demo::agent::{self, Agent};
use crate::demo::config::Config;
use crate::demo::machine::{self, inside, namespace};
use crate::demo::process::Process;
use crate::demo::stage as first;
use crate::sh;

/// Where the authority listens: the address of node a on its pods' network.
pub(super) const AUTHORITY: &str = "10.88.1.1:15012";

pub(super) struct Stage {
    pub(super) id: String,
    dir: PathBuf,
    pub(super) config: Config,
    /// Agents of the nodes a and b.
    pub(super) agents: [Agent; 2],
    pub(super) authority: Option<Process>,
    pub(super) servers: Vec<Process>,
    settled: bool,
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !self.settled {
            self.remove_all();
        }
    }
}

impl Stage {
    pub(super) fn new() -> Result<Self> {
        let id = std::process::id().to_string();
        let dir = Path::new(first::RUN).join(&id);
        fs::create_dir_all(&dir)?;
        let config = Config::new(dir.join("config"))?;
        let agents = [0, 1].map(|node| {
            let name = config::node_name(&id, node);
            let token = dir.join(format!("{name}.token"));
            let root = dir.join("ca/roots.pem");
            Agent::new(
                name.clone(),
                node_ns(&id, node),
                config.dir(),
                dir.join(format!("{name}.log")),
            )
            .with_args(&[
                "--ca",
                &format!("https://{AUTHORITY}"),
                "--ca-token-file",
                &token.display().to_string(),
                "--ca-root-file",
                &root.display().to_string(),
                // The shortest there is: the demo shows a renewal.
                "--cert-ttl",
                "1m",
            ])
        });
        Ok(Self {
            id,
            dir,
            config,
            agents,
            authority: None,
            servers: Vec::new(),
            settled: false,
        })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Folder of the authority.
    pub(super) fn authority_dir(&self) -> PathBuf {
        self.dir.join("ca")
    }

    /// Where the credential of a node is.
    pub(super) fn token(&self, node: usize) -> PathBuf {
        self.dir
            .join(format!("{}.token", config::node_name(&self.id, node)))
    }

    pub(super) fn node_ns(&self, node: usize) -> String {
        node_ns(&self.id, node)
    }

    pub(super) fn pod_ns(&self, pod: Pod) -> String {
        namespace(&self.id, pod.name)
    }

    /// `curl` in a pod, ready to run; the first is how the reader would type it.
    pub(super) fn curl(&self, pod: Pod, path: &str) -> (String, Command) {
        let url = format!("http://{}:8080/{path}", config::WEB.v4());
        let mut command = inside(&self.pod_ns(pod), "curl");
        command.args(["-sS", "--max-time", "10", &url]);
        (
            format!("curl {url}      # in the pod {}", pod.name),
            command,
        )
    }

    /// What nginx answers the pod.
    pub(super) fn fetch(&self, pod: Pod) -> Result<String> {
        Ok(sh::output(&mut self.curl(pod, "").1)?.trim().to_owned())
    }

    /// The answer when it is served: nginx says who asked.
    pub(super) fn answer_to(pod: Pod) -> String {
        format!("web answers {}", pod.v4())
    }

    pub(super) fn is_served(&self, pod: Pod) -> bool {
        self.fetch(pod)
            .is_ok_and(|said| said == Self::answer_to(pod))
    }

    /// The agent of a pod's node.
    pub(super) fn agent(&self, pod: Pod) -> &Agent {
        &self.agents[pod.node]
    }

    /// The ends of the logs, for whoever looks into a failure.
    pub(super) fn tell_logs(&self) {
        let own = self.agents.iter().map(Agent::log);
        let authority = self.dir.join("ca.log");
        for path in own.chain([authority.as_path()]) {
            let log = fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<&str> = log.lines().filter(|l| !l.contains(" access: ")).collect();
            eprintln!("the last lines of {}:", path.display());
            for line in &lines[lines.len().saturating_sub(12)..] {
                eprintln!("  {line}");
            }
        }
    }

    pub(super) fn clean_up(mut self) -> Vec<String> {
        self.remove_all()
    }

    fn remove_all(&mut self) -> Vec<String> {
        self.settled = true;
        self.servers.clear();
        for agent in &mut self.agents {
            agent.end();
        }
        self.authority = None;
        first::remove(&self.id)
    }

    /// Makes the nodes, the wire between them, and the pods.
    pub(super) fn make_machines(&self) -> Result<()> {
        for node in [0, 1] {
            machine::make_node(&self.node_ns(node), config::net(node))?;
        }
        let (a, b) = (self.node_ns(0), self.node_ns(1));
        machine::join((&a, config::net(0)), (&b, config::net(1)))?;
        for pod in config::PODS {
            machine::make_pod(
                &self.node_ns(pod.node),
                &self.pod_ns(pod),
                pod.name,
                pod.net(),
                pod.host(),
            )?;
        }
        Ok(())
    }

    /// Writes the namespace and the workloads.
    pub(super) fn configure(&self) -> Result<()> {
        self.config.namespace(true)?;
        for pod in config::PODS.iter().filter(|pod| pod.member) {
            let netns = machine::path(&self.pod_ns(*pod));
            let text = pod.workload(&self.id, &netns);
            self.config.put(&format!("{}.yaml", pod.name), &text)?;
        }
        Ok(())
    }

    /// A command of `mesh-agent ca`; the first is how the reader would type it.
    pub(super) fn ca(&self, line: &str) -> (String, Command) {
        let dir = self.authority_dir();
        let mut command = inside(&self.node_ns(0), agent::binary());
        command
            .arg("ca")
            .args(line.split(' '))
            .arg("--state")
            .arg(&dir)
            .env("NO_COLOR", "1");
        let shown = format!("mesh-agent ca {line} --state {}", dir.display());
        (shown, command)
    }

    /// A certificate as `certs` lists it.
    pub(super) fn certificate(&self, pod: Pod) -> Result<serde_json::Value> {
        let all = self.agent(pod).json("certs")?;
        let identity = pod.identity();
        let list = all["identities"].as_array().cloned().unwrap_or_default();
        list.into_iter()
            .find(|c| c["identity"] == identity.as_str())
            .ok_or_else(|| anyhow::anyhow!("{identity} is not listed: {all}"))
    }

    /// What `explain` says of a connection to web, asked at web's node.
    pub(super) fn explain(&self, pod: Pod, port: u16) -> (String, Command) {
        self.agents[1].cli(&format!("explain shop/{} shop/web:{port}", pod.name))
    }
}

fn node_ns(id: &str, node: usize) -> String {
    namespace(id, ["node-a", "node-b"][node])
}
