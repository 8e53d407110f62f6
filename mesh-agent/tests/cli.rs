//! The binary against a served admin socket: exit codes, formats, pipes.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    io::Read as _,
    path::Path,
    process::{Command, Output, Stdio},
    sync::Arc,
};

use futures::future::BoxFuture;
use mesh_agent::{
    admin::{AdminState, AgentView, LocalSocket, api, serve_local},
    model::ResourceName,
    telemetry::{
        ConnGuard, ConnMeta, Direction, Peer, Protocol, Reason, Telemetry, TelemetryOptions,
        logging::LogControl,
    },
};

struct View;

impl AgentView for View {
    fn status(&self) -> api::Status {
        api::Status {
            node: "n1".into(),
            ..api::Status::default()
        }
    }
    fn conditions(&self) -> Vec<api::Condition> {
        Vec::new()
    }
    fn workloads(&self) -> Vec<api::Workload> {
        vec![api::Workload {
            name: "shop/client".into(),
            state: "enrolled".into(),
            ..api::Workload::default()
        }]
    }
    fn services(&self) -> Vec<api::Service> {
        Vec::new()
    }
    fn certificates(&self) -> api::Certificates {
        api::Certificates {
            ca: api::CaState {
                name: "built-in".into(),
                last_error: Some("no answer".into()),
                ..api::CaState::default()
            },
            identities: vec![api::Certificate {
                identity: "spiffe://cluster.local/ns/shop/sa/client".into(),
                state: "missing".into(),
                ..api::Certificate::default()
            }],
            ..api::Certificates::default()
        }
    }
    fn policies(&self) -> Vec<api::Policy> {
        ["shop/web", "shop/db"]
            .map(|name| api::Policy {
                name: name.into(),
                workloads: vec![format!("{name}-1")],
                dry_run: name == "shop/db",
                ..api::Policy::default()
            })
            .to_vec()
    }
    fn explain(&self, query: &api::ExplainQuery) -> Result<api::Explanation, String> {
        let api::ExplainQuery {
            source,
            destination,
            namespace,
            ..
        } = query;
        if source == "nobody" {
            return Err("no workload default/nobody".into());
        }
        Ok(api::Explanation {
            verdict: api::Verdict {
                allowed: false,
                reason: Some("policy_denied".into()),
                why: format!("{source} to {destination} in {namespace:?}"),
                ..api::Verdict::default()
            },
            ..api::Explanation::default()
        })
    }
    fn config(&self) -> serde_json::Value {
        serde_json::json!({"services": ["shop/web"]})
    }
    fn release(&self) -> BoxFuture<'static, Vec<String>> {
        Box::pin(async { vec!["link connect4".to_owned()] })
    }
}

/// A runtime that serves a socket in a folder of its own.
struct Served {
    dir: tempfile::TempDir,
    telemetry: Telemetry,
    _runtime: tokio::runtime::Runtime,
}

impl Served {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let telemetry = Telemetry::new(TelemetryOptions::default());
        let state = AdminState {
            node: "n1".into(),
            telemetry: telemetry.clone(),
            log: LogControl::detached("info"),
            agent: Arc::new(View),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let path = dir.path().join("n1.sock");
        runtime.spawn(async move { serve_local(LocalSocket::bind(&path).unwrap(), state).await });
        let served = Self {
            dir,
            telemetry,
            _runtime: runtime,
        };
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !served.dir.path().join("n1.sock").exists() {
            assert!(
                std::time::Instant::now() < deadline,
                "the socket does not appear"
            );
            std::thread::yield_now();
        }
        served
    }

    fn open(&self, port: u16) -> ConnGuard {
        self.telemetry.open(ConnMeta {
            direction: Direction::Outbound,
            workload: ResourceName::new("shop", "client"),
            source: Peer {
                addr: "10.0.0.1:40000".parse().unwrap(),
                workload: None,
            },
            original_dst: ([10, 96, 0, 1], port).into(),
            service: Some(ResourceName::new("shop", "web")),
            protocol: Protocol::Tcp,
            app_cookie: u64::from(port),
            agent_cookie: 0,
        })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = binary(args, self.dir.path());
        command.arg("--socket").arg(self.dir.path().join("n1.sock"));
        command
    }

    /// Standard output of a command that must succeed.
    fn said(&self, args: &[&str]) -> String {
        let out = self.command(args).output().unwrap();
        assert!(out.status.success(), "{args:?}: {out:?}");
        String::from_utf8(out.stdout).unwrap()
    }
}

fn binary(args: &[&str], dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-agent"));
    command
        .args(args)
        .current_dir(dir)
        .env_remove("COLUMNS")
        .env_remove("RUST_LOG");
    command
}

fn code(out: &Output) -> Option<i32> {
    out.status.code()
}

#[test]
fn every_command_in_every_format() {
    let served = Served::start();
    let guard = served.open(80);
    for args in [
        &["status"][..],
        &["workloads"],
        &["connections"],
        &["connections", "--closed"],
        &["services"],
        &["certs"],
        &["policies"],
        &["explain", "client", "web:80"],
        &["config", "dump"],
        &["log-level"],
    ] {
        for format in ["json", "yaml", "table", "wide"] {
            let mut all = args.to_vec();
            all.extend(["-o", format]);
            let text = served.said(&all);
            assert!(!text.contains('\u{1b}'), "no colour but on a terminal");
            if format == "json" {
                serde_json::from_str::<serde_json::Value>(&text).unwrap();
            }
        }
    }
    assert!(served.said(&["status"]).contains("n1"));
    assert!(served.said(&["workloads"]).contains("enrolled"));
    assert!(served.said(&["connections"]).contains("shop/web:80"));
    assert_eq!(served.said(&["workloads", "-n", "other"]), "");
    guard.finish(Reason::UpstreamTimeout);
    let closed = served.said(&["connections", "--reason", "upstream_timeout"]);
    assert!(closed.contains("upstream_timeout"), "{closed}");
    assert_eq!(
        served.said(&["release", "--node", "n1"]),
        "removed link connect4\n"
    );
}

