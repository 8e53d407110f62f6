//! A running agent of a node, and what it says about itself.

use std::{
    ffi::OsStr,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rustix::process::Signal;
use serde_json::Value;

use crate::{
    command::{self, Process},
    config::Config,
    metrics::Scrape,
    node::Node,
    pki::Authority,
    prereq, run, runner,
    wait::eventually_some,
};

/// How long an agent may take to be ready. Generous: two cores may be busy with other tests.
const READY: Duration = Duration::from_secs(20);
/// Where agents keep their state, in folders named as their nodes.
const STATE: &str = "/var/lib/mesh-agent";
const CLI: Duration = Duration::from_secs(20);

/// The binary under test: MESH_AGENT_BIN, or built now, so that it is never an old one.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("MESH_AGENT_BIN") {
            return path.into();
        }
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
        let status = Command::new(cargo)
            .args([
                "build",
                "--quiet",
                "--package",
                "mesh-agent",
                "--manifest-path",
            ])
            .arg(manifest)
            .status()
            .expect("run cargo");
        assert!(status.success(), "mesh-agent does not build");
        // .../debug/deps/e2e-HASH -> .../debug/mesh-agent
        let test = std::env::current_exe().expect("own path");
        test.ancestors()
            .nth(2)
            .expect("target/debug/deps")
            .join("mesh-agent")
    })
}

/// An agent; killed, released and cleaned up after on drop.
#[derive(Debug)]
pub struct Agent {
    /// The agent and its CLI run in the node's namespace; its name is the node name.
    node: Arc<Node>,
    config: PathBuf,
    args: Vec<String>,
    log: PathBuf,
    /// Hard limit of descriptors; `None`: as the test has it.
    max_files: Option<u32>,
    process: Mutex<Option<Process>>,
}

impl Agent {
    /// Starts an agent and waits until it is ready.
    pub fn start(node: &Arc<Node>, config: &Config) -> Agent {
        let agent = Agent::prepare(node, config, &[]);
        agent.run();
        agent.wait_ready();
        agent
    }

    /// An agent that is not started yet; `args` are added to its command line.
    pub fn prepare(node: &Arc<Node>, config: &Config, args: &[&str]) -> Agent {
        prereq::bpf();
        binary();
        let log = run::folder().join(format!("{}-agent.log", node.name()));
        runner::attach(log.clone());
        Agent {
            node: Arc::clone(node),
            config: config.path().to_owned(),
            args: args.iter().map(ToString::to_string).collect(),
            log,
            max_files: None,
            process: Mutex::new(None),
        }
    }

    /// Runs the agent with a low hard limit of descriptors.
    #[must_use]
    pub fn with_max_files(mut self, limit: u32) -> Agent {
        prereq::programs(&["prlimit"]);
        self.max_files = Some(limit);
        self
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the process; does not wait for it.
    pub fn run(&self) {
        let mut command = match self.max_files {
            None => Command::new(binary()),
            Some(limit) => {
                // prlimit sets the limit and becomes the agent: the process id stays.
                let mut command = Command::new("prlimit");
                command
                    .arg(format!("--nofile={limit}:{limit}"))
                    .arg(binary());
                command
            }
        };
        command
            .args(["run", "--node", self.node.name(), "--config"])
            .arg(&self.config)
            .args(&self.args)
            .env_remove("NO_COLOR")
            .env_remove("NOTIFY_SOCKET");
        if std::env::var_os("RUST_LOG").is_none() {
            command.env("RUST_LOG", "info,mesh_agent=debug");
        }
        let process = Process::start_with_log(&self.node, "agent", &mut command, self.log.clone());
        *self.process() = Some(process);
    }

    pub fn node(&self) -> &str {
        self.node.name()
    }

    pub fn pid(&self) -> u32 {
        self.process().as_ref().expect("the agent runs").id()
    }

    pub fn is_running(&self) -> bool {
        self.process().as_mut().is_some_and(Process::is_running)
    }

    /// Everything the agent wrote since its first start.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Log lines that contain `needle`.
    pub fn log_lines(&self, needle: &str) -> Vec<String> {
        self.log()
            .lines()
            .filter(|l| l.contains(needle))
            .map(str::to_owned)
            .collect()
    }

    /// Shows the log's end if the current test fails: for tests that share an agent.
    pub fn attach(&self) {
        runner::attach(self.log.clone());
    }

    pub fn wait_ready(&self) {
        eventually_some("agent ready", READY, || {
            if !self.is_running() {
                panic!("the agent ended before it was ready");
            }
            match self.get("/readyz") {
                Ok((200, _)) => Ok(()),
                Ok((status, body)) => Err(format!("{status} {body}")),
                Err(e) => Err(e.to_string()),
            }
        });
    }

    /// What the agent made of a workload (`namespace/name`): enrolled, failed ...; `None` when it does not list it.
    pub fn workload_state(&self, name: &str) -> Option<String> {
        let out = self.cli(&["workloads", "-o", "json"]);
        let all: Value = serde_json::from_slice(&out.stdout).ok()?;
        let list = all
            .as_array()
            .or_else(|| all.get("workloads").and_then(Value::as_array))?;
        list.iter()
            .find(|w| w["name"] == name)
            .and_then(|w| w["state"].as_str())
            .map(str::to_owned)
    }

    /// Waits until all these workloads are enrolled.
    pub fn wait_enrolled(&self, names: &[String]) {
        for name in names {
            eventually_some(&format!("{name} enrolled"), READY, || {
                match self.workload_state(name).as_deref() {
                    Some("enrolled") => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            });
        }
    }

    /// kill -9.
    pub fn kill(&self) {
        if let Some(mut process) = self.process().take() {
            process.kill();
        }
    }

    /// SIGTERM; does not wait.
    pub fn term(&self) {
        if let Some(process) = self.process().as_ref() {
            process.signal(Signal::TERM);
        }
    }

    /// Resident memory in bytes.
    pub fn memory(&self) -> u64 {
        resident(self.pid()).expect("the agent runs")
    }

    /// The most resident memory while `work` runs, looked at every few milliseconds.
    pub fn peak_memory_of(&self, work: impl FnOnce()) -> u64 {
        let pid = self.pid();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let watch = scope.spawn(|| {
                let mut most = 0;
                while !done.load(Ordering::Relaxed) {
                    most = most.max(resident(pid).unwrap_or(0));
                    std::thread::sleep(Duration::from_millis(5));
                }
                most.max(resident(pid).unwrap_or(0))
            });
            // Also when it panics, or the scope would wait for ever.
            let _stop = OnDrop(&done);
            work();
            done.store(true, Ordering::Relaxed);
            watch.join().expect("join")
        })
    }

