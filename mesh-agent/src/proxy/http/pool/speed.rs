//! What a request costs this side, against hyper's own way of one task for each connection. Run by hand:
//! `CARGO_PROFILE_TEST_OPT_LEVEL=3 cargo test -p mesh-agent --lib http::pool::speed -- --ignored --nocapture`

use std::{convert::Infallible, sync::mpsc};

use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::time::{ClockId, clock_gettime};
use tokio::{net::TcpListener, runtime::Builder, task::JoinSet};

use super::{
    tests::{dial, get, key},
    *,
};

const CLIENTS: usize = 32;
const REQUESTS: usize = 4000;

/// A server on a thread of its own, whose time is not counted.
fn server(version: HttpVersion, size: usize) -> SocketAddr {
    let (told, address) = mpsc::channel();
    thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            told.send(listener.local_addr().unwrap()).unwrap();
            let body = Bytes::from(vec![7; size]);
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                let body = body.clone();
                let service = service_fn(move |_: Request<Incoming>| {
                    let body = Full::new(body.clone());
                    async move { Ok::<_, Infallible>(Response::new(body)) }
                });
                let io = TokioIo::new(stream);
                tokio::spawn(async move {
                    match version {
                        HttpVersion::Http1 => {
                            let server = hyper::server::conn::http1::Builder::new();
                            let _ = server.serve_connection(io, service).await;
                        }
                        HttpVersion::Http2 => {
                            let executor = TokioExecutor::new();
                            let server = hyper::server::conn::http2::Builder::new(executor);
                            let _ = server.serve_connection(io, service).await;
                        }
                    }
                });
            }
        });
    });
    address.recv().unwrap()
}

/// Microseconds of this thread's time for one request.
fn measure<F>(run: impl Fn() -> F) -> f64
where
    F: Future<Output = ()> + Send + 'static,
{
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let begin = clock_gettime(ClockId::ThreadCPUTime);
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            clients.spawn(run());
        }
        while let Some(done) = clients.join_next().await {
            done.unwrap();
        }
        let spent = clock_gettime(ClockId::ThreadCPUTime) - begin;
        let spent = Duration::try_from(spent).unwrap();
        spent.as_secs_f64() * 1e6 / (CLIENTS * REQUESTS) as f64
    })
}

fn pooled(address: SocketAddr, version: HttpVersion) -> f64 {
    let shared: Arc<std::sync::OnceLock<Pools<Full<Bytes>>>> = Arc::default();
    measure(|| {
        let shared = Arc::clone(&shared);
        async move {
            let pools = shared.get_or_init(Pools::new);
            let key = key(address, version);
            let options = ConnectionPool::default();
            for _ in 0..REQUESTS {
                let checkout = pools.checkout(&key, &options, Take::Any, || dial(address));
                let response = checkout.await.unwrap().send(get("/")).await.unwrap();
                let mut body = response.into_body();
                while let Some(frame) = body.frame().await {
                    frame.unwrap();
                }
            }
        }
    })
}

fn hypers(address: SocketAddr, version: HttpVersion) -> f64 {
    measure(|| async move {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let io = TokioIo::new(stream);
        macro_rules! requests {
            ($requests:expr, $connection:expr) => {{
                let (mut requests, connection) = ($requests, $connection);
                tokio::spawn(connection);
                for _ in 0..REQUESTS {
                    requests.ready().await.unwrap();
                    let mut request = get("/");
                    if version == HttpVersion::Http2 {
                        *request.uri_mut() = ::http::Uri::from_static("http://test/");
                        *request.version_mut() = ::http::Version::HTTP_2;
                        request.headers_mut().remove("host");
                    }
                    let response = requests.send_request(request).await.unwrap();
                    let mut body = response.into_body();
                    while let Some(frame) = body.frame().await {
                        frame.unwrap();
                    }
                }
            }};
        }
        match version {
            HttpVersion::Http1 => {
                let (requests, connection) =
                    hyper::client::conn::http1::handshake(io).await.unwrap();
                requests!(requests, connection);
            }
            HttpVersion::Http2 => {
                let executor = TokioExecutor::new();
                let (requests, connection) = hyper::client::conn::http2::handshake(executor, io)
                    .await
                    .unwrap();
                requests!(requests, connection);
            }
        }
    })
}

#[test]
#[ignore = "a measurement"]
fn cost_of_a_request() {
    for version in [HttpVersion::Http1, HttpVersion::Http2] {
        for size in [1 << 10, 64 << 10] {
            let address = server(version, size);
            // Paired, since other work comes and goes.
            for _ in 0..3 {
                let (ours, theirs) = (pooled(address, version), hypers(address, version));
                println!(
                    "{version:?} {size:6} B: pool {ours:.2} us, hyper with a task {theirs:.2} us"
                );
            }
        }
    }
}
