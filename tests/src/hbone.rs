//! Peers that speak HBONE (`CONNECT` over HTTP/2 over mutual TLS, port 15008), written from the contract with h2 and
//! rustls and none of the agent's code: good ones, and what bad ones are made of.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use bytes::Bytes;
use h2::{RecvStream, SendStream, client::SendRequest, server::SendResponse};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use rustls::{ClientConfig, ServerConfig, pki_types::CertificateDer};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::{
    netns::NetNs,
    runner,
    traffic::{self, PATIENCE, server as sockets},
};

/// The tunnel port.
pub const PORT: u16 = 15008;

/// Runs a peer to its end on a runtime of its own, which ends with it.
pub fn run<F: Future>(peer: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let output = runtime.block_on(peer);
    runtime.shutdown_background();
    output
}

/// Where a peer was turned away.
#[derive(Debug)]
pub enum Refused {
    /// TCP.
    Connect(io::Error),
    /// The TLS handshake, as far as the client sees it: with TLS 1.3 a server refuses the client's certificate after it.
    Tls(io::Error),
    /// The connection after the handshake, a server's late alert included.
    Connection(h2::Error),
    /// The stream alone.
    Stream(h2::Error),
    /// Nothing came.
    Silence,
}

impl Refused {
    fn of(error: h2::Error) -> Refused {
        if error.is_io() || error.is_go_away() {
            Refused::Connection(error)
        } else {
            Refused::Stream(error)
        }
    }

    /// True when the whole connection is gone: TLS failed, now or by an alert after it.
    pub fn is_connection(&self) -> bool {
        matches!(self, Refused::Tls(_) | Refused::Connection(_))
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refused::Connect(e) => write!(f, "connect: {e}"),
            Refused::Tls(e) => write!(f, "TLS: {e}"),
            Refused::Connection(e) => write!(f, "connection: {e}"),
            Refused::Stream(e) => write!(f, "stream: {e}"),
            Refused::Silence => write!(f, "silence"),
        }
    }
}

/// TCP from inside `ns`, for tokio.
pub fn dial(ns: &NetNs, to: SocketAddr) -> Result<TcpStream, Refused> {
    let stream = traffic::connect(ns, to).map_err(Refused::Connect)?;
    stream.set_nonblocking(true).map_err(Refused::Connect)?;
    TcpStream::from_std(stream).map_err(Refused::Connect)
}

/// TLS to a server whose name is its address; no SNI.
pub async fn tls(
    ns: &NetNs,
    to: SocketAddr,
    config: &Arc<ClientConfig>,
) -> Result<client::TlsStream<TcpStream>, Refused> {
    let stream = dial(ns, to)?;
    let connect = TlsConnector::from(Arc::clone(config)).connect(to.ip().into(), stream);
    match timeout(PATIENCE, connect).await {
        Ok(done) => done.map_err(Refused::Tls),
        Err(_) => Err(Refused::Silence),
    }
}

/// A client's HTTP/2 connection.
#[derive(Debug)]
pub struct Peer {
    send: SendRequest<Bytes>,
    /// Names in the server's certificate.
    pub server: Vec<String>,
    driver: tokio::task::JoinHandle<Result<(), h2::Error>>,
}

/// An answered request.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub send: SendStream<Bytes>,
    pub recv: RecvStream,
}

impl Peer {
    /// Handshakes as hbone.md has it: stream window 4 MiB, connection window 16 MiB, frames up to 1 MiB.
    pub async fn open(
        ns: &NetNs,
        to: SocketAddr,
        config: &Arc<ClientConfig>,
    ) -> Result<Peer, Refused> {
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .max_frame_size(1 << 20)
            .enable_push(false);
        Peer::open_with(ns, to, config, &builder).await
    }

    pub async fn open_with(
        ns: &NetNs,
        to: SocketAddr,
        config: &Arc<ClientConfig>,
        builder: &h2::client::Builder,
    ) -> Result<Peer, Refused> {
        let stream = tls(ns, to, config).await?;
        let server = names(stream.get_ref().1.peer_certificates());
        let (send, connection) = builder.handshake(stream).await.map_err(Refused::of)?;
        Ok(Peer {
            send,
            server,
            driver: tokio::spawn(connection),
        })
    }