    /// Where the agent keeps what is to survive it.
    pub fn state_folder(&self) -> PathBuf {
        Path::new(STATE).join(self.node.name())
    }

    /// Puts an authority into the folder of an agent that has not run yet.
    pub fn seed_authority(&self, authority: &Authority) {
        use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
        let dir = self.state_folder().join("ca");
        let mut folder = std::fs::DirBuilder::new();
        folder.recursive(true).mode(0o700);
        folder.create(&dir).expect("make a folder");
        for (name, text) in [
            ("key.pem", authority.key_pem()),
            ("chain.pem", authority.chain_pem()),
            ("roots.pem", authority.root_pem()),
        ] {
            let mut options = std::fs::OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            let mut file = options.open(dir.join(name)).expect("make a file");
            file.write_all(text.as_bytes()).expect("write");
        }
    }

    /// The root of the agent's own certificate authority, with its key.
    pub fn built_in_authority(&self) -> Authority {
        Authority::load(&self.state_folder().join("ca"))
    }

    /// Waits for the process to end; gives its exit code.
    pub fn wait_end(&self, deadline: Duration) -> Option<i32> {
        let mut process = self.process();
        let code = process
            .as_mut()
            .expect("the agent runs")
            .wait(deadline)
            .code();
        *process = None;
        code
    }

    /// Starts again, with the same configuration directory, and waits until it is ready.
    pub fn restart(&self) {
        self.kill();
        self.run();
        self.wait_ready();
    }

    /// GET on the metrics and health port, from the node.
    pub fn get(&self, path: &str) -> std::io::Result<(u16, String)> {
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 15020));
        let mut stream = self
            .node
            .enter(|| TcpStream::connect_timeout(&addr, Duration::from_secs(2)))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n"
        )?;
        let mut raw = String::new();
        stream.read_to_string(&mut raw)?;
        let bad = || std::io::Error::other(format!("not HTTP: {raw:?}"));
        let (head, body) = raw.split_once("\r\n\r\n").ok_or_else(bad)?;
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|s| s.parse().ok())
            .ok_or_else(bad)?;
        let body = if head
            .to_ascii_lowercase()
            .contains("transfer-encoding: chunked")
        {
            dechunk(body)
        } else {
            body.to_owned()
        };
        Ok((status, body))
    }

    pub fn metrics(&self) -> Scrape {
        let (status, body) = self.get("/metrics").expect("GET /metrics");
        assert_eq!(status, 200, "GET /metrics: {body}");
        Scrape::parse(&body)
    }

    /// Runs the CLI against this agent.
    pub fn cli<S: AsRef<OsStr>>(&self, args: &[S]) -> Output {
        let mut command = Command::new(binary());
        command
            .args(args)
            .args(["--node", self.node.name()])
            .env("NO_COLOR", "1");
        command::output(&self.node, &mut command, CLI)
    }

    /// Runs a CLI command that must succeed, with `-o json`.
    pub fn json(&self, args: &[&str]) -> Value {
        let mut all = args.to_vec();
        all.extend(["-o", "json"]);
        let out = self.cli(&all);
        assert!(
            out.status.success(),
            "mesh-agent {}: {}\n{}{}",
            all.join(" "),
            out.status,
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
        serde_json::from_slice(&out.stdout).unwrap_or_else(|e| {
            panic!(
                "mesh-agent {}: {e}\n{}",
                all.join(" "),
                String::from_utf8_lossy(&out.stdout)
            )
        })
    }
}

struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn resident(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|l| l.starts_with("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
        // A killed agent leaves its programs in the kernel; that is the point of them.
        let _ = Command::new(binary())
            .args(["release", "--node", self.node.name()])
            .output();
        let _ = std::fs::remove_dir_all(self.state_folder());
    }
}

fn dechunk(mut body: &str) -> String {
    let mut out = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        if size == 0 || rest.len() < size {
            break;
        }
        out.push_str(&rest[..size]);
        body = rest[size..].trim_start_matches("\r\n");
    }
    out
}
