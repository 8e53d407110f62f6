//! Which connections share a tunnel, and what happens when making one fails.

use super::*;

#[tokio::test]
async fn concurrent_opens_share_one_connect() {
    let mesh = Mesh::new();
    let server = listen().await;
    let authority = mesh.application(&server);
    let opens = (0..50).map(|_| mesh.open(authority));
    let streams = futures::future::join_all(opens).await;
    assert!(streams.iter().all(Result::is_ok));
    assert_eq!(mesh.source.proxy.shared.tunnels.count(), (1, 50));
}

#[tokio::test]
async fn a_full_tunnel_returns_to_the_pool() {
    let mesh = Mesh::with(|o| o.tunnel.max_streams = 2);
    let server = listen().await;
    let authority = mesh.application(&server);
    let tunnels = &mesh.source.proxy.shared.tunnels;
    let first = [
        mesh.open(authority).await.unwrap(),
        mesh.open(authority).await.unwrap(),
    ];
    let third = mesh.open(authority).await.unwrap();
    assert_eq!(tunnels.count(), (2, 3));
    drop(first);
    poll_until("places given back", || {
        (tunnels.count().1 == 1).then_some(())
    })
    .await;
    let more = [
        mesh.open(authority).await.unwrap(),
        mesh.open(authority).await.unwrap(),
        mesh.open(authority).await.unwrap(),
    ];
    assert_eq!(tunnels.count(), (2, 4));
    drop((third, more));
}

#[tokio::test]
async fn another_identity_is_refused() {
    let mesh = Mesh::new();
    let mut request = request(mesh.destination.tunnel, "127.0.0.1:80".parse().unwrap());
    request.expected = id("other");
    assert_eq!(
        open(&mesh.source, request).await.unwrap_err(),
        Reason::PeerIdentity
    );
    assert_eq!(mesh.source.proxy.shared.tunnels.count(), (0, 0));
}

#[tokio::test]
async fn without_a_certificate() {
    let mesh = Mesh::new();
    let mut request = request(mesh.destination.tunnel, "127.0.0.1:80".parse().unwrap());
    request.source = id("nobody");
    assert_eq!(
        open(&mesh.source, request).await.unwrap_err(),
        Reason::NoCertificate
    );
}

#[tokio::test]
async fn a_failed_connect_wakes_all() {
    let mesh = Mesh::new();
    let peer = refusing();
    let opens = (0..20).map(|_| open(&mesh.source, request(peer, peer)));
    for result in futures::future::join_all(opens).await {
        assert_eq!(result.unwrap_err(), Reason::TunnelUnreachable);
    }
}

