//! The pools over loopback, against real servers.

use std::{convert::Infallible, sync::atomic::AtomicU64};

use ::http::StatusCode;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::*;
use crate::proxy::{connect::Link, socket::Leg};

type Pool = Pools<Full<Bytes>>;

/// Everything here happens within this.
const SOON: Duration = Duration::from_secs(10);

pub(super) fn key(endpoint: SocketAddr, version: HttpVersion) -> PoolKey {
    PoolKey {
        pod: 1,
        endpoint,
        source: None,
        version,
        identity: None,
    }
}

pub(super) async fn dial(address: SocketAddr) -> Result<Connected, Reason> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(|_| Reason::UpstreamRefused)?;
    stream.set_nodelay(true).unwrap();
    Ok(Connected {
        endpoint: address,
        link: Link::Plain(Leg::new(stream)),
        permits: None,
        principals: None,
    })
}

pub(super) fn get(path: &str) -> Request<Full<Bytes>> {
    Request::builder()
        .uri(path)
        .header("host", "test")
        .body(Full::default())
        .unwrap()
}

async fn exchange(
    pool: &Pool,
    key: &PoolKey,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes), SendFailed<Full<Bytes>>> {
    let checkout = pool
        .checkout(key, &ConnectionPool::default(), Take::Any, || {
            dial(key.endpoint)
        })
        .await
        .unwrap();
    let response = timeout(SOON, checkout.send(request)).await.unwrap()?;
    let (parts, body) = response.into_parts();
    let body = timeout(SOON, body.collect()).await.unwrap().unwrap();
    Ok((parts.status, body.to_bytes()))
}

/// Answers with the request's body, and counts connections.
struct Echo {
    address: SocketAddr,
    connections: Arc<AtomicU64>,
    /// Those that have ended in order.
    ended: Arc<AtomicU64>,
}

async fn echo(version: HttpVersion) -> Echo {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&connections);
    let ended = Arc::<AtomicU64>::default();
    let ends = Arc::clone(&ended);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::Relaxed);
            let service = service_fn(|request: Request<Incoming>| async move {
                Ok::<_, Infallible>(Response::new(request.into_body()))
            });
            let io = TokioIo::new(stream);
            let ends = Arc::clone(&ends);
            tokio::spawn(async move {
                let end = match version {
                    HttpVersion::Http1 => {
                        let server = hyper::server::conn::http1::Builder::new();
                        server.serve_connection(io, service).await
                    }
                    HttpVersion::Http2 => {
                        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                        server.serve_connection(io, service).await
                    }
                };
                ends.fetch_add(end.is_ok().into(), Ordering::Relaxed);
            });
        }
    });
    Echo {
        address,
        connections,
        ended,
    }
}

impl Echo {
    fn ended(&self) -> u64 {
        self.ended.load(Ordering::Relaxed)
    }

    fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }
}

#[tokio::test]
async fn connections_are_used_again() {
    for version in [HttpVersion::Http1, HttpVersion::Http2] {
        let server = echo(version).await;
        let pool = Pool::new();
        let key = key(server.address, version);
        for i in 0..20 {
            let body = Bytes::from(format!("body {i}"));
            let request = Request::post("/").header("host", "test");
            let request = request.body(Full::new(body.clone())).unwrap();
            let (status, answer) = exchange(&pool, &key, request).await.unwrap();
            assert_eq!((status, answer), (StatusCode::OK, body), "{version:?}");
            exchange(&pool, &key, get("/")).await.unwrap();
        }
        assert_eq!(server.connections(), 1, "{version:?}");
    }
}

/// A server of one's own: every connection is handed to `serve`.
async fn raw<F>(serve: impl Fn(u64, TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for number in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(number, stream));
        }
    });
    address
}

