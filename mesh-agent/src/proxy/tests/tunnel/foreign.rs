//! Peers made of h2 and rustls alone, of which none of the code is ours.

use ::http::{Method, Request, Response, StatusCode};
use bytes::Bytes;
use h2::{client::SendRequest, server};
use tokio::task::JoinHandle;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

type Requests = SendRequest<Bytes>;

/// A tunnel to an agent of ours, made by somebody else.
async fn dial(
    mesh: &Mesh,
    account: &str,
) -> Result<(Requests, JoinHandle<Result<(), h2::Error>>), String> {
    let stream = TcpStream::connect(mesh.destination.tunnel).await.unwrap();
    let connector = TlsConnector::from(mesh.pki.of(account).client);
    let name = IpAddr::from(Ipv4Addr::LOCALHOST).into();
    let stream = connector
        .connect(name, stream)
        .await
        .map_err(|e| e.to_string())?;
    let (requests, connection) = h2::client::handshake(stream)
        .await
        .map_err(|e| e.to_string())?;
    Ok((requests, tokio::spawn(connection)))
}

fn connect_to<A: ToString + ?Sized>(authority: &A) -> Request<()> {
    Request::builder()
        .method(Method::CONNECT)
        .uri(authority.to_string())
        .body(())
        .unwrap()
}

async fn status(requests: &mut Requests, request: Request<()>) -> Result<StatusCode, h2::Error> {
    let (response, _stream) = requests.send_request(request, false)?;
    Ok(within(response).await?.status())
}

#[tokio::test]
async fn requests_that_are_no_hbone() {
    let mesh = Mesh::new();
    let server = listen().await;
    let authority = mesh.application(&server);
    let (mut requests, _driver) = dial(&mesh, "client").await.unwrap();
    let get = Request::get(format!("https://{authority}/"))
        .body(())
        .unwrap();
    for request in [
        get,
        connect_to("127.0.0.2:80"),
        connect_to("web.test:80"),
        connect_to("127.0.0.1:15008"),
        connect_to("user@127.0.0.1:80"),
    ] {
        let text = format!("{request:?}");
        assert_eq!(
            status(&mut requests, request).await.unwrap(),
            StatusCode::BAD_REQUEST,
            "{text}"
        );
    }
    // What stands in the headers beside is not looked at so closely.
    let mut odd = connect_to(&authority);
    for (name, value) in [
        (
            "traceparent",
            &b"00-0000000000000000000000000000000000000000000000000000"[..],
        ),
        ("baggage", b"=,;%zz\xff"),
        ("forwarded", b"for=\"[\";;host=\xfe"),
        ("x-unknown", b"1"),
    ] {
        odd.headers_mut()
            .insert(name, ::http::HeaderValue::from_bytes(value).unwrap());
    }
    assert_eq!(status(&mut requests, odd).await.unwrap(), StatusCode::OK);
}

/// None but the tunnel's own address counts as the client's, whatever a peer writes.
#[tokio::test]
async fn forwarded_does_not_lend_an_address() {
    let mesh = Mesh::new();
    let server = listen().await;
    let authority = mesh.application(&server);
    let (mut requests, _driver) = dial(&mesh, "client").await.unwrap();
    let mut request = connect_to(&authority);
    request
        .headers_mut()
        .insert("forwarded", "for=\"10.9.9.9:1\"".parse().unwrap());
    assert_eq!(
        status(&mut requests, request).await.unwrap(),
        StatusCode::OK
    );
    let told = mesh.destination.pod.clients.lock().unwrap().clone();
    assert_eq!(told[0].ip(), IpAddr::from(Ipv4Addr::LOCALHOST));
}

#[tokio::test]
async fn giant_headers_hurt_nobody_else() {
    let mesh = Mesh::new();
    let server = listen().await;
    let authority = mesh.application(&server);
    let (mut requests, _driver) = dial(&mesh, "client").await.unwrap();
    let mut giant = connect_to(&authority);
    giant
        .headers_mut()
        .insert("x", "a".repeat(100_000).parse().unwrap());
    let answer = status(&mut requests, giant).await;
    assert!(!matches!(answer, Ok(StatusCode::OK)), "{answer:?}");
    let (mut client, mut server) = mesh.connect(&server).await;
    write(&mut client, b"fine").await;
    assert_eq!(read(&mut server, 4).await, b"fine");
}

