//! Istio's own tunnel (its Go `pkg/hbone`) against the agent, in both directions.

use std::{process::Command, sync::Arc, time::Duration};

use mesh_tests::{
    Mesh, Pod,
    command::{self, Process},
    eventually,
    hbone::{self, TunnelServer},
    pki::{Authority, Credential, Files, spiffe},
    prereq,
    runner::Shared,
    tests,
    traffic::{self, Server, pattern},
};

use crate::common::must_echo;

static STAGE: Shared<Stage> = Shared::new();

tests! {
    istio_and_the_tests_peers,
    istio_dials_the_agent,
    the_agent_dials_istio,
    istio_with_another_name_is_refused,
}

pub(crate) fn teardown() {
    STAGE.clear();
}

/// `web` is enrolled; Istio's dialer is in `dialer`, its server in `istio` and `istio2`.
struct Stage {
    authority: Authority,
    mesh: Mesh,
}

fn stage() -> Arc<Stage> {
    prereq::istio_peer();
    STAGE.get(|| {
        let mesh = Mesh::plan(2)
            .pod(0, "web")
            .pod(0, "client")
            .outsider(1, "dialer")
            .fake(1, "istio")
            .fake(1, "istio2")
            .start();
        Stage {
            authority: mesh.authority(),
            mesh,
        }
    })
}

/// Istio's tunnel server in a pod, before an application of that pod.
fn istio_server(pod: &Pod, v6: bool, files: &Files) -> Process {
    let listen = pod.addr(v6, hbone::PORT).to_string();
    let process = Process::start(
        pod,
        "istio-server",
        Command::new(prereq::istio_peer())
            .args(["hbone-server", "--listen", &listen])
            .args(with(files)),
    );
    eventually("Istio's server listens", Duration::from_secs(20), || {
        process.log().contains("ready ")
    });
    process
}

fn with(files: &Files) -> Vec<String> {
    [
        ("--cert", &files.cert),
        ("--key", &files.key),
        ("--root", &files.root),
    ]
    .iter()
    .flat_map(|(flag, path)| [(*flag).to_owned(), path.display().to_string()])
    .collect()
}

/// Istio's dialer: its words.
fn istio_client(pod: &Pod, files: &Files, args: &[String]) -> Result<String, String> {
    let out = command::output(
        pod,
        Command::new(prereq::istio_peer())
            .arg("hbone-client")
            .args(with(files))
            .args(args),
        Duration::from_secs(80),
    );
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    if out.status.success() {
        Ok(said)
    } else {
        Err(format!("{said}{}", String::from_utf8_lossy(&out.stderr)))
    }
}

fn args(pairs: &[(&str, String)]) -> Vec<String> {
    pairs
        .iter()
        .flat_map(|(flag, value)| [format!("--{flag}"), value.clone()])
        .collect()
}

/// Istio's pieces and those of the tests understand each other: what differs below is the agent.
fn istio_and_the_tests_peers() {
    prereq::istio_peer();
    let node = mesh_tests::Node::new();
    let (a, b) = (node.pod("a"), node.pod("b"));
    let root = Authority::root("tests");
    let roots = Authority::store(&[&root]);
    let id = |name: &str| spiffe("cluster.local", "shop", name);
    let echo = Server::echo(&b, b.v4(8080));
    {
        let server = istio_server(&b, false, &root.issue(&id("b")).files(&root));
        let config = Arc::new(root.issue(&id("a")).client(&roots));
        let echoed = hbone::run(async {
            let mut peer = hbone::Peer::open(&a, b.v4(hbone::PORT), &config).await?;
            let answer = peer.connect(echo.addr).await?;
            assert_eq!(answer.status, 200);
            answer.round_trip(b"hello istio").await
        });
        assert_eq!(echoed.unwrap(), b"hello istio");
        let line = format!("client {} CONNECT {}", id("a"), echo.addr);
        assert!(server.log().contains(&line), "{}", server.log());
    }
    let server = TunnelServer::echo(&b, b.v4.into(), root.issue(&id("b")).server(&roots));
    let files = root.issue(&id("a")).files(&root);
    let said = istio_client(
        &a,
        &files,
        &args(&[
            ("proxy", b.v4(hbone::PORT).to_string()),
            ("target", echo.addr.to_string()),
            ("expect", id("b")),
            ("bytes", "100000".into()),
        ]),
    );
    assert!(said.unwrap().contains("echoed 100000 "));
    assert_eq!(server.asked()[0].authority, echo.addr.to_string());
}