    /// CONNECT; whatever is answered.
    pub async fn connect(&mut self, authority: impl ToString) -> Result<Answer, Refused> {
        let request = connect_request(&authority, &[]);
        self.request(request).await
    }

    pub async fn request(&mut self, request: Request<()>) -> Result<Answer, Refused> {
        timeout(PATIENCE, self.request_patiently(request, false))
            .await
            .unwrap_or(Err(Refused::Silence))
    }

    async fn request_patiently(
        &mut self,
        request: Request<()>,
        end: bool,
    ) -> Result<Answer, Refused> {
        let mut ready = self.send.clone().ready().await.map_err(Refused::of)?;
        let (response, send) = ready.send_request(request, end).map_err(Refused::of)?;
        let (head, recv) = response.await.map_err(Refused::of)?.into_parts();
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            send,
            recv,
        })
    }

    /// For requests that h2's own client counts against the server's limit: another handle of this connection.
    pub fn handle(&self) -> SendRequest<Bytes> {
        self.send.clone()
    }

    /// Waits for the end of the connection; the error it ended with.
    pub async fn closed(self) -> Option<h2::Error> {
        drop(self.send);
        self.driver.await.ok()?.err()
    }

    /// True once the server closed the connection.
    pub fn is_closed(&self) -> bool {
        self.driver.is_finished()
    }
}

/// A CONNECT request with these headers.
pub fn connect_request(authority: &impl ToString, headers: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .uri(authority.to_string());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).expect("a request")
}

impl Answer {
    /// Sends `message` and the end, reads to the end.
    pub async fn round_trip(mut self, message: &[u8]) -> Result<Vec<u8>, Refused> {
        let exchange = async {
            self.send
                .send_data(Bytes::copy_from_slice(message), true)
                .map_err(Refused::of)?;
            read_to_end(&mut self.recv).await
        };
        timeout(PATIENCE, exchange)
            .await
            .unwrap_or(Err(Refused::Silence))
    }

    /// One line there and back on the open stream.
    pub async fn ping(&mut self) -> Result<(), Refused> {
        let exchange = async {
            self.send
                .send_data(Bytes::from_static(b"ping\n"), false)
                .map_err(Refused::of)?;
            let mut got = Vec::new();
            while got.len() < 5 {
                match self.recv.data().await {
                    Some(Ok(data)) => {
                        let _ = self.recv.flow_control().release_capacity(data.len());
                        got.extend_from_slice(&data);
                    }
                    Some(Err(e)) => return Err(Refused::of(e)),
                    None => return Err(Refused::Silence),
                }
            }
            assert_eq!(got, b"ping\n", "another connection's bytes");
            Ok(())
        };
        timeout(PATIENCE, exchange)
            .await
            .unwrap_or(Err(Refused::Silence))
    }
}

/// Reads a stream to its end.
pub async fn read_to_end(recv: &mut RecvStream) -> Result<Vec<u8>, Refused> {
    let mut got = Vec::new();
    while let Some(data) = recv.data().await {
        let data = data.map_err(Refused::of)?;
        let _ = recv.flow_control().release_capacity(data.len());
        got.extend_from_slice(&data);
    }
    Ok(got)
}

