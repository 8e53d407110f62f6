//! What passes through a tunnelled connection: bytes, FIN, RST, back-pressure.

use super::*;

async fn listening(mesh: &Mesh) -> (TcpStream, TcpStream) {
    mesh.connect(&listen().await).await
}

#[tokio::test]
async fn half_close_by_the_client() {
    let mesh = Mesh::new();
    let (mut client, mut server) = listening(&mesh).await;
    write(&mut client, b"question").await;
    client.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut server).await.unwrap(), b"question");
    write(&mut server, b"first").await;
    assert_eq!(read(&mut client, 5).await, b"first");
    write(&mut server, b"answer").await;
    drop(server);
    assert_eq!(read_to_end(&mut client).await.unwrap(), b"answer");
    for (side, bytes) in [(&mesh.source, (8, 11)), (&mesh.destination, (11, 8))] {
        assert_eq!(side.reasons(1).await, ["completed"]);
        let closed = &side.telemetry.closed_connections()[0];
        assert_eq!((closed.bytes_sent, closed.bytes_received), bytes);
    }
}

#[tokio::test]
async fn half_close_by_the_server() {
    let mesh = Mesh::new();
    let (mut client, mut server) = listening(&mesh).await;
    write(&mut server, b"banner").await;
    server.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut client).await.unwrap(), b"banner");
    write(&mut client, b"first").await;
    assert_eq!(read(&mut server, 5).await, b"first");
    write(&mut client, b"more").await;
    drop(client);
    assert_eq!(read_to_end(&mut server).await.unwrap(), b"more");
    assert_eq!(mesh.source.reasons(1).await, ["completed"]);
    assert_eq!(mesh.destination.reasons(1).await, ["completed"]);
}

#[tokio::test]
async fn reset_by_the_client() {
    let mesh = Mesh::new();
    let (client, mut server) = listening(&mesh).await;
    reset(client);
    expect_reset(&mut server).await;
    assert_eq!(mesh.source.reasons(1).await, ["client_reset"]);
    assert_eq!(mesh.destination.reasons(1).await, ["client_reset"]);
}

#[tokio::test]
async fn reset_by_the_server() {
    let mesh = Mesh::new();
    let (mut client, server) = listening(&mesh).await;
    reset(server);
    expect_reset(&mut client).await;
    assert_eq!(mesh.source.reasons(1).await, ["upstream_reset"]);
    assert_eq!(mesh.destination.reasons(1).await, ["upstream_reset"]);
}

#[tokio::test]
async fn data_before_a_reset_arrives() {
    let mesh = Mesh::new();
    let (mut client, mut server) = listening(&mesh).await;
    write(&mut client, b"last words").await;
    assert_eq!(read(&mut server, 10).await, b"last words");
    reset(client);
    expect_reset(&mut server).await;
}

#[tokio::test]
async fn reset_after_a_fin() {
    for by_client in [true, false] {
        let mesh = Mesh::new();
        let (client, server) = listening(&mesh).await;
        let (mut one, mut other) = if by_client {
            (client, server)
        } else {
            (server, client)
        };
        one.shutdown().await.unwrap();
        assert_eq!(read_to_end(&mut other).await.unwrap(), b"");
        reset(one);
        expect_error(&other).await;
    }
}

/// Nobody reads, so nobody would notice a reset by reading.
#[tokio::test]
async fn reset_while_blocked() {
    for by_client in [true, false] {
        for sender_resets in [true, false] {
            let mesh = Mesh::new();
            let (client, server) = listening(&mesh).await;
            let (sender, other) = if by_client {
                (client, server)
            } else {
                (server, client)
            };
            fill(&sender).await;
            let (one, other) = if sender_resets {
                (sender, other)
            } else {
                (other, sender)
            };
            reset(one);
            expect_error(&other).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_both_ways() {
    const TOTAL: usize = 64 << 20;
    let mesh = Mesh::new();
    let (client, server) = listening(&mesh).await;
    let ((mut cr, mut cw), (mut sr, mut sw)) = (client.into_split(), server.into_split());
    let tasks = [
        tokio::spawn(async move { send_pattern(&mut cw, 1, TOTAL).await }),
        tokio::spawn(async move { send_pattern(&mut sw, 2, TOTAL).await }),
        tokio::spawn(async move { check_pattern(&mut cr, 2, TOTAL).await }),
        tokio::spawn(async move { check_pattern(&mut sr, 1, TOTAL).await }),
    ];
    for task in tasks {
        tokio::time::timeout(Duration::from_secs(120), task)
            .await
            .expect("slow")
            .unwrap();
    }
    for side in [&mesh.source, &mesh.destination] {
        assert_eq!(side.reasons(1).await, ["completed"]);
        let closed = &side.telemetry.closed_connections()[0];
        assert_eq!(
            (closed.bytes_sent, closed.bytes_received),
            (TOTAL as u64, TOTAL as u64)
        );
    }
}

/// Sixty streams stall on one tunnel, and another one on it moves on. With a connection window of 4 MiB it would not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_streams_do_not_stall_their_neighbours() {
    let mesh = Mesh::new();
    let server = listen().await;
    let mut stalled = Vec::new();
    for _ in 0..60 {
        let (client, server) = mesh.connect(&server).await;
        stalled.push((fill(&client).await, client, server));
    }
    let (mut client, mut server) = mesh.connect(&server).await;
    tokio::join!(
        send_pattern(&mut client, 3, 32 << 20),
        check_pattern(&mut server, 3, 32 << 20)
    );
    let (tunnels, _) = mesh.source.proxy.shared.tunnels.count();
    assert_eq!(tunnels, 1);
    // What stalled was only waiting.
    for (sent, mut client, mut server) in stalled {
        client.shutdown().await.unwrap();
        assert_eq!(read_to_end(&mut server).await.unwrap().len(), sent);
    }
}

#[tokio::test]
async fn the_application_is_told_of_the_client() {
    let mesh = Mesh::new();
    let (_client, _server) = listening(&mesh).await;
    // The port of `forwarded`, since its address is the one that the tunnel came from.
    let told = mesh.destination.pod.clients.lock().unwrap().clone();
    assert_eq!(told, ["127.0.0.1:4321".parse().unwrap()]);
}

#[tokio::test]
async fn an_application_that_is_not_there() {
    let mesh = Mesh::new();
    *mesh.destination.pod.application.lock().unwrap() = refusing();
    let error = mesh
        .open("127.0.0.1:80".parse().unwrap())
        .await
        .unwrap_err();
    assert_eq!(error, Reason::UnreachableByPeer);
    assert_eq!(mesh.destination.reasons(1).await, ["upstream_refused"]);
}

#[tokio::test]
async fn what_is_not_the_dialled_address_is_refused() {
    let mesh = Mesh::new();
    for authority in ["127.0.0.2:80", "127.0.0.1:15008", "127.0.0.1:15001"] {
        let error = mesh.open(authority.parse().unwrap()).await.unwrap_err();
        assert_eq!(error, Reason::TunnelProtocol, "{authority}");
    }
    assert_eq!(mesh.destination.pod.clients.lock().unwrap().len(), 0);
}
