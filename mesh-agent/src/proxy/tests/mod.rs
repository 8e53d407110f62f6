//! The proxy over loopback: real sockets, no BPF. This file is the kit; the tests are in its submodules.

mod candidates;
mod checks;
mod connecting;
mod inbound_http;
mod life;
mod relay;
pub(super) mod tunnel;

use std::{
    collections::HashMap,
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::BorrowedFd,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use mesh_common::Role;
use rustix::net::getpeername;
use socket2::{Domain, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::{
    model::{EffectivePolicy, ResourceName},
    telemetry::{Connection, Telemetry, TelemetryOptions},
};

/// Everything here happens within this.
const SOON: Duration = Duration::from_secs(20);

/// A workload whose captured connections all dial one destination, and whose application listens somewhere.
pub(super) struct TestPod {
    name: ResourceName,
    cookie: u64,
    pub(super) policy: Mutex<Arc<EffectivePolicy>>,
    /// What the application dialled.
    pub(super) dials: Mutex<Option<SocketAddr>>,
    /// Where the application listens.
    pub(super) application: Mutex<SocketAddr>,
    /// Clients announced with set_client.
    pub(super) clients: Mutex<Vec<SocketAddr>>,
    /// Accepted clients, by their address.
    pub(super) accepted: Mutex<HashMap<SocketAddr, usize>>,
    pub(super) socket_error: Mutex<Option<i32>>,
}

impl PodSockets for TestPod {
    fn name(&self) -> &ResourceName {
        &self.name
    }

    fn cookie(&self) -> u64 {
        self.cookie
    }

    fn policy(&self) -> Arc<EffectivePolicy> {
        self.policy.lock().unwrap().clone()
    }

    fn socket(&self, v6: bool) -> BoxFuture<'_, io::Result<Socket>> {
        let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
        Box::pin(async move {
            if let Some(errno) = *self.socket_error.lock().unwrap() {
                return Err(io::Error::from_raw_os_error(errno));
            }
            Socket::new(domain, Type::STREAM.nonblocking().cloexec(), None)
        })
    }

    fn original_dst(&self, fd: BorrowedFd<'_>) -> io::Result<Option<(SocketAddr, u64)>> {
        let client = SocketAddr::try_from(getpeername(fd)?.unwrap()).unwrap();
        *self.accepted.lock().unwrap().entry(client).or_default() += 1;
        Ok(self.dials.lock().unwrap().map(|dials| (dials, 7)))
    }

    fn set_client(&self, _: BorrowedFd<'_>, client: SocketAddr) -> io::Result<()> {
        self.clients.lock().unwrap().push(client);
        Ok(())
    }

    fn application(&self, _: SocketAddr) -> Option<SocketAddr> {
        Some(*self.application.lock().unwrap())
    }
}

/// A proxy with one workload.
pub(super) struct Rig {
    pub(super) proxy: Arc<Proxy>,
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) pod: Arc<TestPod>,
    /// Dial this to be the application that dials.
    pub(super) outbound: SocketAddr,
    /// Dial this to be somebody who dials the application.
    pub(super) inbound: SocketAddr,
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(super) fn with(change: impl FnOnce(&mut ProxyOptions)) -> Self {
        let mut options = ProxyOptions::for_nofile(4096);
        change(&mut options);
        let catalog = Catalog::new("node");
        let telemetry = Arc::new(Telemetry::new(TelemetryOptions::default()));
        let proxy = Proxy::new(catalog, telemetry.clone(), options).unwrap();
        let (pod, outbound, inbound) = add_pod(&proxy, "app", 1);
        Self {
            proxy,
            telemetry,
            pod,
            outbound,
            inbound,
        }
    }

    pub(super) fn dials(&self, destination: SocketAddr) {
        *self.pod.dials.lock().unwrap() = Some(destination);
    }

    /// A connection through the proxy to `server`, and the server's end of it.
    pub(super) async fn connect(&self, server: &TcpListener) -> (TcpStream, TcpStream) {
        self.dials(server.local_addr().unwrap());
        let client = TcpStream::connect(self.outbound).await.unwrap();
        let (server, _) = within(server.accept()).await.unwrap();
        (client, server)
    }

    /// The only closed connection.
    pub(super) async fn closed(&self) -> Connection {
        poll_until("a closed connection", || {
            self.telemetry.closed_connections().into_iter().next()
        })
        .await
    }

    /// The reason why the only connection closed.
    pub(super) async fn reason(&self) -> String {
        self.closed().await.reason.unwrap()
    }
}

