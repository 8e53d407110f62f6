//! `mesh-agent ca serve`, and what agents need to ask it.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crate::{
    agent, command, command::Process, config::Config, node::Node, pki::Authority, run, runner,
    traffic, wait::eventually,
};

const PORT: u16 = 15012;

/// A running certificate authority; ends with its owner.
#[derive(Debug)]
pub struct CaServer {
    process: Mutex<Option<Process>>,
    node: Arc<Node>,
    config: PathBuf,
    state: PathBuf,
    args: Vec<String>,
    log: PathBuf,
}

impl CaServer {
    /// Starts one on a node; it places workloads by `config`.
    pub fn start(node: &Arc<Node>, config: &Config) -> CaServer {
        CaServer::start_with(node, config, &[])
    }

    pub fn start_with(node: &Arc<Node>, config: &Config, args: &[&str]) -> CaServer {
        let base = run::folder().join(run::unique());
        let ca = CaServer {
            process: Mutex::new(None),
            node: Arc::clone(node),
            config: config.path().to_owned(),
            state: base.join("ca"),
            args: args.iter().map(ToString::to_string).collect(),
            log: base.join("ca.log"),
        };
        fs::create_dir_all(&base).expect("make a folder");
        ca.run();
        ca
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        (self.node.address(), PORT).into()
    }

    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Starts the process and waits until it listens.
    pub fn run(&self) {
        let mut command = Command::new(agent::binary());
        command
            .args(["ca", "serve", "--state"])
            .arg(&self.state)
            .arg("--config")
            .arg(&self.config)
            .args(["--listen", &self.address().to_string()])
            .args(&self.args);
        runner::attach(self.log.clone());
        let process = Process::start_with_log(&self.node, "ca", &mut command, self.log.clone());
        *self.process() = Some(process);
        eventually("the CA listens", Duration::from_secs(20), || {
            let running = self.process().as_mut().is_some_and(Process::is_running);
            assert!(running, "the CA ended: {}", self.log());
            traffic::connect(&self.node, self.address()).is_ok()
        });
    }

    /// kill -9.
    pub fn kill(&self) {
        *self.process() = None;
    }

    /// SIGTERM; gives the exit code.
    pub fn stop(&self) -> Option<i32> {
        let mut process = self.process().take().expect("the CA runs");
        process.signal(rustix::process::Signal::TERM);
        process.wait(Duration::from_secs(20)).code()
    }

    pub fn restart(&self) {
        self.kill();
        self.run();
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn process(&self) -> std::sync::MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A command of `mesh-agent ca`, on this state.
    pub fn cli(&self, command: &str, args: &[&str]) -> String {
        let out = command::output(
            &self.node,
            Command::new(agent::binary())
                .args(["ca", command, "--state"])
                .arg(&self.state)
                .args(args),
            Duration::from_secs(20),
        );
        assert!(
            out.status.success(),
            "mesh-agent ca {command} {args:?}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// A credential of a node, in a file.
    pub fn token(&self, node: &str) -> PathBuf {
        let path = self.state.with_extension(format!("{node}.token"));
        fs::write(&path, self.cli("token", &["--node", node])).expect("write a token");
        path
    }

    /// A step of the rotation of the root: prepare, activate, finish.
    pub fn rotate(&self, step: &str) {
        self.cli("rotate-root", &[step, "--wait", "0s"]);
    }

    /// What an agent of `node` is told of this authority.
    pub fn agent_args(&self, node: &str) -> Vec<String> {
        vec![
            "--ca".into(),
            format!("https://{}", self.address()),
            "--ca-token-file".into(),
            self.token(node).display().to_string(),
            "--ca-root-file".into(),
            self.root_file().display().to_string(),
        ]
    }

    /// The file with its root.
    pub fn root_file(&self) -> PathBuf {
        self.state.join("roots.pem")
    }

    /// The authority itself, for peers with certificates of the right chain.
    pub fn authority(&self) -> Authority {
        Authority::load(&self.state.join("current"))
    }
}
