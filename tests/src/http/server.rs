//! The server: says what it got, and does to a request what its path or the server's mode asks for.
//!
//! | path | answer |
//! | --- | --- |
//! | `/status/N` | status N |
//! | `/fail/K/N/...` | status N to the first K requests of exactly this path, then 200 |
//! | `/delay/MS` | after MS milliseconds |
//! | `/hang` | never |
//! | `/reset` | RST before the headers |
//! | `/reset-body` | 100 of 1,000 bytes, then RST |
//! | `/close` | closes the connection in order |
//! | `/bytes/N` | N bytes of [`pattern`] with a length, `/chunks/N` without |
//! | `/trailers` | a trailer `x-sum` |
//! | `/events/N` | N server-sent events, each after the one before was taken |
//! | anything else | JSON: pod, method, path, version, headers, length and hash of the body, peer; with the status of the header `x-answer` |
//!
//! A gRPC request gets its own body back, as it comes, and the status of its header `x-status` in the trailers; one of the method
//! `/grpc.health.v1.Health/Check` whether the server serves. A WebSocket, of HTTP/1 or HTTP/2 (RFC 8441), gets its own messages back.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::BodyExt;
use hyper::{
    body::{Frame, Incoming},
    ext::Protocol,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    sync::{Notify, oneshot},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{handshake::derive_accept_key, protocol::Role},
};

use super::{Frames, SEED, fnv, pattern};
use crate::{netns::NetNs, traffic::server::listen};

/// What the server does to every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// What the path says.
    Normal,
    Status(u16),
    Hang,
    /// RST before the headers of the answer.
    Reset,
    /// 100 of 1,000 bytes, then RST.
    ResetBody,
    Delay(u64),
    /// As the path says, and closes the connection so many milliseconds after the answer, without saying so.
    DropIdle(u64),
    /// As the path says, and closes a connection that waited so many milliseconds for its next request.
    KeepAlive(u64),
    /// As the path says, but resets a connection on which a request comes after so many milliseconds: the request crosses
    /// the end of a connection that rested, and the application never sees it.
    Forgets(u64),
    /// As the path says, but to a gRPC health check that it does not serve.
    NotServing,
    /// As the path says; new connections of HTTP/2 are not told of extended CONNECT.
    NoConnect,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    /// With the query.
    pub path: String,
    pub headers: HeaderMap,
    pub version: Version,
    pub peer: SocketAddr,
}

#[derive(Debug)]
struct State {
    name: String,
    mode: Mutex<Mode>,
    seen: Mutex<Vec<Seen>>,
    failed: Mutex<HashMap<String, u32>>,
    requests: AtomicU64,
    connections: AtomicU64,
    /// Requests whose bodies ended early: the client went away.
    cancelled: AtomicU64,
}

/// One connection, for what is done to it from inside a request.
#[derive(Debug, Default)]
struct Link {
    end: Notify,
    reset: AtomicBool,
    /// Requests that came on it.
    requests: AtomicU64,
    /// When the last answer was made.
    answered: Mutex<Option<Instant>>,
}

impl Link {
    fn break_off(&self, reset: bool) {
        self.reset.store(reset, Ordering::Relaxed);
        self.end.notify_one();
    }
}

/// A server inside a pod; gone with all its connections on drop.
#[derive(Debug)]
pub struct HttpServer {
    pub addr: SocketAddr,
    state: Arc<State>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl HttpServer {
    /// `name` is what it calls its pod.
    pub fn start(ns: &NetNs, addr: SocketAddr, name: &str) -> HttpServer {
        let listener = listen(ns, addr, false).unwrap_or_else(|e| panic!("listen on {addr}: {e}"));
        listener.set_nonblocking(true).expect("non-blocking");
        let addr = listener.local_addr().expect("an address");
        let state = Arc::new(State {
            name: name.into(),
            mode: Mutex::new(Mode::Normal),
            seen: Mutex::default(),
            failed: Mutex::default(),
            requests: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            cancelled: AtomicU64::new(0),
        });
        let (stop, stopped) = oneshot::channel();
        let serving = Arc::clone(&state);
        let thread = std::thread::Builder::new()
            .name(format!("http {addr}"))
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("a runtime");
                runtime.block_on(async {
                    let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                    tokio::select! {
                        () = accept(&listener, &serving) => {}
                        _ = stopped => {}
                    }
                });
                runtime.shutdown_background();
            })
            .expect("spawn a server thread");
        HttpServer {
            addr,
            state,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub fn set(&self, mode: Mode) {
        *lock(&self.state.mode) = mode;
    }

    /// Requests that came.
    pub fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::Relaxed)
    }

    pub fn connections(&self) -> u64 {
        self.state.connections.load(Ordering::Relaxed)
    }

    /// Answers whose client went away before they began.
    pub fn cancelled(&self) -> u64 {
        self.state.cancelled.load(Ordering::Relaxed)
    }

    /// The last thousand or so requests whose path begins so.
    pub fn seen(&self, path: &str) -> Vec<Seen> {
        let seen = lock(&self.state.seen);
        let seen = seen.iter().filter(|seen| seen.path.starts_with(path));
        seen.cloned().collect()
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: &tokio::net::TcpListener, state: &Arc<State>) {
    loop {
        // An error concerns one connection.
        if let Ok((stream, peer)) = listener.accept().await {
            state.connections.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(serve(stream, peer, Arc::clone(state)));
        }
    }
}

