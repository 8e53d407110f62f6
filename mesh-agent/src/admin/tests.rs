//! Both servers, over real sockets.

mod tap;

use std::{os::unix::fs::PermissionsExt, path::PathBuf, sync::Arc};

use futures::future::BoxFuture;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{
    AdminError, AdminState, AgentView, LocalSocket,
    api::{self, Connection},
    client::{Client, ClientError},
    serve_local, serve_public,
};
use crate::{
    model::ResourceName,
    telemetry::{
        ConnMeta, Direction, Peer, Protocol, Reason, Telemetry, TelemetryOptions,
        logging::LogControl,
    },
};

struct View {
    enrolled: bool,
    /// State of one of the certificates.
    certificate: &'static str,
}

impl AgentView for View {
    fn status(&self) -> api::Status {
        api::Status {
            node: "n1".into(),
            ..api::Status::default()
        }
    }
    fn conditions(&self) -> Vec<api::Condition> {
        vec![
            api::Condition {
                name: "kernel programs attached".into(),
                ok: true,
                detail: "6 programs".into(),
            },
            api::Condition {
                name: "pods enrolled".into(),
                ok: self.enrolled,
                detail: "shop/web-1: enrolling".into(),
            },
        ]
    }
    fn workloads(&self) -> Vec<api::Workload> {
        ["shop/web-1", "bank/web-1"]
            .map(|name| api::Workload {
                name: name.into(),
                ..api::Workload::default()
            })
            .to_vec()
    }
    fn services(&self) -> Vec<api::Service> {
        Vec::new()
    }
    fn certificates(&self) -> api::Certificates {
        let identity = |account: &str, state: &str| api::Certificate {
            identity: format!("spiffe://cluster.local/ns/shop/sa/{account}"),
            state: state.into(),
            not_after_unix_ms: Some(1_000),
            ..api::Certificate::default()
        };
        api::Certificates {
            ca: api::CaState {
                name: "built-in".into(),
                ..api::CaState::default()
            },
            identities: vec![identity("web", "valid"), identity("bad", self.certificate)],
            ..api::Certificates::default()
        }
    }
    fn policies(&self) -> Vec<api::Policy> {
        ["shop/web-clients", "bank/tellers"]
            .map(|name| api::Policy {
                name: name.into(),
                ..api::Policy::default()
            })
            .to_vec()
    }
    fn explain(&self, query: &api::ExplainQuery) -> Result<api::Explanation, String> {
        if query.source != "shop/client" {
            return Err(format!("no workload {}", query.source));
        }
        Ok(api::Explanation {
            service: Some(query.destination.clone()),
            ..api::Explanation::default()
        })
    }
    fn config(&self) -> serde_json::Value {
        serde_json::json!({"services": [], "token": "t0p"})
    }
    fn release(&self) -> BoxFuture<'static, Vec<String>> {
        Box::pin(async { vec!["link connect4".to_owned()] })
    }
}

fn state(enrolled: bool) -> AdminState {
    AdminState {
        node: "n1".into(),
        telemetry: Telemetry::new(TelemetryOptions::default()),
        log: LogControl::detached("info"),
        agent: Arc::new(View {
            enrolled,
            certificate: "valid",
        }),
    }
}

fn meta(port: u16) -> ConnMeta {
    ConnMeta {
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
    }
}

/// A served socket in a folder of its own; both go with it.
struct Served {
    _dir: tempfile::TempDir,
    path: PathBuf,
    task: tokio::task::JoinHandle<()>,
}

impl Served {
    fn start(state: AdminState) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run").join("n1.sock");
        let socket = LocalSocket::bind(&path).unwrap();
        Self {
            _dir: dir,
            path,
            task: tokio::spawn(serve_local(socket, state)),
        }
    }

    fn client(&self) -> Client {
        Client::new(&self.path)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn the_socket_is_private() {
    let served = Served::start(state(true));
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&served.path), 0o600);
    assert_eq!(mode(served.path.parent().unwrap()), 0o700);
}

#[tokio::test]
async fn a_living_agent_is_not_pushed_aside_and_a_dead_ones_socket_is() {
    let served = Served::start(state(true));
    assert!(matches!(
        LocalSocket::bind(&served.path),
        Err(AdminError::AlreadyRunning { .. })
    ));
    let status: api::Status = served.client().get("/v1/status").await.unwrap();
    assert_eq!(status.node, "n1");

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    assert!(matches!(
        Client::new(&path).get::<api::Status>("/v1/status").await,
        Err(ClientError::Refused { .. })
    ));
    let socket = LocalSocket::bind(&path).unwrap();
    drop(socket);
    assert!(!path.exists(), "the file goes with the agent");
    assert!(matches!(
        Client::new(&path).get::<api::Status>("/v1/status").await,
        Err(ClientError::Missing { .. })
    ));
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(
        LocalSocket::bind(&path),
        Err(AdminError::NotASocket { .. })
    ));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[tokio::test]
