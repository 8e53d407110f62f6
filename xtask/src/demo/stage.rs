//! Everything the demo makes, in one place: made by `new`, removed by `clean_up`, also after a failure or Ctrl-C.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::agent::{self, Agent};
use super::config::Config;
use super::machine::{self, namespace};
use super::process::Process;
use crate::sh;

/// Files of running demos, one folder each.
pub(super) const RUN: &str = "/run/covet-demo";
/// In the folder of a demo that was left running on purpose.
const KEPT: &str = "kept";

pub(super) struct Stage {
    id: String,
    dir: PathBuf,
    pub(super) config: Config,
    pub(super) agent: Agent,
    /// Servers in the pods, by name.
    pub(super) servers: Vec<(String, Process)>,
    /// Nothing is to be removed any more.
    settled: bool,
}

/// Also when the demo panics: the terminal it prints to may be gone.
impl Drop for Stage {
    fn drop(&mut self) {
        if !self.settled {
            self.remove_all();
        }
    }
}

/// A pod: its name and the last part of its addresses.
#[derive(Clone, Copy)]
pub(super) struct Pod {
    pub(super) name: &'static str,
    pub(super) app: &'static str,
    pub(super) host: u8,
}

pub(super) const CLIENT: Pod = Pod {
    name: "client",
    app: "client",
    host: 10,
};
pub(super) const WEB: [Pod; 2] = [
    Pod {
        name: "web-1",
        app: "web",
        host: 11,
    },
    Pod {
        name: "web-2",
        app: "web",
        host: 12,
    },
];
pub(super) const PODS: [Pod; 3] = [CLIENT, WEB[0], WEB[1]];

impl Pod {
    pub(super) fn v4(self) -> String {
        format!("10.88.0.{}", self.host)
    }
}

impl Stage {
    pub(super) fn new() -> Result<Self> {
        let id = std::process::id().to_string();
        let dir = Path::new(RUN).join(&id);
        fs::create_dir_all(&dir)?;
        let config = Config::new(dir.join("config"))?;
        let agent = Agent::new(
            node_name(&id),
            namespace(&id, "node"),
            config.dir(),
            dir.join("agent.log"),
        );
        Ok(Self {
            id,
            dir,
            config,
            agent,
            servers: Vec::new(),
            settled: false,
        })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn node_ns(&self) -> String {
        namespace(&self.id, "node")
    }

    pub(super) fn pod_ns(&self, pod: Pod) -> String {
        namespace(&self.id, pod.name)
    }

    /// A command inside a pod.
    pub(super) fn inside(&self, pod: Pod, program: &str) -> Command {
        machine::inside(&self.pod_ns(pod), program)
    }

    /// Ends the server of this name.
    pub(super) fn stop_server(&mut self, name: &str) {
        self.servers.retain(|(known, _)| known != name);
    }

    /// The end of the agent's log, for whoever looks into a failure.
    pub(super) fn tell_log(&self) {
        let Ok(log) = fs::read_to_string(self.agent.log()) else {
            return;
        };
        let lines: Vec<&str> = log
            .lines()
            .filter(|line| !line.contains(" access: "))
            .collect();
        eprintln!("the last lines of the agent's log, without the access log:");
        for line in &lines[lines.len().saturating_sub(15)..] {
            eprintln!("  {line}");
        }
    }

    /// Leaves everything running.
    pub(super) fn keep(&mut self) -> Result<()> {
        fs::write(self.dir.join(KEPT), "")?;
        self.settled = true;
        self.agent.forget();
        for (_, process) in self.servers.drain(..) {
            process.leave();
        }
        println!("\nIt is left running. To play with it:");
        let (agent, client) = (agent::binary(), self.pod_ns(CLIENT));
        println!(
            "  alias mesh-agent='{} --node {}'",
            agent.display(),
            node_name(&self.id)
        );
        println!("  mesh-agent connections --watch");
        println!(
            "  nsenter --net=/run/netns/{client} curl http://{}/",
            super::config::VIP
        );
        println!(
            "  edit {}/*.yaml, then mesh-agent status",
            self.config.dir().display()
        );
        println!("  tail -f {}", self.agent.log().display());
        println!("  cargo xtask demo --clean      # removes all of it");
        Ok(())
    }

    /// Removes everything and says what could not be removed.
    pub(super) fn clean_up(mut self) -> Vec<String> {
        self.remove_all()
    }

    fn remove_all(&mut self) -> Vec<String> {
        self.settled = true;
        self.servers.clear();
        self.agent.end();
        remove(&self.id)
    }
}

pub(super) fn node_name(id: &str) -> String {
    format!("demo-{id}")
}

/// Where agents leave something under the names of their nodes.
const NODES: [&str; 3] = ["/sys/fs/bpf/mesh", "/var/lib/mesh-agent", "/run/mesh-agent"];

/// Names in a folder; of sockets without their ending.
fn names(dir: &str) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// What the nodes of a demo left in a folder of agents.
fn of_nodes(dir: &str, id: &str) -> Vec<PathBuf> {
    let node = node_name(id);
    let ours = |name: &String| {
        name.strip_prefix(&node)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '.']))
    };
    let found = names(dir).into_iter().filter(ours);
    found.map(|name| Path::new(dir).join(name)).collect()
}