async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).await.unwrap_or(0) == 0 {
            break;
        }
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn an_idle_connection_that_the_server_closes_is_not_used_again() {
    let address = raw(|_, mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(OK).await.unwrap();
    })
    .await;
    let pool = Pool::new();
    let key = key(address, HttpVersion::Http1);
    for _ in 0..3 {
        let (status, body) = exchange(&pool, &key, get("/")).await.unwrap();
        assert_eq!((status, &body[..]), (StatusCode::OK, &b"ok"[..]));
        // Nobody asks for it, and yet it goes.
        eventually("it is noticed", || pool.count() == (0, 0)).await;
    }
}

#[tokio::test]
async fn a_connection_that_dies_under_a_request_says_whether_another_may_do_better() {
    // Answers once, then closes on the next request; a second connection is reset at once.
    let address = raw(|number, mut stream| async move {
        read_head(&mut stream).await;
        if number != 1 {
            stream.write_all(OK).await.unwrap();
            read_head(&mut stream).await;
        } else {
            stream.set_zero_linger().unwrap();
        }
    })
    .await;
    let pool = Pool::new();
    let key = key(address, HttpVersion::Http1);
    exchange(&pool, &key, get("/")).await.unwrap();
    let failed = exchange(&pool, &key, get("/")).await.unwrap_err();
    assert_eq!(
        (failed.reason, failed.reused),
        (Reason::UpstreamReset, true)
    );
    let failed = exchange(&pool, &key, get("/")).await.unwrap_err();
    assert_eq!(
        (failed.reason, failed.reused),
        (Reason::UpstreamReset, false),
        "a new one"
    );
    exchange(&pool, &key, get("/")).await.unwrap();
}

#[tokio::test]
async fn what_is_no_response_is_the_upstreams_fault() {
    let address = raw(|_, mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(b"220 smtp ready\r\n\r\n").await.unwrap();
        read_head(&mut stream).await;
    })
    .await;
    let pool = Pool::new();
    let key = key(address, HttpVersion::Http1);
    let failed = exchange(&pool, &key, get("/")).await.unwrap_err();
    assert_eq!(failed.reason, Reason::UpstreamProtocol);
    assert!(!failed.nothing_sent);
}

#[tokio::test]
async fn interim_responses_are_told_and_not_taken_for_the_answer() {
    let address = raw(|_, mut stream| async move {
        read_head(&mut stream).await;
        for part in [
            &b"HTTP/1.1 100 Continue\r\n\r\n"[..],
            b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n",
            OK,
        ] {
            stream.write_all(part).await.unwrap();
        }
        read_head(&mut stream).await;
    })
    .await;
    let pool = Pool::new();
    let told = Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut request = get("/");
    on_informational(&mut request, {
        let told = Arc::clone(&told);
        move |status, headers| {
            let link = headers.get("link").cloned();
            told.lock().unwrap().push((status.as_u16(), link));
        }
    });
    let key = key(address, HttpVersion::Http1);
    let (status, body) = exchange(&pool, &key, request).await.unwrap();
    assert_eq!((status, &body[..]), (StatusCode::OK, &b"ok"[..]));
    let told = told.lock().unwrap();
    let link = Some(::http::HeaderValue::from_static("</a>"));
    assert_eq!(*told, [(100, None), (103, link)]);
}

#[tokio::test]
async fn a_thousand_at_once() {
    for version in [HttpVersion::Http1, HttpVersion::Http2] {
        let server = echo(version).await;
        let pool = Arc::new(Pool::new());
        let key = key(server.address, version);
        let mut requests = tokio::task::JoinSet::new();
        for i in 0..1000 {
            let (pool, key) = (Arc::clone(&pool), key.clone());
            requests.spawn(async move {
                let body = Bytes::from(format!("{i}"));
                let request = Request::post("/").header("host", "test");
                let request = request.body(Full::new(body.clone())).unwrap();
                let (_, answer) = exchange(&pool, &key, request).await.unwrap();
                assert_eq!(answer, body);
            });
        }
        while let Some(done) = requests.join_next().await {
            done.unwrap();
        }
        let most = match version {
            HttpVersion::Http1 => 1000,
            // 100 streams each.
            HttpVersion::Http2 => 10,
        };
        assert!(server.connections() <= most, "{}", server.connections());
        eventually("no more than may be idle", || pool.count().0 <= 64).await;
    }
}