/// URI names of the first certificate.
fn names(chain: Option<&[CertificateDer<'_>]>) -> Vec<String> {
    let Some(leaf) = chain.and_then(<[_]>::first) else {
        return Vec::new();
    };
    let (_, leaf) = x509_parser::parse_x509_certificate(leaf).expect("a certificate");
    let san = leaf.subject_alternative_name().expect("at most one SAN");
    san.iter()
        .flat_map(|san| &san.value.general_names)
        .filter_map(|name| match name {
            x509_parser::extensions::GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        })
        .collect()
}

/// A well-behaved peer that goes on and on beside a bad one: pings on a connection it keeps, and on new ones.
#[derive(Debug)]
pub struct GoodPeer {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: Option<JoinHandle<Vec<String>>>,
}

impl GoodPeer {
    /// Dials `to` from `ns` and asks for `authority`, where something must echo.
    pub fn start(
        ns: &Arc<crate::Pod>,
        to: SocketAddr,
        authority: SocketAddr,
        config: ClientConfig,
    ) -> GoodPeer {
        let stop = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicU64::new(0));
        let thread = {
            let (stop, rounds, ns) = (Arc::clone(&stop), Arc::clone(&rounds), Arc::clone(ns));
            let owner = runner::current();
            std::thread::spawn(move || {
                runner::adopt(owner);
                run(go_on(&ns, to, authority, Arc::new(config), &stop, &rounds))
            })
        };
        let peer = GoodPeer {
            stop,
            rounds,
            thread: Some(thread),
        };
        peer.more(1);
        peer
    }

    /// Waits until it was served `n` times more.
    pub fn more(&self, n: u64) {
        let from = self.rounds.load(Ordering::Relaxed);
        crate::eventually("the good peer is served", PATIENCE, || {
            self.rounds.load(Ordering::Relaxed) >= from + n
        });
    }

    /// Ends it; panics when it was not always served.
    pub fn finish(mut self) {
        self.more(2);
        let failures = self.end();
        assert!(failures.is_empty(), "the good peer: {failures:?}");
    }

    fn end(&mut self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(failures)) => failures,
            Some(Err(_)) => vec!["panicked".into()],
            None => Vec::new(),
        }
    }
}

impl Drop for GoodPeer {
    fn drop(&mut self) {
        self.end();
    }
}