#[tokio::test]
async fn rapid_resets_end_the_tunnel() {
    let mesh = Mesh::new();
    let server = listen().await;
    let authority = mesh.application(&server);
    let (mut requests, driver) = dial(&mesh, "client").await.unwrap();
    for _ in 0..20_000 {
        let Ok((response, mut stream)) = requests.send_request(connect_to(&authority), false)
        else {
            break;
        };
        stream.send_reset(h2::Reason::CANCEL);
        drop(response);
        tokio::task::yield_now().await;
    }
    // With ENHANCE_YOUR_CALM, or cut off while we went on.
    assert!(within(driver).await.unwrap().is_err());
    // Elsewhere: what was reset may still wait to be accepted here.
    let (mut client, mut server) = mesh.connect(&listen().await).await;
    write(&mut client, b"fine").await;
    assert_eq!(read(&mut server, 4).await, b"fine");
}

/// One stream to an application behind an agent of ours.
async fn one_stream(
    mesh: &Mesh,
    requests: &mut Requests,
) -> (h2::SendStream<Bytes>, h2::RecvStream, TcpStream) {
    let server = listen().await;
    let authority = mesh.application(&server);
    let (response, send) = requests
        .send_request(connect_to(&authority), false)
        .unwrap();
    let (response, accepted) = within(async { tokio::join!(response, server.accept()) }).await;
    let response = response.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    (send, response.into_body(), accepted.unwrap().0)
}

#[tokio::test]
async fn resets_of_a_foreign_client() {
    let mesh = Mesh::new();
    let (mut requests, _driver) = dial(&mesh, "client").await.unwrap();
    for (code, ends) in [
        (h2::Reason::NO_ERROR, true),
        (h2::Reason::CANCEL, true),
        (h2::Reason::CONNECT_ERROR, false),
        (h2::Reason::INTERNAL_ERROR, false),
    ] {
        let (mut send, _recv, mut application) = one_stream(&mesh, &mut requests).await;
        send.send_data(Bytes::from_static(b"last words"), false)
            .unwrap();
        assert_eq!(read(&mut application, 10).await, b"last words");
        send.send_reset(code);
        if ends {
            assert_eq!(
                read_to_end(&mut application).await.unwrap(),
                b"",
                "{code:?}"
            );
        } else {
            expect_reset(&mut application).await;
        }
    }
    // An application's reset is CONNECT_ERROR to everybody, a FIN is END_STREAM.
    let (_send, mut recv, application) = one_stream(&mesh, &mut requests).await;
    reset(application);
    let error = within(recv.data()).await.unwrap().unwrap_err();
    assert_eq!(error.reason(), Some(h2::Reason::CONNECT_ERROR));
    let (_send, mut recv, mut application) = one_stream(&mesh, &mut requests).await;
    application.shutdown().await.unwrap();
    while let Some(data) = within(recv.data()).await {
        assert_eq!(data.unwrap(), "");
    }
    assert!(recv.is_end_stream());
}