async fn serve(stream: TcpStream, peer: SocketAddr, state: Arc<State>) {
    let _ = stream.set_nodelay(true);
    let mut begin = [0_u8; 3];
    while let Ok(n @ 1..) = stream.peek(&mut begin).await {
        if n == begin.len() || begin[0] != b'P' {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let Ok(handle) = rustix::io::dup(&stream) else {
        return;
    };
    let link = Arc::new(Link::default());
    let no_connect = *lock(&state.mode) == Mode::NoConnect;
    let service = {
        let link = Arc::clone(&link);
        service_fn(move |request| {
            let (state, link) = (Arc::clone(&state), Arc::clone(&link));
            async move { Ok::<_, Infallible>(answer(request, peer, &state, &link).await) }
        })
    };
    let io = TokioIo::new(stream);
    let ended = link.end.notified();
    if &begin == b"PRI" {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new());
        if !no_connect {
            builder.enable_connect_protocol();
        }
        let connection = builder.serve_connection(io, service);
        tokio::select! {
            _ = connection => return,
            () = ended => {}
        }
    } else {
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .serve_connection(io, service)
            .with_upgrades();
        tokio::select! {
            _ = connection => return,
            () = ended => {}
        }
    }
    if link.reset.load(Ordering::Relaxed) {
        let _ = socket2::SockRef::from(&handle).set_linger(Some(Duration::ZERO));
    }
}

/// Counts a request whose answer nobody waits for any more.
struct Waits<'a>(&'a State, bool);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        if !self.1 {
            self.0.cancelled.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    peer: SocketAddr,
    state: &Arc<State>,
    link: &Arc<Link>,
) -> Response<Frames> {
    let mode = *lock(&state.mode);
    link.requests.fetch_add(1, Ordering::Relaxed);
    let rested = lock(&link.answered).map(|at| at.elapsed());
    if let (Mode::Forgets(millis), Some(rested)) = (mode, rested)
        && rested >= Duration::from_millis(millis)
    {
        return reset(link).await;
    }
    state.requests.fetch_add(1, Ordering::Relaxed);
    let path = request
        .uri()
        .path_and_query()
        .map_or_else(|| "/".to_owned(), ToString::to_string);
    {
        let mut seen = lock(&state.seen);
        if seen.len() >= 2000 {
            seen.drain(..1000);
        }
        seen.push(Seen {
            method: request.method().to_string(),
            path: path.clone(),
            headers: request.headers().clone(),
            version: request.version(),
            peer,
        });
    }
    let mut waits = Waits(state, false);
    let head = request.method() == http::Method::HEAD;
    let mut response = match mode {
        Mode::Status(code) => status(state, code),
        Mode::Hang => std::future::pending().await,
        Mode::Reset => reset(link).await,
        Mode::ResetBody => reset_body(link),
        Mode::Delay(millis) => {
            tokio::time::sleep(Duration::from_millis(millis)).await;
            by_path(request, &path, peer, state, link).await
        }
        Mode::DropIdle(millis) => {
            let response = by_path(request, &path, peer, state, link).await;
            let link = Arc::clone(link);
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(millis)).await;
                link.break_off(false);
            });
            response
        }
        Mode::KeepAlive(millis) => {
            let response = by_path(request, &path, peer, state, link).await;
            let link = Arc::clone(link);
            let so_far = link.requests.load(Ordering::Relaxed);
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(millis)).await;
                if link.requests.load(Ordering::Relaxed) == so_far {
                    link.break_off(false);
                }
            });
            response
        }
        Mode::Normal | Mode::NotServing | Mode::NoConnect | Mode::Forgets(_) => {
            by_path(request, &path, peer, state, link).await
        }
    };
    waits.1 = true;
    *lock(&link.answered) = Some(Instant::now());
    if head && let Some(size) = response.body().size {
        // hyper leaves the body out for HTTP/1 only.
        response.headers_mut().insert("content-length", size.into());
        *response.body_mut() = Frames::whole(Bytes::new());
    }
    response
}