async fn a_socket_that_another_agent_took_over_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("n1.sock");
    let old = LocalSocket::bind(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let new = LocalSocket::bind(&path).unwrap();
    drop(old);
    assert!(path.exists());
    drop(new);
    assert!(!path.exists());
}

#[tokio::test]
async fn every_path_answers() {
    let state = state(false);
    let open = state.telemetry.open(meta(80));
    state.telemetry.open(meta(81)).finish(Reason::NoEndpoints);
    let served = Served::start(state);
    let client = served.client();

    let status: api::Status = client.get("/v1/status").await.unwrap();
    assert!(!status.ready);
    assert_eq!(status.connections.active, 1);
    assert_eq!(status.connections.closed_kept, 1);
    let workloads: Vec<api::Workload> = client.get("/v1/workloads").await.unwrap();
    assert_eq!(workloads.len(), 2);
    let workloads: Vec<api::Workload> = client.get("/v1/workloads?namespace=bank").await.unwrap();
    assert_eq!(workloads[0].name, "bank/web-1");
    let services: Vec<api::Service> = client.get("/v1/services").await.unwrap();
    assert!(services.is_empty());
    let ports = |rows: Vec<Connection>| rows.iter().map(|c| c.app_cookie).collect::<Vec<_>>();
    let get = |query: &'static str| {
        let client = client.clone();
        async move {
            client
                .get::<Vec<Connection>>(&format!("/v1/connections{query}"))
                .await
        }
    };
    assert_eq!(ports(get("").await.unwrap()), [80]);
    assert_eq!(ports(get("?closed=true").await.unwrap()), [81]);
    assert_eq!(ports(get("?reason=no_endpoints").await.unwrap()), [81]);
    assert!(get("?workload=other").await.unwrap().is_empty());
    let error = get("?port=x").await.unwrap_err();
    assert!(
        error.to_string().contains("port must be a number"),
        "{error}"
    );
    let certs: api::Certificates = client.get("/v1/certs").await.unwrap();
    assert_eq!(certs.identities.len(), 2);
    let certs: api::Certificates = client.get("/v1/certs?namespace=bank").await.unwrap();
    assert!(certs.identities.is_empty());
    assert_eq!(status.identity.certificates, 2);
    assert_eq!(status.identity.soonest_expiry_unix_ms, Some(1_000));
    let policies: Vec<api::Policy> = client.get("/v1/policies?namespace=bank").await.unwrap();
    assert_eq!(policies.len(), 1);
    let query = |source: &str| api::ExplainQuery {
        source: source.into(),
        destination: "web.shop:80&x=[::1]".into(),
        namespace: None,
        method: Some("PUT".into()),
        path: Some("/a?b=c&d".into()),
        headers: vec!["x: y&z".into(), "x: 2".into()],
    };
    assert_eq!(
        api::ExplainQuery::parse(query("a").to_query().trim_start_matches('?')),
        Ok(query("a"))
    );
    let explain = |source: &str| {
        let (client, path) = (client.clone(), query(source).to_query());
        async move {
            client
                .get::<api::Explanation>(&format!("/v1/explain{path}"))
                .await
        }
    };
    let explanation = explain("shop/client").await.unwrap();
    assert_eq!(explanation.service.as_deref(), Some("web.shop:80&x=[::1]"));
    let error = explain("shop/nobody").await.unwrap_err();
    assert_eq!(error.to_string(), "no workload shop/nobody");
    let error = client
        .get::<api::Explanation>("/v1/explain?source=a")
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("source and destination"),
        "{error}"
    );
    let released: api::Released = client.post("/v1/release").await.unwrap();
    assert_eq!(released.removed, ["link connect4"]);
    open.finish(Reason::Completed);
}

#[tokio::test]
async fn the_log_filter_is_read_changed_and_checked() {
    let served = Served::start(state(true));
    let client = served.client();
    let put = |filter: &str| {
        let (client, filter) = (client.clone(), filter.to_owned());
        async move {
            client
                .put::<api::LogLevel>("/v1/log-level", &api::LogLevel { filter })
                .await
        }
    };
    put("info,access=off").await.unwrap();
    let level: api::LogLevel = client.get("/v1/log-level").await.unwrap();
    assert_eq!(level.filter, "info,access=off");
    for wrong in ["debgu", "not a=filter=at all", "info,mesh_agent=loud"] {
        let error = put(wrong).await.unwrap_err();
        assert!(
            error.to_string().contains("expected a level"),
            "{wrong}: {error}"
        );
    }
    let level: api::LogLevel = client.get("/v1/log-level").await.unwrap();
    assert_eq!(
        level.filter, "info,access=off",
        "a wrong one changes nothing"
    );
}