/// Both ways, with data before, between and after.
#[tokio::test]
async fn keys_are_updated() {
    let mesh = Mesh::new();
    let stream = TcpStream::connect(mesh.destination.tunnel).await.unwrap();
    let connector = TlsConnector::from(mesh.pki.of("client").client);
    let name = IpAddr::from(Ipv4Addr::LOCALHOST).into();
    let mut stream = connector.connect(name, stream).await.unwrap();
    // Sends KeyUpdate(update_requested), with which the answer comes under another key too.
    for _ in 0..3 {
        stream.get_mut().1.refresh_traffic_keys().unwrap();
        stream.flush().await.unwrap();
    }
    let (mut requests, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let (mut send, mut recv, mut application) = one_stream(&mesh, &mut requests).await;
    send.send_data(Bytes::from_static(b"question"), false)
        .unwrap();
    assert_eq!(read(&mut application, 8).await, b"question");
    write(&mut application, b"answer").await;
    assert_eq!(within(recv.data()).await.unwrap().unwrap(), "answer");
}

/// A client that does not want to know that its tunnel takes nothing new: what is open lives on, but nothing is opened.
#[tokio::test]
async fn a_client_that_is_deaf_to_goaway() {
    const GOAWAY: u8 = 7;
    const PING: u8 = 6;
    let mesh = Mesh::with(|o| o.tunnel.ping_timeout = Duration::from_millis(300));
    let stream = TcpStream::connect(mesh.destination.tunnel).await.unwrap();
    let connector = TlsConnector::from(mesh.pki.of("client").client);
    let name = IpAddr::from(Ipv4Addr::LOCALHOST).into();
    let stream = connector.connect(name, stream).await.unwrap();
    let (near, far) = tokio::io::duplex(1 << 20);
    let (mut from_agent, mut to_agent) = tokio::io::split(stream);
    let (mut from_client, mut to_client) = tokio::io::split(far);
    tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_agent).await });
    tokio::spawn(async move {
        loop {
            let mut frame = vec![0; 9];
            from_agent.read_exact(&mut frame).await?;
            let length = u32::from_be_bytes([0, frame[0], frame[1], frame[2]]) as usize;
            frame.resize(9 + length, 0);
            from_agent.read_exact(&mut frame[9..]).await?;
            if frame[3] != GOAWAY && (frame[3] != PING || frame[4] != 0) {
                to_client.write_all(&frame).await?;
            }
        }
        #[expect(unreachable_code)]
        io::Result::Ok(())
    });
    let (mut requests, connection) = h2::client::handshake(near).await.unwrap();
    tokio::spawn(connection);
    let (mut send, _recv, mut application) = one_stream(&mesh, &mut requests).await;
    let proxy = Arc::clone(&mesh.destination.proxy);
    tokio::spawn(async move { proxy.stop_pod(7, SOON).await });
    let server = listen().await;
    let authority = mesh.application(&server);
    let error = within(async {
        loop {
            match status(&mut requests, connect_to(&authority)).await {
                Err(error) => break error,
                Ok(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    })
    .await;
    assert_eq!(error.reason(), Some(h2::Reason::REFUSED_STREAM));
    send.send_data(Bytes::from_static(b"still"), false).unwrap();
    assert_eq!(read(&mut application, 5).await, b"still");
}

#[tokio::test]
async fn without_h2_there_is_no_tunnel() {
    let mesh = Mesh::new();
    let mut config = (*mesh.pki.of("client").client).clone();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let stream = TcpStream::connect(mesh.destination.tunnel).await.unwrap();
    let name = IpAddr::from(Ipv4Addr::LOCALHOST).into();
    let connected = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await;
    if let Ok(mut stream) = connected {
        assert!(within(stream.read(&mut [0])).await.is_err());
    }
    assert_eq!(mesh.destination.reasons(1).await, ["tls_failed"]);
}

type Answers = Arc<dyn Fn(usize, server::SendResponse<Bytes>, h2::RecvStream) + Send + Sync>;

/// An agent of somebody else, which answers as told; the number is that of the stream, over all tunnels.
async fn answering(
    mesh: &Mesh,
    builder: server::Builder,
    answer: impl Fn(usize, server::SendResponse<Bytes>, h2::RecvStream) + Send + Sync + 'static,
) -> SocketAddr {
    let listener = listen().await;
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(mesh.pki.of("server").server);
    let answer: Answers = Arc::new(answer);
    let count = Arc::new(Mutex::new(0));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(stream) = acceptor.accept(stream).await else {
                continue;
            };
            let (answer, count) = (Arc::clone(&answer), Arc::clone(&count));
            let builder = builder.clone();
            tokio::spawn(async move {
                let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else {
                    return;
                };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    let number = {
                        let mut count = count.lock().unwrap();
                        *count += 1;
                        *count
                    };
                    answer(number, respond, request.into_body());
                }
            });
        }
    });
    address
}

fn respond_with(
    mut respond: server::SendResponse<Bytes>,
    status: u16,
) -> Option<h2::SendStream<Bytes>> {
    let response = Response::builder().status(status).body(()).unwrap();
    respond.send_response(response, status != 200).ok()
}

#[tokio::test]
async fn answers_of_a_foreign_agent() {
    for (answer, reason) in [
        (401, Reason::DeniedByPeer),
        (503, Reason::UnreachableByPeer),
        (400, Reason::TunnelProtocol),
        (404, Reason::TunnelProtocol),
    ] {
        let mesh = Mesh::new();
        let peer = answering(&mesh, server::Builder::new(), move |_, respond, _| {
            respond_with(respond, answer);
        })
        .await;
        let error = open(&mesh.source, request(peer, peer)).await.unwrap_err();
        assert_eq!(error, reason, "{answer}");
    }
}

#[tokio::test]
async fn an_agent_that_never_answers() {
    let mesh = Mesh::new();
    let kept = Mutex::new(Vec::new());
    let peer = answering(&mesh, server::Builder::new(), move |_, respond, body| {
        kept.lock().unwrap().push((respond, body));
    })
    .await;
    let mut request = request(peer, peer);
    request.deadline = tokio::time::Instant::now() + Duration::from_millis(300);
    let error = open(&mesh.source, request).await.unwrap_err();
    assert_eq!(error, Reason::UpstreamTimeout);
    assert_eq!(mesh.source.proxy.shared.tunnels.count(), (1, 0));
}