/// Whoever waits for a handshake that does not end keeps his own deadline; the handshake has its own.
#[tokio::test]
async fn a_peer_that_never_finishes_the_handshake() {
    let mesh = Mesh::with(|o| o.tunnel.handshake_timeout = Duration::from_secs(1));
    let mute = listen().await;
    let peer = mute.local_addr().unwrap();
    let begin = Instant::now();
    let mut hasty = request(peer, peer);
    hasty.deadline = tokio::time::Instant::now() + Duration::from_millis(100);
    let (patient, hasty) = tokio::join!(
        open(&mesh.source, request(peer, peer)),
        open(&mesh.source, hasty)
    );
    assert_eq!(hasty.unwrap_err(), Reason::TlsFailed);
    assert_eq!(patient.unwrap_err(), Reason::TlsFailed);
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_client_that_never_finishes_the_handshake() {
    let mesh = Mesh::with(|o| o.tunnel.handshake_timeout = Duration::from_millis(300));
    let mut client = TcpStream::connect(mesh.destination.tunnel).await.unwrap();
    assert_eq!(mesh.destination.reasons(1).await, ["tls_failed"]);
    let mut byte = [0];
    assert!(matches!(
        within(client.read(&mut byte)).await,
        Ok(0) | Err(_)
    ));
}

#[tokio::test]
async fn handshakes_under_way_are_bounded() {
    let mesh = Mesh::with(|o| o.tunnel.max_handshakes = 4);
    let mut clients = Vec::new();
    for _ in 0..6 {
        // A refusal may be faster than the connect.
        clients.push(TcpStream::connect(mesh.destination.tunnel).await);
    }
    let reasons = mesh.destination.reasons(2).await;
    assert!(
        reasons.iter().all(|r| r == "handshake_limit"),
        "{reasons:?}"
    );
}

#[tokio::test]
async fn a_revoked_peer_is_cut() {
    for revoked in ["client", "server"] {
        let mesh = Mesh::new();
        let (mut client, mut server) = mesh.connect(&listen().await).await;
        write(&mut client, b"fine").await;
        assert_eq!(read(&mut server, 4).await, b"fine");
        mesh.pki.revoke(revoked);
        expect_reset(&mut client).await;
        expect_reset(&mut server).await;
        let (noticed, _) = match revoked {
            "server" => (&mesh.source, &mesh.destination),
            _ => (&mesh.destination, &mesh.source),
        };
        assert_eq!(noticed.reasons(1).await, ["certificate_revoked"]);
        let error = mesh
            .open("127.0.0.1:80".parse().unwrap())
            .await
            .unwrap_err();
        assert!(
            matches!(
                error,
                Reason::CertificateRevoked | Reason::TunnelProtocol | Reason::TunnelBroken
            ),
            "{error}"
        );
    }
}

/// Streams that are open when the other agent stops end in their own time; new ones get a tunnel of their own.
#[tokio::test]
async fn a_tunnel_is_drained() {
    let mesh = Mesh::new();
    let (mut client, mut server) = mesh.connect(&listen().await).await;
    write(&mut client, b"before").await;
    assert_eq!(read(&mut server, 6).await, b"before");
    let proxy = Arc::clone(&mesh.destination.proxy);
    let stopping = tokio::spawn(async move { proxy.stop_pod(7, SOON).await });
    // The listener is gone, and the tunnel takes no more.
    poll_until("no new streams", || {
        let tunnel = std::net::TcpStream::connect(mesh.destination.tunnel);
        tunnel.is_err().then_some(())
    })
    .await;
    let error = mesh
        .open("127.0.0.1:80".parse().unwrap())
        .await
        .unwrap_err();
    assert_eq!(error, Reason::TunnelUnreachable);
    write(&mut server, b"after").await;
    assert_eq!(read(&mut client, 5).await, b"after");
    client.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut server).await.unwrap(), b"");
    drop(server);
    assert_eq!(read_to_end(&mut client).await.unwrap(), b"");
    within(stopping).await.unwrap();
    assert_eq!(mesh.source.reasons(1).await, ["completed"]);
}

#[tokio::test]
async fn an_idle_tunnel_is_closed() {
    let mesh = Mesh::with(|o| o.tunnel.idle_timeout = Duration::from_millis(200));
    let server = listen().await;
    let authority = mesh.application(&server);
    let stream = mesh.open(authority).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let tunnels = &mesh.source.proxy.shared.tunnels;
    assert_eq!(tunnels.count(), (1, 1));
    drop(stream);
    poll_until("no tunnel", || (tunnels.count() == (0, 0)).then_some(())).await;
    poll_until("no tunnel there", || {
        (mesh.destination.proxy.status().connections == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_streams_over_few_tunnels() {
    let mesh = Mesh::new();
    let server = listen().await;
    let authority = mesh.application(&server);
    let echo = tokio::spawn(async move {
        loop {
            let (mut stream, _) = server.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut r, mut w) = stream.split();
                tokio::io::copy(&mut r, &mut w).await.unwrap();
                w.shutdown().await.unwrap();
            });
        }
    });
    let clients = (0..1000_u32).map(|i| {
        let mesh = &mesh;
        async move {
            let stream = mesh.open(authority).await.unwrap();
            let mut client = carry(&mesh.source, stream, authority).await;
            let word = i.to_be_bytes().repeat(64);
            write(&mut client, &word).await;
            assert_eq!(read(&mut client, word.len()).await, word);
            client
        }
    });
    let clients = futures::future::join_all(clients).await;
    let (tunnels, streams) = mesh.source.proxy.shared.tunnels.count();
    assert!((10..=14).contains(&tunnels), "{tunnels}");
    assert_eq!(streams, 1000);
    drop(clients);
    echo.abort();
}