/// Serves one more workload.
pub(super) fn add_pod(
    proxy: &Proxy,
    name: &str,
    cookie: u64,
) -> (Arc<TestPod>, SocketAddr, SocketAddr) {
    let pod = Arc::new(TestPod {
        name: ResourceName::new("test", name),
        cookie,
        policy: Mutex::default(),
        dials: Mutex::default(),
        application: Mutex::new(SocketAddr::from((Ipv4Addr::LOCALHOST, 1))),
        clients: Mutex::default(),
        accepted: Mutex::default(),
        socket_error: Mutex::default(),
    });
    know(proxy, name, cookie);
    let listen = || std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (outbound, inbound) = (listen(), listen());
    let addresses = (
        outbound.local_addr().unwrap(),
        inbound.local_addr().unwrap(),
    );
    proxy
        .serve_pod(
            pod.clone(),
            vec![(Role::Outbound, outbound), (Role::Inbound, inbound)],
        )
        .unwrap();
    (pod, addresses.0, addresses.1)
}

/// Tells the catalog of a workload; of one that it does not know nothing is let in.
fn know(proxy: &Proxy, name: &str, number: u64) {
    let config = format!(
        "apiVersion: mesh.covet.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {name}, namespace: test}}\n\
         spec: {{addresses: [192.0.2.{number}]}}\n"
    );
    let (config, _) = crate::api::parse_bytes("workload.yaml", config.as_bytes()).unwrap();
    let catalog = &proxy.shared.catalog;
    catalog.apply(catalog.register(), config);
}

pub(super) async fn listen() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap()
}

/// An address where nothing listens.
pub(super) fn refusing() -> SocketAddr {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap()
}

/// A listener that answers no SYN: its queue is full. Keep what is returned.
pub(super) fn silent() -> (SocketAddr, Vec<Socket>) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    listener.bind(&any.into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let mut kept = vec![listener];
    for _ in 0..3 {
        let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        client.set_nonblocking(true).unwrap();
        let _ = client.connect(&address.into());
        kept.push(client);
    }
    (address, kept)
}

pub(super) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(SOON, future)
        .await
        .expect("nothing happened in time")
}

/// Polls until there is something.
pub(super) async fn poll_until<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(found) = poll() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not in time");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Makes close() send RST.
pub(super) fn reset(stream: TcpStream) {
    stream.set_zero_linger().unwrap();
    drop(stream);
}

/// Reads to the end; the error if that is a reset.
pub(super) async fn read_to_end(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    within(stream.read_to_end(&mut data)).await?;
    Ok(data)
}

/// Asserts that the next thing to come is a reset, without any data.
pub(super) async fn expect_reset(stream: &mut TcpStream) {
    let mut byte = [0];
    let error = within(stream.read(&mut byte))
        .await
        .expect_err("data or FIN instead of RST");
    assert!(
        matches!(
            error.kind(),
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
        ),
        "{error}"
    );
}

/// Waits for the error of a socket that reads and writes nothing.
pub(super) async fn expect_error(stream: &TcpStream) {
    within(stream.ready(tokio::io::Interest::ERROR))
        .await
        .unwrap();
}

pub(super) async fn write(stream: &mut TcpStream, data: &[u8]) {
    within(stream.write_all(data)).await.unwrap();
}

pub(super) async fn read(stream: &mut TcpStream, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    within(stream.read_exact(&mut data)).await.unwrap();
    data
}