/// A stream that was refused unprocessed is asked for once more, on a tunnel that is not the refusing one.
#[tokio::test]
async fn a_refused_stream_is_tried_once_more() {
    for refusals in [1, 2] {
        let mesh = Mesh::new();
        let kept = Mutex::new(Vec::new());
        let peer = answering(
            &mesh,
            server::Builder::new(),
            move |number, mut respond, body| {
                if (2..2 + refusals).contains(&number) {
                    respond.send_reset(h2::Reason::REFUSED_STREAM);
                } else {
                    kept.lock()
                        .unwrap()
                        .push((respond_with(respond, 200), body));
                }
            },
        )
        .await;
        let _first = open(&mesh.source, request(peer, peer)).await.unwrap();
        let second = open(&mesh.source, request(peer, peer)).await;
        match refusals {
            1 => assert!(second.is_ok(), "{second:?}"),
            _ => assert_eq!(second.unwrap_err(), Reason::TunnelBroken),
        }
    }
}

/// The peer went away while nothing was carried: whoever comes next does not notice.
#[tokio::test]
async fn a_tunnel_that_died_unnoticed() {
    let mesh = Mesh::new();
    let kept = Mutex::new(Vec::new());
    let peer = answering(
        &mesh,
        server::Builder::new(),
        move |number, mut respond, body| {
            if number == 2 {
                // Takes the whole tunnel with it.
                respond.send_reset(h2::Reason::REFUSED_STREAM);
            } else {
                kept.lock()
                    .unwrap()
                    .push((respond_with(respond, 200), body));
            }
        },
    )
    .await;
    drop(open(&mesh.source, request(peer, peer)).await.unwrap());
    open(&mesh.source, request(peer, peer)).await.unwrap();
}

#[tokio::test]
async fn a_foreign_agents_limit_of_streams_is_kept() {
    let mesh = Mesh::new();
    let mut builder = server::Builder::new();
    builder.max_concurrent_streams(3);
    let kept = Mutex::new(Vec::new());
    let peer = answering(&mesh, builder, move |_, respond, body| {
        kept.lock()
            .unwrap()
            .push((respond_with(respond, 200), body));
    })
    .await;
    let mut streams = Vec::new();
    for _ in 0..9 {
        streams.push(open(&mesh.source, request(peer, peer)).await.unwrap());
    }
    let (tunnels, count) = mesh.source.proxy.shared.tunnels.count();
    assert_eq!(count, 9);
    assert!((3..=4).contains(&tunnels), "{tunnels}");
}

#[tokio::test]
async fn resets_of_a_foreign_agent() {
    for (code, ends) in [
        (h2::Reason::NO_ERROR, true),
        (h2::Reason::CANCEL, true),
        (h2::Reason::CONNECT_ERROR, false),
        (h2::Reason::STREAM_CLOSED, false),
    ] {
        let mesh = Mesh::new();
        let kept = Mutex::new(Vec::new());
        let peer = answering(&mesh, server::Builder::new(), move |_, respond, body| {
            let mut send = respond_with(respond, 200).unwrap();
            send.send_data(Bytes::from_static(b"last words"), false)
                .unwrap();
            kept.lock().unwrap().push(body);
            tokio::spawn(async move {
                // Resets when the words have left.
                tokio::time::sleep(Duration::from_millis(200)).await;
                send.send_reset(code);
            });
        })
        .await;
        let stream = open(&mesh.source, request(peer, peer)).await.unwrap();
        let mut client = carry(&mesh.source, stream, peer).await;
        assert_eq!(read(&mut client, 10).await, b"last words");
        if ends {
            assert_eq!(read_to_end(&mut client).await.unwrap(), b"", "{code:?}");
        } else {
            expect_reset(&mut client).await;
        }
        assert_eq!(mesh.source.reasons(1).await, ["upstream_reset"]);
    }
}

/// A peer that neither answers nor reads is given up, and with it what it carried.
#[tokio::test]
async fn a_peer_that_is_stuck() {
    let mesh = Mesh::with(|o| {
        o.tunnel.ping_interval = Duration::from_millis(100);
        o.tunnel.ping_timeout = Duration::from_millis(300);
    });
    let listener = listen().await;
    let peer = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(mesh.pki.of("server").server);
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let stream = acceptor.accept(stream).await.unwrap();
        let mut connection = server::handshake(stream).await.unwrap();
        let (_request, mut respond) = connection.accept().await.unwrap().unwrap();
        let _stream = respond.send_response(Response::new(()), false).unwrap();
        // Lets the answer out, then does nothing any more.
        let _ = tokio::time::timeout(Duration::from_millis(50), connection.accept()).await;
        std::future::pending::<()>().await;
    });
    let stream = open(&mesh.source, request(peer, peer)).await.unwrap();
    let mut client = carry(&mesh.source, stream, peer).await;
    expect_reset(&mut client).await;
    assert_eq!(mesh.source.reasons(1).await, ["tunnel_broken"]);
}
