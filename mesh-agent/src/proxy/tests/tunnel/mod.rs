//! Tunnels over loopback: the kit. Two proxies of ours, or one of ours and a peer made of h2 and rustls alone.

mod carrying;
mod foreign;
pub(in crate::proxy) mod pki;
mod pooling;
mod speed;

use mesh_common::Direction;

use self::pki::Pki;
use super::{
    relay::{check_pattern, fill, send_pattern},
    *,
};
use crate::{
    api,
    catalog::Catalog,
    model::SpiffeId,
    proxy::{
        accept,
        served::Report,
        socket::Leg,
        tunnel::{self, TunnelRequest, TunnelStream},
    },
    telemetry::Telemetry,
};

const CONFIG: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: test, labels: {mesh.covet.dev/enabled: 'true'}}
---
apiVersion: mesh.covet.dev/v1alpha1
kind: Workload
metadata: {name: client, namespace: test}
spec: {node: node, addresses: [10.9.0.8], netns: /run/netns/client, serviceAccount: client}
---
apiVersion: mesh.covet.dev/v1alpha1
kind: Workload
metadata: {name: server, namespace: test}
spec: {node: node, addresses: [10.9.0.9], netns: /run/netns/server, serviceAccount: server}
";

pub(super) fn id(account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/test/sa/{account}")
        .parse()
        .unwrap()
}

/// One agent with one workload.
pub(super) struct Side {
    pub(super) proxy: Arc<Proxy>,
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) pod: Arc<TestPod>,
    pub(super) served: Arc<Served>,
    /// Its tunnel listener.
    pub(super) tunnel: SocketAddr,
}

impl Side {
    fn new(name: &str, pki: &Arc<Pki>, change: impl FnOnce(&mut ProxyOptions)) -> Self {
        let mut options = ProxyOptions::for_nofile(8192);
        change(&mut options);
        let catalog = Catalog::new("node");
        let (config, problems) = api::parse_bytes("config.yaml", CONFIG.as_bytes()).unwrap();
        assert!(problems.is_empty(), "{problems:?}");
        catalog.apply(catalog.register(), config);
        let telemetry = Arc::new(Telemetry::new(TelemetryOptions::default()));
        let credentials: Arc<Pki> = Arc::clone(pki);
        let proxy =
            Proxy::with_credentials(catalog, telemetry.clone(), credentials, options).unwrap();
        let (pod, _, _) = add_pod(&proxy, name, 7);
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let tunnel = listener.local_addr().unwrap();
        proxy
            .serve_pod(pod.clone(), vec![(Role::Tunnel, listener)])
            .unwrap();
        let served = Arc::clone(&proxy.lock().serving[&7]);
        Self {
            proxy,
            telemetry,
            pod,
            served,
            tunnel,
        }
    }

    /// Reason of the connections that have closed, in their order.
    pub(super) async fn reasons(&self, count: usize) -> Vec<String> {
        poll_until("closed connections", || {
            let closed = self.telemetry.closed_connections();
            (closed.len() >= count).then(|| {
                let mut reasons: Vec<_> = closed.into_iter().filter_map(|c| c.reason).collect();
                reasons.sort();
                reasons
            })
        })
        .await
    }
}

/// Two agents of ours.
pub(super) struct Mesh {
    pub(super) pki: Arc<Pki>,
    pub(super) source: Side,
    pub(super) destination: Side,
}

impl Mesh {
    pub(super) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(super) fn with(change: impl Fn(&mut ProxyOptions)) -> Self {
        let pki = Pki::new(&["client", "server", "other"]);
        Self {
            source: Side::new("client", &pki, &change),
            destination: Side::new("server", &pki, &change),
            pki,
        }
    }

    /// What the application at the destination listens on.
    pub(super) fn application(&self, listener: &TcpListener) -> SocketAddr {
        let address = listener.local_addr().unwrap();
        *self.destination.pod.application.lock().unwrap() = address;
        address
    }

    pub(super) async fn open(&self, authority: SocketAddr) -> Result<TunnelStream, Reason> {
        open(&self.source, request(self.destination.tunnel, authority)).await
    }

    /// A connection through the tunnel to `server`, and the server's end of it.
    pub(super) async fn connect(&self, server: &TcpListener) -> (TcpStream, TcpStream) {
        let authority = self.application(server);
        let opening = self.open(authority);
        let (stream, accepted) = within(async { tokio::join!(opening, server.accept()) }).await;
        let client = carry(&self.source, stream.unwrap(), authority).await;
        (client, accepted.unwrap().0)
    }
}

pub(super) fn request(peer: SocketAddr, authority: SocketAddr) -> TunnelRequest {
    TunnelRequest {
        source: id("client"),
        peer,
        expected: id("server"),
        authority,
        client: "127.0.0.1:4321".parse().unwrap(),
        chosen: false,
        service: Some("web.test".into()),
        baggage: "service.name=client".into(),
        deadline: tokio::time::Instant::now() + SOON,
    }
}

pub(super) async fn open(source: &Side, request: TunnelRequest) -> Result<TunnelStream, Reason> {
    let tunnels = &source.proxy.shared.tunnels;
    within(tunnels.open(source.pod.as_ref(), request)).await
}

/// Lets an application use the stream.
pub(super) async fn carry(source: &Side, stream: TunnelStream, to: SocketAddr) -> TcpStream {
    let listener = listen().await;
    let client = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (leg, peer) = listener.accept().await.unwrap();
    let (shared, served) = (&source.proxy.shared, &source.served);
    let meta = accept::meta(shared, served, Direction::Outbound, peer, to, None, 0);
    let report = Report::new(source.telemetry.open(meta), Arc::clone(served));
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        tunnel::run(Leg::new(leg), stream, &shared, report).await;
    });
    client
}