#[tokio::test]
async fn a_bundle_holds_everything_redacted() {
    let served = Served::start(state(true));
    let bundle: api::SupportBundle = served.client().post("/v1/support-bundle").await.unwrap();
    let file = |name: &str| {
        let found = bundle.files.iter().find(|f| f.name == name);
        found.unwrap_or_else(|| panic!("no {name}")).content.clone()
    };
    assert!(file("status.json").contains("n1"));
    assert!(file("metrics.txt").contains("mesh_build_info"));
    assert!(file("config.json").contains("[redacted]"));
    assert!(bundle.files.iter().all(|f| !f.content.contains("t0p")));
}

#[tokio::test]
async fn wrong_paths_and_methods_are_said() {
    let served = Served::start(state(true));
    let client = served.client();
    let error = client.get::<api::Status>("/v2/status").await.unwrap_err();
    assert!(matches!(&error, ClientError::Answer { status, .. } if status.as_u16() == 404));
    let error = client.post::<api::Status>("/v1/status").await.unwrap_err();
    assert!(matches!(&error, ClientError::Answer { status, .. } if status.as_u16() == 405));
    let error = client
        .get::<api::Released>("/v1/release")
        .await
        .unwrap_err();
    assert!(error.to_string().contains("POST"), "{error}");
}

/// Status line and headers, body.
async fn http(addr: std::net::SocketAddr, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream
        .write_all(format!("{request} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.to_lowercase(), body.to_owned())
}

#[tokio::test]
async fn prometheus_and_the_kubelet_are_served() {
    for enrolled in [false, true] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let task = tokio::spawn(serve_public(listener, state(enrolled)));
        let (head, body) = http(addr, "GET /metrics").await;
        assert!(head.starts_with("http/1.1 200"), "{head}");
        assert!(
            head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"),
            "{head}"
        );
        assert!(body.contains("# TYPE mesh_build_info gauge"));
        let (head, body) = http(addr, "GET /healthz").await;
        assert!(head.starts_with("http/1.1 200") && body == "ok\n");
        let (head, body) = http(addr, "GET /readyz").await;
        let status = if enrolled {
            "http/1.1 200"
        } else {
            "http/1.1 503"
        };
        assert!(head.starts_with(status), "{head}");
        assert!(
            body.contains("pods enrolled: shop/web-1: enrolling"),
            "{body}"
        );
        let (head, _) = http(addr, "GET /v1/status").await;
        assert!(
            head.starts_with("http/1.1 404"),
            "the admin API is not on this port"
        );
        let (head, _) = http(addr, "POST /metrics").await;
        assert!(head.starts_with("http/1.1 405"), "{head}");
        let (head, body) = http(addr, "HEAD /metrics").await;
        assert!(head.starts_with("http/1.1 200") && body.is_empty());
        task.abort();
    }
}

#[test]
fn readiness_waits_for_certificates_but_not_for_one_that_is_refused() {
    for (certificate, ready) in [
        ("valid", true),
        ("refused", true),
        ("missing", false),
        ("expired", false),
    ] {
        let state = AdminState {
            agent: Arc::new(View {
                enrolled: true,
                certificate,
            }),
            ..state(true)
        };
        let (is_ready, conditions) = state.readiness();
        assert_eq!(is_ready, ready, "{certificate}: {conditions:#?}");
        let detail = &conditions.last().unwrap().detail;
        assert_eq!(detail.contains("/sa/bad is"), certificate != "valid");
    }
}

#[test]
fn an_authority_that_refuses_everything_is_not_ready_and_a_node_without_identities_is() {
    let certs = |states: &[&str]| api::Certificates {
        ca: api::CaState {
            name: "built-in".into(),
            ..api::CaState::default()
        },
        identities: states
            .iter()
            .map(|state| api::Certificate {
                state: (*state).into(),
                ..api::Certificate::default()
            })
            .collect(),
        ..api::Certificates::default()
    };
    let ok = |states| certs(states).condition().map(|c| c.ok);
    assert_eq!(ok(&["refused", "refused"]), Some(false));
    assert_eq!(ok(&[]), Some(true));
    assert_eq!(api::Certificates::default().condition(), None);
    let many = certs(&["missing"; 7]).condition().unwrap();
    assert!(
        many.detail.contains("`mesh-agent certs`"),
        "{}",
        many.detail
    );
}
