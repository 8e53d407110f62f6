//! Health checks through the proxy: from a workload's namespace, plainly and through a tunnel.

use super::{tunnel::Mesh, *};
use crate::{
    health::{Dial, Failed, Key, Wire, probe},
    model::{HealthCheck, HealthProbe},
    proxy::http::Io,
};

fn key(namespace: &str, endpoint: SocketAddr) -> Key {
    Key {
        service: ResourceName::new(namespace, "web"),
        port: 80,
        endpoint,
    }
}

fn check(probe: HealthProbe) -> HealthCheck {
    HealthCheck {
        probe,
        interval: SOON,
        timeout: SOON,
        healthy_threshold: 1,
        unhealthy_threshold: 1,
        port: None,
    }
}

fn get() -> HealthProbe {
    HealthProbe::Http {
        path: "/healthz".into(),
        host: None,
        expected: vec![(200, 299)],
    }
}

/// Answers one request.
async fn serve(listener: TcpListener, status: &'static str) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.extend(read(&mut stream, 1).await);
    }
    assert!(request.starts_with(b"GET /healthz HTTP/1.1\r\n"));
    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\nok");
    write(&mut stream, answer.as_bytes()).await;
}

#[tokio::test]
async fn plainly() {
    let rig = Rig::new();
    for (status, expected) in [
        ("200 OK", Ok(())),
        ("503 No", Err(Failed::Endpoint("status 503".into()))),
    ] {
        let server = listen().await;
        let address = server.local_addr().unwrap();
        tokio::spawn(serve(server, status));
        let key = key("test", address);
        let got = within(probe::check(&*rig.proxy, &key, &check(get()))).await;
        assert_eq!(got, expected);
    }
    let closed = key("test", refusing());
    let got = within(probe::check(&*rig.proxy, &closed, &check(HealthProbe::Tcp))).await;
    assert!(matches!(got, Err(Failed::Endpoint(_))), "{got:?}");
    assert_eq!(
        rig.telemetry.closed_connections(),
        [],
        "checks are no connections of the workload"
    );
}

#[tokio::test]
async fn in_the_name_of_a_workload_of_the_services_namespace() {
    let rig = Rig::new();
    // Its sockets cannot be made, so what is dialled in its name is not dialled.
    *rig.pod.socket_error.lock().unwrap() = Some(libc::EMFILE);
    let server = listen().await;
    let address = server.local_addr().unwrap();
    let tcp = check(HealthProbe::Tcp);
    let got = within(probe::check(&*rig.proxy, &key("test", address), &tcp)).await;
    assert!(
        matches!(got, Err(Failed::Unknown(_))),
        "what is wrong here says nothing of the endpoint: {got:?}"
    );
    add_pod(&rig.proxy, "aaa", 2);
    let got = within(probe::check(&*rig.proxy, &key("test", address), &tcp)).await;
    assert_eq!(got, Ok(()), "the first by name");
    within(rig.proxy.stop_pod(2, Duration::ZERO)).await;
    within(rig.proxy.stop_pod(1, Duration::ZERO)).await;
    let got = within(probe::check(&*rig.proxy, &key("test", address), &tcp)).await;
    let nobody = "no workload of this node is captured, in whose name it could be";
    assert_eq!(got, Err(Failed::Unknown(nobody.into())));
}

/// The tunnel's port is fixed, which loopback does not allow: so the tunnel is opened by hand.
struct Through(Mesh);

impl Dial for Through {
    fn dial<'a>(
        &'a self,
        _: &'a str,
        endpoint: SocketAddr,
        _: tokio::time::Instant,
    ) -> BoxFuture<'a, Result<Box<dyn Wire>, Failed>> {
        Box::pin(async move {
            match self.0.open(endpoint).await {
                Ok(stream) => Ok(Box::new(Io::from(stream)) as Box<dyn Wire>),
                Err(reason) => Err(Failed::Endpoint(reason.to_string())),
            }
        })
    }
}

#[tokio::test]
async fn through_a_tunnel() {
    let mesh = Through(Mesh::new());
    let server = listen().await;
    let address = mesh.0.application(&server);
    let (got, ()) = within(async {
        let (key, get) = (key("test", address), check(get()));
        tokio::join!(probe::check(&mesh, &key, &get), serve(server, "200 OK"))
    })
    .await;
    assert_eq!(got, Ok(()));
    // The application is gone, its agent is there.
    let got = within(probe::check(
        &mesh,
        &key("test", address),
        &check(HealthProbe::Tcp),
    ))
    .await;
    assert!(matches!(got, Err(Failed::Endpoint(_))), "{got:?}");
}