#[tokio::test]
async fn a_cancelled_request_takes_its_connection_along_and_no_other() {
    let (seen, mut closed) = tokio::sync::mpsc::unbounded_channel();
    let address = raw(move |number, mut stream| {
        let seen = seen.clone();
        async move {
            read_head(&mut stream).await;
            seen.send(format!("{number} asked")).unwrap();
            if number > 0 {
                stream.write_all(OK).await.unwrap();
            }
            read_head(&mut stream).await;
            seen.send(format!("{number} closed")).unwrap();
        }
    })
    .await;
    let pool = Pool::new();
    let key = key(address, HttpVersion::Http1);
    let options = ConnectionPool::default();
    let checkout = pool
        .checkout(&key, &options, Take::Any, || dial(address))
        .await
        .unwrap();
    let mut sending = Box::pin(checkout.send(get("/slow")));
    tokio::select! {
        _ = &mut sending => panic!("nobody answers"),
        asked = closed.recv() => assert_eq!(asked.unwrap(), "0 asked"),
    }
    drop(sending);
    assert_eq!(
        timeout(SOON, closed.recv()).await.unwrap().unwrap(),
        "0 closed"
    );
    let (_, body) = exchange(&pool, &key, get("/")).await.unwrap();
    assert_eq!(&body[..], b"ok");
    assert_eq!(pool.count(), (1, 0));
}

#[tokio::test]
async fn a_response_that_is_not_read_to_its_end_closes_the_connection() {
    let (seen, mut closed) = tokio::sync::mpsc::unbounded_channel();
    let address = raw(move |_, mut stream| {
        let seen = seen.clone();
        async move {
            read_head(&mut stream).await;
            let head = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nbegin";
            stream.write_all(head).await.unwrap();
            read_head(&mut stream).await;
            seen.send(()).unwrap();
        }
    })
    .await;
    let pool = Pool::new();
    let key = key(address, HttpVersion::Http1);
    let options = ConnectionPool::default();
    let checkout = pool
        .checkout(&key, &options, Take::Any, || dial(address))
        .await
        .unwrap();
    let mut response = checkout.send(get("/")).await.unwrap();
    let frame = response.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(&frame.into_data().unwrap()[..], b"begin");
    drop(response);
    timeout(SOON, closed.recv()).await.unwrap().unwrap();
    assert_eq!(pool.count(), (0, 0));
}

#[tokio::test]
async fn a_response_that_breaks_off_is_an_error_and_no_end() {
    for (head, reason) in [
        (
            &b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"[..],
            Reason::UpstreamReset,
        ),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\nzz",
            Reason::UpstreamProtocol,
        ),
    ] {
        let address = raw(move |_, mut stream| async move {
            read_head(&mut stream).await;
            stream.write_all(head).await.unwrap();
        })
        .await;
        let pool = Pool::new();
        let key = key(address, HttpVersion::Http1);
        let options = ConnectionPool::default();
        let checkout = pool
            .checkout(&key, &options, Take::Any, || dial(address))
            .await
            .unwrap();
        let response = checkout.send(get("/")).await.unwrap();
        let error = timeout(SOON, response.into_body().collect())
            .await
            .unwrap()
            .unwrap_err();
        assert_eq!(error.reason, reason);
    }
}