#[test]
fn certificates_policies_and_explanations() {
    let served = Served::start();
    let status = served.command(&["status"]).output().unwrap();
    let status = String::from_utf8(status.stdout).unwrap();
    assert!(status.contains("not ready"), "{status}");
    assert!(status.contains("certificates: 0 of 1 valid"), "{status}");
    let certs = served.said(&["certs"]);
    for part in [
        "/ns/shop/sa/client  missing",
        "no answer",
        "no root is trusted",
    ] {
        assert!(certs.contains(part), "{part} in {certs}");
    }
    assert!(
        served
            .said(&["certs", "-n", "bank"])
            .contains("no identities")
    );
    let policies = served.said(&["policies", "--workload", "db-1"]);
    assert!(policies.contains("shop/db"), "{policies}");
    assert!(policies.contains("dry run"), "{policies}");
    assert!(!policies.contains("shop/web"), "{policies}");
    let explained = served.said(&["explain", "client", "[fd00::2]:80", "-n", "shop"]);
    assert!(
        explained.contains("refused (policy_denied): client to [fd00::2]:80 in Some(\"shop\")"),
        "{explained}"
    );
    let unknown = served
        .command(&["explain", "nobody", "web"])
        .output()
        .unwrap();
    assert_eq!(code(&unknown), Some(1));
    let said = String::from_utf8(unknown.stderr).unwrap();
    assert!(said.contains("no workload default/nobody"), "{said}");
}

#[test]
fn tables_keep_to_the_width() {
    let served = Served::start();
    let _guard = served.open(80);
    let out = served
        .command(&["connections", "-o", "wide"])
        .env("COLUMNS", "60")
        .output()
        .unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(
        text.lines().next().unwrap().len()
            < served
                .said(&["connections", "-o", "wide"])
                .lines()
                .next()
                .unwrap()
                .len()
    );
}

#[test]
fn watch_draws_and_ends() {
    let served = Served::start();
    let guard = served.open(80);
    let text = served.said(&["connections", "--watch", "--count", "2"]);
    assert_eq!(text.matches("1 connections").count(), 2, "{text}");
    assert!(text.contains("SENT/S"));
    let lines = served.said(&["connections", "--watch", "--count", "2", "-o", "json"]);
    assert_eq!(lines.lines().count(), 2);
    guard.finish(Reason::Completed);
}

#[test]
fn exit_codes_are_as_documented() {
    let dir = tempfile::tempdir().unwrap();
    let missing = binary(&["status", "--socket", "./none.sock"], dir.path())
        .output()
        .unwrap();
    assert_eq!(code(&missing), Some(3));
    let said = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(said.contains("mesh-agent run --config"), "{said}");
    for args in [
        &["frobnicate"][..],
        &["status", "-o", "xml"],
        &["run", "--config", "./none"],
    ] {
        assert_eq!(
            code(&binary(args, dir.path()).output().unwrap()),
            Some(2),
            "{args:?}"
        );
    }
    std::fs::write(dir.path().join("bad.yaml"), "kind: Nothing\n").unwrap();
    let bad = binary(&["config", "validate", "."], dir.path())
        .output()
        .unwrap();
    assert_eq!(code(&bad), Some(1));
    let said = String::from_utf8_lossy(&bad.stdout).into_owned();
    assert!(said.contains("bad.yaml"), "{said}");
    std::fs::remove_file(dir.path().join("bad.yaml")).unwrap();
    let good = binary(&["config", "validate", "."], dir.path())
        .output()
        .unwrap();
    assert_eq!(code(&good), Some(0), "{good:?}");
    let served = Served::start();
    let refused = served.command(&["log-level", "debgu"]).output().unwrap();
    assert_eq!(code(&refused), Some(1));
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let served = Served::start();
    let guards: Vec<_> = (1..2_000).map(|port| served.open(port)).collect();
    for args in [&["connections", "-o", "json"][..], &["completions", "bash"]] {
        let mut child = served
            .command(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = [0_u8; 10];
        child.stdout.take().unwrap().read_exact(&mut first).unwrap();
        let out = child.wait_with_output().unwrap();
        assert!(
            out.stderr.is_empty(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        assert_eq!(code(&out), Some(0));
    }
    for guard in guards {
        guard.finish(Reason::Completed);
    }
}

#[test]
fn a_support_bundle_is_one_file_also_without_an_agent() {
    let served = Served::start();
    let name = served.said(&["support-bundle"]);
    let path = served.dir.path().join(name.trim());
    assert!(path.metadata().unwrap().len() > 1_000);
    let dir = tempfile::tempdir().unwrap();
    let out = binary(
        &["support-bundle", "--node", "cm-nobody", "--file", "b.tar"],
        dir.path(),
    )
    .output()
    .unwrap();
    assert_eq!(code(&out), Some(0), "{out:?}");
    assert!(dir.path().join("b.tar").exists());
}