fn status(state: &State, code: u16) -> Response<Frames> {
    let body = json!({ "pod": state.name, "status": code }).to_string();
    let mut response = Response::new(Frames::whole(body));
    *response.status_mut() = StatusCode::from_u16(code).expect("a status");
    response
}

async fn reset(link: &Link) -> Response<Frames> {
    link.break_off(true);
    std::future::pending().await
}

fn reset_body(link: &Arc<Link>) -> Response<Frames> {
    let (sender, frames) = Frames::channel(Some(1000));
    let link = Arc::clone(link);
    tokio::spawn(async move {
        let _ = sender
            .send(Ok(Frame::data(Bytes::from_static(&[b'x'; 100]))))
            .await;
        // Until they are on their way.
        tokio::time::sleep(Duration::from_millis(50)).await;
        link.break_off(true);
        drop(sender);
    });
    Response::new(frames)
}

async fn by_path(
    request: Request<Incoming>,
    path: &str,
    peer: SocketAddr,
    state: &Arc<State>,
    link: &Arc<Link>,
) -> Response<Frames> {
    let header = |name: &str| request.headers().get(name).and_then(|v| v.to_str().ok());
    if header("content-type").is_some_and(|kind| kind.starts_with("application/grpc")) {
        if path == HEALTH {
            return health(state);
        }
        return grpc(request, state);
    }
    let connects = request.extensions().get::<Protocol>();
    if header("upgrade").is_some_and(|to| to.eq_ignore_ascii_case("websocket"))
        || connects.is_some_and(|to| to.as_str() == "websocket")
    {
        return websocket(request);
    }
    let plain = path.split('?').next().unwrap_or_default();
    let mut parts = plain.trim_start_matches('/').split('/');
    let what = parts.next().unwrap_or_default();
    let number = parts.next().and_then(|n| n.parse::<usize>().ok());
    match (what, number) {
        ("status", Some(code)) => {
            let mut body = request.into_body();
            while body.frame().await.is_some() {}
            status(state, code as u16)
        }
        ("fail", Some(times)) => {
            let code = parts.next().and_then(|n| n.parse().ok()).unwrap_or(503);
            let failed = {
                let mut failed = lock(&state.failed);
                let failed = failed.entry(path.to_owned()).or_default();
                *failed += 1;
                *failed as usize
            };
            if failed <= times {
                status(state, code)
            } else {
                echo(request, path, peer, state).await
            }
        }
        ("delay", Some(millis)) => {
            tokio::time::sleep(Duration::from_millis(millis as u64)).await;
            echo(request, path, peer, state).await
        }
        ("hang", _) => std::future::pending().await,
        ("reset", _) => reset(link).await,
        ("reset-body", _) => reset_body(link),
        ("close", _) => {
            let mut response = echo(request, path, peer, state).await;
            let headers = response.headers_mut();
            headers.insert("connection", HeaderValue::from_static("close"));
            response
        }
        ("bytes", Some(size)) => {
            let mut body = request.into_body();
            while body.frame().await.is_some() {}
            Response::new(Frames::whole(pattern(size)))
        }
        ("chunks", Some(size)) => stream(pattern(size), None),
        ("trailers", _) => {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", HeaderValue::from_static("42"));
            let mut response = stream(b"before the trailers".to_vec(), Some(trailers));
            let headers = response.headers_mut();
            headers.insert("trailer", HeaderValue::from_static("x-sum"));
            response
        }
        ("events", Some(count)) => events(count),
        _ => echo(request, path, peer, state).await,
    }
}