#[tokio::test]
async fn the_request_goes_on_when_nobody_takes_the_response() {
    // More than sockets hold in either direction.
    const MUCH: usize = 16 << 20;
    let (seen, mut done) = tokio::sync::mpsc::unbounded_channel();
    let address = raw(move |_, stream| {
        let seen = seen.clone();
        async move {
            let (mut read, mut write) = stream.into_split();
            let answer = tokio::spawn(async move {
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {MUCH}\r\n\r\n");
                write.write_all(head.as_bytes()).await.unwrap();
                write.write_all(&vec![7; MUCH]).await.unwrap();
                write
            });
            let mut space = vec![0; 64 << 10];
            let mut left = MUCH;
            while left > 0 {
                let n = read.read(&mut space).await.unwrap();
                assert!(n > 0);
                left = left.saturating_sub(n);
            }
            seen.send(()).unwrap();
            answer.await.unwrap();
        }
    })
    .await;
    let pool = Pools::new();
    let key = key(address, HttpVersion::Http1);
    let options = ConnectionPool::default();
    let checkout = pool
        .checkout(&key, &options, Take::Any, || dial(address))
        .await
        .unwrap();
    let chunk = Bytes::from(vec![1; 64 << 10]);
    let chunks =
        (0..MUCH / chunk.len()).map(move |_| Ok::<_, Infallible>(Frame::data(chunk.clone())));
    let body = StreamBody::new(futures::stream::iter(chunks));
    let request = Request::post("/").header("host", "test");
    let request = request.body(body).unwrap();
    let response = timeout(SOON, checkout.send(request))
        .await
        .unwrap()
        .unwrap();
    timeout(SOON, done.recv()).await.unwrap().unwrap();
    let body = timeout(SOON, response.into_body().collect()).await.unwrap();
    assert_eq!(body.unwrap().to_bytes().len(), MUCH);
}

#[tokio::test]
async fn a_connection_serves_no_more_than_it_may() {
    for version in [HttpVersion::Http1, HttpVersion::Http2] {
        let server = echo(version).await;
        let pool = Pool::new();
        let key = key(server.address, version);
        let options = ConnectionPool {
            max_requests_per_connection: Some(2),
            ..ConnectionPool::default()
        };
        for _ in 0..6 {
            let checkout = pool
                .checkout(&key, &options, Take::Any, || dial(server.address))
                .await
                .unwrap();
            let response = checkout.send(get("/")).await.unwrap();
            response.into_body().collect().await.unwrap();
        }
        assert_eq!(server.connections(), 3, "{version:?}");
    }
}

#[tokio::test]
async fn idle_connections_are_few_and_do_not_stay() {
    for version in [HttpVersion::Http1, HttpVersion::Http2] {
        let server = echo(version).await;
        let pool = Pool::new();
        let key = key(server.address, version);
        let options = ConnectionPool {
            idle_timeout: Duration::from_millis(50),
            max_idle_per_endpoint: 2,
            ..ConnectionPool::default()
        };
        let mut checkouts = Vec::new();
        for _ in 0..4 {
            let checkout = pool.checkout(&key, &options, Take::Any, || dial(server.address));
            checkouts.push(checkout.await.unwrap());
        }
        for checkout in checkouts {
            let response = checkout.send(get("/")).await.unwrap();
            response.into_body().collect().await.unwrap();
        }
        let (idle, shared) = pool.count();
        assert!(idle <= 2 && shared <= 4, "{version:?} {idle} {shared}");
        eventually("all are closed", || pool.count() == (0, 0)).await;
        // In order, as the server sees it.
        eventually("all have ended", || server.ended() == server.connections()).await;
    }
}

#[tokio::test]
async fn what_a_workload_leaves_behind_is_closed() {
    for version in [HttpVersion::Http1, HttpVersion::Http2] {
        let server = echo(version).await;
        let pool = Pool::new();
        let gone = key(server.address, version);
        let stays = PoolKey {
            pod: 2,
            ..gone.clone()
        };
        let options = ConnectionPool::default();
        exchange(&pool, &gone, get("/")).await.unwrap();
        exchange(&pool, &stays, get("/")).await.unwrap();
        let busy = pool.checkout(&gone, &options, Take::New, || dial(server.address));
        let busy = busy.await.unwrap();
        pool.release(1);
        let response = busy.send(get("/")).await.unwrap();
        response.into_body().collect().await.unwrap();
        let (idle, shared) = pool.count();
        assert_eq!(idle + shared, 1, "{version:?}: that of the other workload");
        let others = server.connections() - 1;
        eventually("the server knows", || server.ended() == others).await;
    }
}

