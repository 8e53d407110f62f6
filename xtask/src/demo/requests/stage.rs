//! Everything this demo makes, in one place; removed by `clean_up`, also after a failure or Ctrl-C.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::config::{self, CLIENT, Pod};
use crate::demo::agent::Agent;
use crate::demo::config::Config;
use crate::demo::machine::{self, eventually, inside, namespace};
use crate::demo::process::Process;
use crate::demo::stage as first;
use crate::{interrupt, sh};

const SERVER: &str = include_str!("server.py");

pub(super) struct Stage {
    id: String,
    dir: PathBuf,
    pub(super) config: Config,
    pub(super) agent: Agent,
    servers: Vec<Process>,
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
        let agent = Agent::new(
            first::node_name(&id),
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

    fn pod_ns(&self, pod: Pod) -> String {
        namespace(&self.id, pod.name)
    }

    /// Makes the node and its pods, with a server in each but the client's, and writes the resources.
    pub(super) fn build(&mut self) -> Result<()> {
        let node = namespace(&self.id, "node");
        machine::make_node(&node, 0)?;
        self.config.namespace(true)?;
        for pod in config::PODS {
            let ns = self.pod_ns(pod);
            machine::make_pod(&node, &ns, pod.name, 0, pod.host)?;
            let workload = pod.workload(self.agent.node(), &machine::path(&ns));
            self.config.put(&format!("{}.yaml", pod.name), &workload)?;
        }
        self.config.put("services.yaml", &config::services())?;
        let program = self.dir.join("server.py");
        fs::write(&program, SERVER)?;
        for pod in config::SERVERS {
            self.serve(pod, &program)?;
        }
        Ok(())
    }

    fn serve(&mut self, pod: Pod, program: &Path) -> Result<()> {
        let (ns, folder) = (self.pod_ns(pod), self.dir.join(pod.name));
        fs::create_dir_all(&folder)?;
        self.behave(pod, 200, 0.0)?;
        let mut command = inside(&ns, "python3");
        command.arg(program).arg(pod.name).arg(&folder).arg("8080");
        let process = Process::start(&mut command, &folder.join("out"))?;
        self.servers.push(process);
        let what = format!("{} listens", pod.name);
        eventually(&what, Duration::from_secs(20), || {
            Ok(sh::output(inside(&ns, "ss").args(["-Hltn"]))?.contains(":8080 "))
        })
    }

    /// From now on the pod's server answers with `status` after `delay` seconds.
    pub(super) fn behave(&self, pod: Pod, status: u16, delay: f64) -> Result<()> {
        let mode = self.dir.join(pod.name).join("mode");
        let staged = mode.with_extension("staged");
        fs::write(&staged, format!("{status} {delay}"))?;
        Ok(fs::rename(staged, mode)?)
    }

    /// How many requests the pod's server has seen.
    pub(super) fn seen(&self, pod: Pod) -> usize {
        let lines = fs::read_to_string(self.dir.join(pod.name).join("requests"));
        lines.unwrap_or_default().lines().count()
    }

    /// `curl` in the client pod; the first is how the reader would type it.
    pub(super) fn curl(&self, args: &[&str], url: &str) -> (String, Command) {
        let mut command = inside(&self.pod_ns(CLIENT), "curl");
        command.args(["-sS", "--max-time", "30"]);
        command.args(args).arg(url);
        let quoted = |arg: &&str| match arg.contains([' ', '[', '{']) {
            true => format!("'{arg}'"),
            false => (*arg).to_owned(),
        };
        let shown: Vec<String> = args.iter().chain([&url]).map(quoted).collect();
        (format!("curl {}", shown.join(" ")), command)
    }

    /// Sends `count` requests over one connection and says how often each answer came: `200 from web-1`.
    pub(super) fn many(&self, count: usize, args: &[&str], address: &str) -> Result<Tally> {
        interrupt::check()?;
        let url = format!("http://{address}/[1-{count}]");
        let (shown, _) = self.curl(args, &url);
        let ask = [
            "-o",
            "/dev/null",
            "-w",
            "%{http_code} %header{x-served-by}\n",
        ];
        let said = sh::output(&mut self.curl(&[args, &ask].concat(), &url).1)?;
        let mut answers: BTreeMap<String, usize> = BTreeMap::new();
        for line in said.lines() {
            let (status, by) = line.split_once(' ').unwrap_or((line, ""));
            let by = if by.is_empty() { "the mesh" } else { by };
            *answers.entry(format!("{status} from {by}")).or_default() += 1;
        }
        Ok(Tally { shown, answers })
    }

    /// Sum of a metric over the series whose labels contain all of `labels`, and their lines.
    pub(super) fn metric(&self, name: &str, labels: &[&str]) -> Result<(f64, Vec<String>)> {
        let mut curl = inside(&namespace(&self.id, "node"), "curl");
        let text = sh::output(curl.args(["-sS", "http://127.0.0.1:15020/metrics"]))?;
        let is = |line: &&str| {
            line.strip_prefix(name).is_some_and(|l| l.starts_with('{'))
                && labels.iter().all(|label| line.contains(label))
        };
        let lines: Vec<String> = text.lines().filter(is).map(str::to_owned).collect();
        let value = |line: &String| -> Result<f64> {
            let text = line.rsplit(' ').next().context("no value")?;
            text.parse().with_context(|| line.clone())
        };
        let sum = lines.iter().map(value).sum::<Result<f64>>()?;
        Ok((sum, lines))
    }

    /// The endpoint of a service that is this pod's, as `endpoints` says it.
    pub(super) fn endpoint(&self, service: &str, pod: Pod) -> Result<serde_json::Value> {
        let ports = self.agent.json(&format!("endpoints shop/{service}"))?;
        let own = format!("shop/{}", pod.name);
        let all = ports.as_array().into_iter().flatten();
        let mut all = all.flat_map(|port| port["endpoints"].as_array().into_iter().flatten());
        // The first: by IPv4, as the service's virtual address.
        let found = all.find(|e| {
            e["workload"] == own.as_str() && e["address"].as_str().is_some_and(|a| !a.contains('['))
        });
        found
            .cloned()
            .with_context(|| format!("no endpoint {own}: {ports}"))
    }

    /// Replaces the route of a service, and waits until the rule `name` is bound.
    pub(super) fn put_route(&self, service: &str, name: &str, text: &str) -> Result<()> {
        self.config.put(&format!("route-{service}.yaml"), text)?;
        let what = format!("the rule {name} is bound");
        eventually(&what, super::SOON, || {
            let routes = self.agent.json(&format!("routes shop/{service}"))?;
            let bound = routes["bound"].as_array().cloned().unwrap_or_default();
            Ok(bound.iter().any(|b| b["rule_name"] == name))
        })
    }

    pub(super) fn tell_log(&self) {
        let log = fs::read_to_string(self.agent.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().filter(|l| !l.contains(" access: ")).collect();
        eprintln!("the last lines of the agent's log, without the access log:");
        for line in &lines[lines.len().saturating_sub(15)..] {
            eprintln!("  {line}");
        }
    }

    pub(super) fn clean_up(mut self) -> Vec<String> {
        self.remove_all()
    }

    fn remove_all(&mut self) -> Vec<String> {
        self.settled = true;
        self.servers.clear();
        self.agent.end();
        first::remove(&self.id)
    }
}

/// How often each answer came.
pub(super) struct Tally {
    /// What the reader would type.
    pub(super) shown: String,
    answers: BTreeMap<String, usize>,
}

impl Tally {
    pub(super) fn of(&self, answer: &str) -> usize {
        self.answers.get(answer).copied().unwrap_or(0)
    }

    /// Those with this status, whoever gave it.
    pub(super) fn status(&self, status: u16) -> usize {
        let status = format!("{status} ");
        let with = self.answers.iter().filter(|(a, _)| a.starts_with(&status));
        with.map(|(_, times)| times).sum()
    }

    pub(super) fn print(&self) {
        println!("   $ {}", self.shown);
        for (answer, times) in &self.answers {
            println!("     {times:>4} x {answer}");
        }
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = self
            .answers
            .iter()
            .map(|(a, times)| format!("{times} x {a}"));
        f.write_str(&parts.collect::<Vec<_>>().join(", "))
    }
}