/// Removes what a demo made: programs and maps, namespaces and what runs in them, files.
pub(super) fn remove(id: &str) -> Vec<String> {
    let ours = format!("{}{id}-", machine::PREFIX);
    // The agents first: they would only mourn the namespaces.
    let namespaces = || {
        machine::existing()
            .into_iter()
            .filter(|name| name.starts_with(&ours))
    };
    let is_node = |name: &&String| name.contains("-node");
    let mut last: Vec<String> = namespaces().collect();
    last.sort_by_key(|name| !is_node(&name));
    for name in last.iter().filter(is_node) {
        machine::end_processes(name);
    }
    for pins in of_nodes(NODES[0], id) {
        let node = pins.file_name().unwrap_or_default();
        let release = sh::output(
            Command::new(agent::binary())
                .args(["release", "--node"])
                .arg(node),
        );
        if let Err(error) = release {
            eprintln!("{error:#}");
        }
    }
    for name in &last {
        machine::remove(name);
    }
    let mut files = vec![Path::new(RUN).join(id)];
    files.extend(NODES[1..].iter().flat_map(|dir| of_nodes(dir, id)));
    for path in &files {
        let _ = if path.is_dir() {
            fs::remove_dir_all(path)
        } else {
            fs::remove_file(path)
        };
    }
    let mut left: Vec<String> = namespaces()
        .map(|name| format!("namespace {name}"))
        .collect();
    files.extend(of_nodes(NODES[0], id));
    files.retain(|path| path.exists());
    left.extend(files.iter().map(|path| path.display().to_string()));
    left
}

/// Removes what demos left that died without cleaning up; with `kept`, also those that were left running on purpose.
pub(super) fn sweep(kept: bool) {
    for id in ids() {
        let was_kept = Path::new(RUN).join(&id).join(KEPT).exists();
        let comm = fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
        if was_kept && !kept {
            println!(
                "demo {id} was left running with --keep; `cargo xtask demo --clean` removes it"
            );
        } else if was_kept || comm.trim() != "xtask" {
            println!("removing what demo {id} left");
            for left in remove(&id) {
                eprintln!("  could not remove {left}");
            }
        }
    }
}

/// Demos of which anything is left: files, namespaces, or pins.
fn ids() -> BTreeSet<String> {
    let first = |name: &str| name.split('-').next().map(str::to_owned);
    let pinned = names(NODES[0]);
    let pinned = pinned
        .iter()
        .filter_map(|name| first(name.strip_prefix("demo-")?));
    let namespaces = machine::existing();
    let namespaces = namespaces
        .iter()
        .filter_map(|name| first(name.strip_prefix(machine::PREFIX)?));
    let all = names(RUN).into_iter().chain(pinned).chain(namespaces);
    all.filter(|id| id.bytes().all(|b| b.is_ascii_digit()))
        .collect()
}