async fn echo(
    request: Request<Incoming>,
    path: &str,
    peer: SocketAddr,
    state: &State,
) -> Response<Frames> {
    let (head, mut body) = request.into_parts();
    let status = head.headers.get("x-answer");
    let status = status.and_then(|code| StatusCode::from_bytes(code.as_bytes()).ok());
    let (mut length, mut sum, mut trailers) = (0, SEED, BTreeMap::new());
    while let Some(Ok(frame)) = body.frame().await {
        match frame.into_data() {
            Ok(data) => {
                length += data.len();
                sum = fnv(sum, &data);
            }
            Err(frame) => {
                let found = frame.into_trailers().unwrap_or_default();
                trailers = listed(&found);
            }
        }
    }
    let text = json!({
        "pod": state.name,
        "method": head.method.as_str(),
        "path": path,
        "authority": head.uri.authority().map(ToString::to_string),
        "version": format!("{:?}", head.version),
        "headers": listed(&head.headers),
        "trailers": trailers,
        "length": length,
        "hash": format!("{sum:016x}"),
        "peer": peer.to_string(),
    });
    let mut response = Response::new(Frames::whole(text.to_string()));
    *response.status_mut() = status.unwrap_or(StatusCode::OK);
    let headers = response.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/json"));
    headers.insert("server", HeaderValue::from_static("echo/1"));
    headers.insert("x-removable", HeaderValue::from_static("yes"));
    response
}

fn listed(headers: &HeaderMap) -> BTreeMap<String, Vec<Value>> {
    let mut all: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        all.entry(name.to_string()).or_default().push(value.into());
    }
    all
}

fn stream(body: Vec<u8>, trailers: Option<HeaderMap>) -> Response<Frames> {
    let (sender, frames) = Frames::channel(None);
    tokio::spawn(async move {
        let body = Bytes::from(body);
        for at in (0..body.len()).step_by(16384) {
            let end = (at + 16384).min(body.len());
            if sender
                .send(Ok(Frame::data(body.slice(at..end))))
                .await
                .is_err()
            {
                return;
            }
        }
        if let Some(trailers) = trailers {
            let _ = sender.send(Ok(Frame::trailers(trailers))).await;
        }
    });
    Response::new(frames)
}

fn events(count: usize) -> Response<Frames> {
    let (sender, frames) = Frames::channel(None);
    tokio::spawn(async move {
        for n in 0..count {
            let event = Bytes::from(format!("data: {n}\n\n"));
            if sender.send(Ok(Frame::data(event))).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let mut response = Response::new(frames);
    let headers = response.headers_mut();
    headers.insert(
        "content-type",
        HeaderValue::from_static("text/event-stream"),
    );
    response
}

fn grpc(request: Request<Incoming>, state: &State) -> Response<Frames> {
    let status = request.headers().get("x-status").cloned();
    let status = status.unwrap_or_else(|| HeaderValue::from_static("0"));
    let mut body = request.into_body();
    let (sender, frames) = Frames::channel(None);
    tokio::spawn(async move {
        while let Some(Ok(frame)) = body.frame().await {
            if let Ok(data) = frame.into_data()
                && sender.send(Ok(Frame::data(data))).await.is_err()
            {
                return;
            }
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", status);
        let _ = sender.send(Ok(Frame::trailers(trailers))).await;
    });
    let mut response = Response::new(frames);
    let headers = response.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    headers.insert("x-pod", HeaderValue::from_str(&state.name).expect("a name"));
    response
}

const HEALTH: &str = "/grpc.health.v1.Health/Check";

/// A HealthCheckResponse: field 1 is 1 (SERVING) or 2 (NOT_SERVING).
fn health(state: &State) -> Response<Frames> {
    let serves = *lock(&state.mode) != Mode::NotServing;
    let message = super::client::grpc_message(&[8, if serves { 1 } else { 2 }]);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let mut response = stream(message.to_vec(), Some(trailers));
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert("content-type", kind);
    response
}

fn websocket(mut request: Request<Incoming>) -> Response<Frames> {
    let key = request.headers().get("sec-websocket-key");
    let accept = key.map(|key| derive_accept_key(key.as_bytes()));
    tokio::spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(&mut request).await else {
            return;
        };
        let io = TokioIo::new(upgraded);
        let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
                return;
            }
        }
        // In order: a stream of HTTP/2 that is dropped is reset.
        let mut io = socket.into_inner();
        let _ = io.shutdown().await;
        let _ = tokio::io::copy(&mut io, &mut tokio::io::sink()).await;
    });
    let mut response = Response::new(Frames::whole(Bytes::new()));
    // HTTP/2 has no key, and says yes with 200.
    if let Some(accept) = accept {
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert("connection", HeaderValue::from_static("upgrade"));
        headers.insert("upgrade", HeaderValue::from_static("websocket"));
        let accept = HeaderValue::from_str(&accept).expect("base64");
        headers.insert("sec-websocket-accept", accept);
    }
    response
}