mod multiplexed {
    //! HTTP/2, against servers that do as they like.

    use ::h2::server::{self, SendResponse};
    use tokio::sync::{Barrier, mpsc};

    use super::*;

    fn ok(mut respond: SendResponse<Bytes>) {
        let mut body = respond.send_response(Response::new(()), false).unwrap();
        body.send_data(Bytes::from_static(b"ok"), true).unwrap();
    }

    #[tokio::test]
    async fn a_refused_stream_was_not_processed_and_its_connection_stays() {
        let address = raw(|_, stream| async move {
            let mut connection = server::handshake(stream).await.unwrap();
            let mut first = true;
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                if std::mem::take(&mut first) {
                    respond.send_reset(::h2::Reason::REFUSED_STREAM);
                } else {
                    ok(respond);
                }
            }
        })
        .await;
        let pool = Pool::new();
        let key = key(address, HttpVersion::Http2);
        let failed = exchange(&pool, &key, get("/")).await.unwrap_err();
        assert_eq!(failed.reason, Reason::StreamRefused);
        assert!(failed.refused_stream && failed.nothing_sent);
        let (_, body) = exchange(&pool, &key, get("/")).await.unwrap();
        assert_eq!(&body[..], b"ok");
        assert_eq!(pool.count(), (0, 1));
    }

    #[tokio::test]
    async fn a_reset_stream_was_processed_perhaps() {
        let address = raw(|_, stream| async move {
            let mut connection = server::handshake(stream).await.unwrap();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                respond.send_reset(::h2::Reason::INTERNAL_ERROR);
            }
        })
        .await;
        let pool = Pool::new();
        let key = key(address, HttpVersion::Http2);
        for _ in 0..2 {
            let failed = exchange(&pool, &key, get("/")).await.unwrap_err();
            assert_eq!(failed.reason, Reason::StreamReset);
            assert!(!failed.refused_stream && !failed.nothing_sent && !failed.reused);
        }
    }

    #[tokio::test]
    async fn goaway_ends_no_stream_that_is_open() {
        let (asked, mut streams) = mpsc::unbounded_channel();
        let (leave, leaves) = tokio::sync::watch::channel(false);
        let address = raw(move |number, stream| {
            let (asked, mut leaves) = (asked.clone(), leaves.clone());
            async move {
                let mut connection = server::handshake(stream).await.unwrap();
                let mut leaving = number > 0;
                loop {
                    tokio::select! {
                        accepted = connection.accept() => match accepted {
                            Some(Ok((_, respond))) => asked.send((number, respond)).unwrap(),
                            _ => return,
                        },
                        _ = leaves.wait_for(|leave| *leave), if !leaving => {
                            leaving = true;
                            connection.graceful_shutdown();
                        }
                    }
                }
            }
        })
        .await;
        let pool = Arc::new(Pool::new());
        let key = key(address, HttpVersion::Http2);
        let ask = || {
            let (pool, key) = (Arc::clone(&pool), key.clone());
            tokio::spawn(async move { exchange(&pool, &key, get("/")).await })
        };
        let waiting = [ask(), ask()];
        let (first, second) = (streams.recv().await.unwrap(), streams.recv().await.unwrap());
        assert_eq!((first.0, second.0), (0, 0));
        leave.send_replace(true);
        eventually("it takes no more", || {
            let endpoint = pool.endpoint(&key);
            let options = ConnectionPool::default();
            let next = endpoint.next(&options, false);
            let mut probe = std::pin::pin!(endpoint.slot(next, &options, || async {
                Err::<Connected, _>(Reason::Internal)
            }));
            matches!(
                probe.as_mut().poll(&mut exchange::unwoken()),
                std::task::Poll::Ready(Err(_))
            )
        })
        .await;
        let third = ask();
        let (number, respond) = streams.recv().await.unwrap();
        assert_eq!(number, 1, "another connection");
        ok(respond);
        third.await.unwrap().unwrap();
        ok(first.1);
        ok(second.1);
        for waiting in waiting {
            waiting.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn no_more_streams_than_the_peer_takes() {
        const AT_ONCE: usize = 12;
        let together = Arc::new(Barrier::new(AT_ONCE));
        let address = raw(move |_, stream| {
            let together = Arc::clone(&together);
            async move {
                let mut connection = server::Builder::new()
                    .max_concurrent_streams(1)
                    .handshake(stream)
                    .await
                    .unwrap();
                while let Some(Ok((_, respond))) = connection.accept().await {
                    let together = Arc::clone(&together);
                    tokio::spawn(async move {
                        // Only when all are being served at once.
                        together.wait().await;
                        ok(respond);
                    });
                }
            }
        })
        .await;
        let pool = Arc::new(Pool::new());
        let key = key(address, HttpVersion::Http2);
        let mut requests = tokio::task::JoinSet::new();
        for _ in 0..AT_ONCE {
            let (pool, key) = (Arc::clone(&pool), key.clone());
            requests.spawn(async move { exchange(&pool, &key, get("/")).await.unwrap() });
        }
        while let Some(done) = requests.join_next().await {
            done.unwrap();
        }
        assert_eq!(pool.count(), (0, AT_ONCE));
    }

    #[tokio::test]
    async fn a_cancelled_request_resets_its_stream_and_nothing_else() {
        let (told, mut seen) = mpsc::unbounded_channel();
        let address = raw(move |number, stream| {
            let told = told.clone();
            async move {
                let mut connection = server::handshake(stream).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    if request.uri().path() == "/" {
                        ok(respond);
                        continue;
                    }
                    let told = told.clone();
                    told.send((number, None)).unwrap();
                    tokio::spawn(async move {
                        let reset = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
                        told.send((number, Some(reset.unwrap()))).unwrap();
                    });
                }
            }
        })
        .await;
        let pool = Pool::new();
        let key = key(address, HttpVersion::Http2);
        let mut slow = Box::pin(exchange(&pool, &key, get("/slow")));
        tokio::select! {
            _ = &mut slow => panic!("nobody answers"),
            asked = seen.recv() => assert_eq!(asked.unwrap(), (0, None)),
        }
        drop(slow);
        let reset = timeout(SOON, seen.recv()).await.unwrap().unwrap();
        assert_eq!(reset, (0, Some(::h2::Reason::CANCEL)));
        exchange(&pool, &key, get("/")).await.unwrap();
        assert_eq!(pool.count(), (0, 1));
    }

    #[tokio::test]
    async fn those_who_wait_for_a_connect_do_not_fail_with_it() {
        let server = echo(HttpVersion::Http2).await;
        let pool = Arc::new(Pool::new());
        let key = key(server.address, HttpVersion::Http2);
        let (fail, failing) = tokio::sync::oneshot::channel::<()>();
        let options = ConnectionPool::default();
        let first = tokio::spawn({
            let (pool, key) = (Arc::clone(&pool), key.clone());
            async move {
                let connect = || async {
                    let _ = failing.await;
                    Err(Reason::UpstreamTimeout)
                };
                pool.checkout(&key, &options, Take::Any, connect)
                    .await
                    .err()
            }
        });
        tokio::task::yield_now().await;
        let second = tokio::spawn({
            let (pool, key) = (Arc::clone(&pool), key.clone());
            async move { exchange(&pool, &key, get("/")).await }
        });
        tokio::task::yield_now().await;
        assert_eq!(server.connections(), 0, "it waits");
        fail.send(()).unwrap();
        assert_eq!(first.await.unwrap(), Some(Reason::UpstreamTimeout));
        second.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_server_that_is_not_http2_is_noticed() {
        let address = raw(|_, mut stream| async move {
            stream
                .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                .await
                .unwrap();
            read_head(&mut stream).await;
        })
        .await;
        let pool = Pool::new();
        let key = key(address, HttpVersion::Http2);
        let failed = exchange(&pool, &key, get("/")).await.unwrap_err();
        assert_eq!(failed.reason, Reason::UpstreamProtocol);
        eventually("it is not kept", || pool.count() == (0, 0)).await;
    }
}

/// Answers each request; a connection that rested for so long is closed.
async fn impatient(patience: Duration) -> (SocketAddr, Arc<AtomicU64>) {
    let connections = Arc::<AtomicU64>::default();
    let count = Arc::clone(&connections);
    let address = raw(move |_, mut stream| {
        count.fetch_add(1, Ordering::Relaxed);
        async move {
            let mut buffer = [0; 4096];
            while let Ok(Ok(1..)) = timeout(patience, stream.read(&mut buffer)).await {
                stream.write_all(OK).await.unwrap();
            }
        }
    })
    .await;
    (address, connections)
}

async fn ask(pool: &Pool, key: &PoolKey, take: Take) {
    let options = ConnectionPool::default();
    let dialling = || dial(key.endpoint);
    let checkout = pool.checkout(key, &options, take, dialling).await.unwrap();
    let response = timeout(SOON, checkout.send(get("/"))).await.unwrap();
    let body = response.unwrap().into_body().collect();
    timeout(SOON, body).await.unwrap().unwrap();
}

#[tokio::test]
async fn what_must_not_be_sent_twice_takes_no_connection_that_rested() {
    let (address, connections) = impatient(SOON).await;
    let connections = || connections.load(Ordering::Relaxed);
    let pool = Pool::new();
    let key = key(address, HttpVersion::Http1);
    ask(&pool, &key, Take::Young).await;
    ask(&pool, &key, Take::Young).await;
    assert_eq!(connections(), 1, "it rested for moments");
    tokio::time::sleep(RESTED + Duration::from_millis(20)).await;
    ask(&pool, &key, Take::Any).await;
    assert_eq!(connections(), 1);
    tokio::time::sleep(RESTED + Duration::from_millis(20)).await;
    ask(&pool, &key, Take::Young).await;
    assert_eq!(connections(), 2);
    assert_eq!(pool.count(), (1, 0), "the new one is in its place");
}

/// A server that closes soon is given no second chance to meet a request with that.
#[tokio::test]
async fn the_patience_of_a_server_is_learnt() {
    let (address, connections) = impatient(Duration::from_millis(200)).await;
    let connections = || connections.load(Ordering::Relaxed);
    let pool = Pool::new();
    let key = key(address, HttpVersion::Http1);
    ask(&pool, &key, Take::Young).await;
    while pool.count() != (0, 0) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    ask(&pool, &key, Take::Young).await;
    assert_eq!(connections(), 2);
    // Not after half the time that it was seen to wait, which is far from a second.
    tokio::time::sleep(Duration::from_millis(100)).await;
    ask(&pool, &key, Take::Young).await;
    assert_eq!(connections(), 3);
}

/// No room for another connection: one that rested is better than a refusal.
#[tokio::test]
async fn at_the_limit_of_connections_the_one_that_rested_is_taken() {
    let (address, connections) = impatient(SOON).await;
    let pool = Pool::new();
    let key = key(address, HttpVersion::Http1);
    ask(&pool, &key, Take::Young).await;
    tokio::time::sleep(RESTED + Duration::from_millis(20)).await;
    let options = ConnectionPool::default();
    let full = || async { Err(Reason::ConnectionLimit) };
    let checkout = pool.checkout(&key, &options, Take::Young, full).await;
    assert!(checkout.unwrap().is_reused());
    assert_eq!(connections.load(Ordering::Relaxed), 1);
}