async fn go_on(
    ns: &NetNs,
    to: SocketAddr,
    authority: SocketAddr,
    config: Arc<ClientConfig>,
    stop: &AtomicBool,
    rounds: &AtomicU64,
) -> Vec<String> {
    let mut failures = Vec::new();
    let kept = async {
        let mut peer = Peer::open(ns, to, &config).await?;
        let answer = peer.connect(authority).await?;
        assert_eq!(answer.status, StatusCode::OK, "the good peer's CONNECT");
        Ok::<_, Refused>((peer, answer))
    };
    let (_peer, mut kept) = match kept.await {
        Ok(kept) => kept,
        Err(refused) => return vec![format!("kept connection: {refused}")],
    };
    while !stop.load(Ordering::Relaxed) {
        let round = async {
            kept.ping().await?;
            let mut peer = Peer::open(ns, to, &config).await?;
            let answer = peer.connect(authority).await?;
            let status = answer.status;
            let echoed = answer.round_trip(b"good").await?;
            assert_eq!((status, &*echoed), (StatusCode::OK, &b"good"[..]));
            Ok::<_, Refused>(())
        };
        match round.await {
            Ok(()) => {
                rounds.fetch_add(1, Ordering::Relaxed);
            }
            Err(refused) => {
                failures.push(refused.to_string());
                if failures.len() > 10 {
                    break;
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    failures
}

/// What a tunnel server was asked.
#[derive(Clone, Debug)]
pub struct Asked {
    pub from: SocketAddr,
    pub client: Vec<String>,
    pub method: Method,
    pub authority: String,
    pub headers: BTreeMap<String, String>,
}

type Serve = dyn Fn(Request<RecvStream>, SendResponse<Bytes>) + Send + Sync;

/// A server in the place of another agent: listens on port 15008 of a pod that has none.
#[derive(Debug)]
pub struct TunnelServer {
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    asked: Arc<Mutex<Vec<Asked>>>,
    handshakes: Arc<AtomicU64>,
}

impl TunnelServer {
    /// `serve` answers every request, as tasks of its own.
    pub fn start(
        ns: &NetNs,
        ip: IpAddr,
        config: ServerConfig,
        serve: impl Fn(Request<RecvStream>, SendResponse<Bytes>) + Send + Sync + 'static,
    ) -> TunnelServer {
        let listener = sockets::listen(ns, (ip, PORT).into(), false).expect("listen on 15008");
        listener.set_nonblocking(true).expect("O_NONBLOCK");
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let handshakes = Arc::new(AtomicU64::new(0));
        let thread = {
            let (asked, handshakes) = (Arc::clone(&asked), Arc::clone(&handshakes));
            std::thread::spawn(move || {
                run(async {
                    let listener = tokio::net::TcpListener::from_std(listener).expect("tokio");
                    let acceptor = TlsAcceptor::from(Arc::new(config));
                    let accept = accept(listener, acceptor, asked, handshakes, Arc::new(serve));
                    tokio::select! {
                        () = accept => {}
                        _ = stopped => {}
                    }
                });
            })
        };
        TunnelServer {
            stop: Some(stop),
            thread: Some(thread),
            asked,
            handshakes,
        }
    }

    /// Answers 200 and echoes.
    pub fn echo(ns: &NetNs, ip: IpAddr, config: ServerConfig) -> TunnelServer {
        TunnelServer::start(ns, ip, config, |request, respond| {
            tokio::spawn(echo(request, respond));
        })
    }

    /// Answers every request with this status and the end of the stream.
    pub fn status(
        ns: &NetNs,
        ip: IpAddr,
        config: ServerConfig,
        status: StatusCode,
    ) -> TunnelServer {
        TunnelServer::start(ns, ip, config, move |_, mut respond| {
            let mut response = Response::new(());
            *response.status_mut() = status;
            let _ = respond.send_response(response, true);
        })
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// TLS handshakes that this side saw end well.
    pub fn handshakes(&self) -> u64 {
        self.handshakes.load(Ordering::Relaxed)
    }
}

impl Drop for TunnelServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(
    listener: tokio::net::TcpListener,
    acceptor: TlsAcceptor,
    asked: Arc<Mutex<Vec<Asked>>>,
    handshakes: Arc<AtomicU64>,
    serve: Arc<Serve>,
) {
    while let Ok((stream, from)) = listener.accept().await {
        let (acceptor, asked, serve) = (acceptor.clone(), Arc::clone(&asked), Arc::clone(&serve));
        let handshakes = Arc::clone(&handshakes);
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else {
                return;
            };
            handshakes.fetch_add(1, Ordering::Relaxed);
            serve_connection(stream, from, &asked, &*serve).await;
        });
    }
}

async fn serve_connection(
    stream: server::TlsStream<TcpStream>,
    from: SocketAddr,
    asked: &Mutex<Vec<Asked>>,
    serve: &Serve,
) {
    let client = names(stream.get_ref().1.peer_certificates());
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .max_frame_size(1 << 20)
        .max_concurrent_streams(200);
    let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else {
        return;
    };
    while let Some(Ok((request, respond))) = connection.accept().await {
        let one = Asked {
            from,
            client: client.clone(),
            method: request.method().clone(),
            authority: request
                .uri()
                .authority()
                .map(ToString::to_string)
                .unwrap_or_default(),
            headers: request
                .headers()
                .iter()
                .map(|(k, v)| (k.to_string(), String::from_utf8_lossy(v.as_bytes()).into()))
                .collect(),
        };
        asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(one);
        serve(request, respond);
    }
}

async fn echo(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let Ok(mut send) = respond.send_response(Response::new(()), false) else {
        return;
    };
    let mut recv = request.into_body();
    while let Some(Ok(data)) = recv.data().await {
        let _ = recv.flow_control().release_capacity(data.len());
        if send.send_data(data, false).is_err() {
            return;
        }
    }
    let _ = send.send_data(Bytes::new(), true);
}

/// HTTP/2 frames by hand, for what no library would send (RFC 9113).
pub mod raw {
    pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const CONTINUATION: u8 = 9;
    pub const END_HEADERS: u8 = 4;

    pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(9 + payload.len());
        out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
        out.extend_from_slice(&[kind, flags]);
        out.extend_from_slice(&stream.to_be_bytes());
        out.extend_from_slice(payload);
        out
    }

    /// `:method: CONNECT` and `:authority`, as literals without indexing (RFC 7541, 6.2.2).
    pub fn connect(authority: &str) -> Vec<u8> {
        assert!(authority.len() < 127);
        let mut out = vec![0x02, 7];
        out.extend_from_slice(b"CONNECT");
        out.extend_from_slice(&[0x01, authority.len() as u8]);
        out.extend_from_slice(authority.as_bytes());
        out
    }
}