/// Istio's dialer through the agent of `web`: a banner first, bytes by hash, many at once.
fn istio_dials_the_agent() {
    let stage = stage();
    let (web, dialer) = (stage.mesh.pod("web"), stage.mesh.pod("dialer"));
    let id = spiffe("cluster.local", "other", "dialer");
    let files = stage.authority.issue(&id).files(&stage.authority);
    for v6 in [false, true] {
        let server = Server::greeter(web, web.addr(v6, 8080), "220 ready\r\n");
        let said = istio_client(
            dialer,
            &files,
            &args(&[
                ("proxy", web.addr(v6, hbone::PORT).to_string()),
                ("target", server.addr.to_string()),
                ("expect", stage.mesh.identity("web")),
                ("banner", "11".into()),
                ("bytes", (8 << 20).to_string()),
                ("connections", "20".into()),
            ]),
        );
        let said = said.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(said.matches("echoed 8388608 ").count(), 20, "{said}");
        assert_eq!(
            said.matches("banner \"220 ready\\r\\n\"").count(),
            20,
            "{said}"
        );
        // All of them through one tunnel, and the application sees who dialled.
        assert_eq!(server.count(), 20);
        assert_eq!(server.last_seen().peer.ip(), dialer.addr(v6, 0).ip());
    }
    // An application that is not there, an address that was not dialled.
    for (target, status) in [(web.v4(9), "503"), (dialer.v4(8080), "400")] {
        let refused = istio_client(
            dialer,
            &files,
            &args(&[
                ("proxy", web.v4(hbone::PORT).to_string()),
                ("target", target.to_string()),
                ("expect", stage.mesh.identity("web")),
            ]),
        );
        let said = refused.unwrap_err();
        assert!(said.contains(status), "{target}: {said}");
    }
}

/// An enrolled client reaches an application behind Istio's server: bytes both ways, and the client's FIN.
fn the_agent_dials_istio() {
    let stage = stage();
    let (client, istio) = (stage.mesh.pod("client"), stage.mesh.pod("istio"));
    let files = stage.mesh.credential("istio").files(&stage.authority);
    for v6 in [false, true] {
        let server = istio_server(istio, v6, &files);
        let echo = Server::echo(istio, istio.addr(v6, 8080));
        must_echo(client, echo.addr);
        let line = format!(
            "client {} CONNECT {}",
            stage.mesh.identity("client"),
            echo.addr
        );
        assert!(server.log().contains(&line), "{}", server.log());
        // 64 MiB each way at once. (The application's FIN must come last: Istio's server stops reading at it.)
        let stream = traffic::connect(client, echo.addr).unwrap();
        assert_eq!(
            pattern::exchange(&stream, 1, 64 << 20, 1).unwrap(),
            64 << 20
        );
        let greeter = Server::greeter(istio, istio.addr(v6, 8082), "220 ready\r\n");
        let stream = traffic::connect(client, greeter.addr).unwrap();
        let answer = traffic::round_trip(&stream, b"after that").unwrap();
        assert_eq!(answer, b"220 ready\r\nafter that");
    }
}

fn istio_with_another_name_is_refused() {
    let stage = stage();
    let (client, istio) = (stage.mesh.pod("client"), stage.mesh.pod("istio2"));
    let other: Credential = stage
        .authority
        .issue(&spiffe("cluster.local", "shop", "other"));
    let echo = Server::echo(istio, istio.v4(8090));
    let server = istio_server(istio, false, &other.files(&stage.authority));
    crate::common::must_be_reset(client, echo.addr, Duration::from_secs(5));
    assert!(!server.log().contains("client spiffe:"), "{}", server.log());
    assert_eq!(echo.count(), 0);
}
