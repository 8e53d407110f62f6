//! Where a connection goes, and what the client sees when it cannot.

use super::*;

#[tokio::test]
async fn refused_is_a_reset() {
    let rig = Rig::new();
    rig.dials(refusing());
    let mut client = TcpStream::connect(rig.outbound).await.unwrap();
    expect_reset(&mut client).await;
    assert_eq!(rig.reason().await, "upstream_refused");
}

#[tokio::test]
async fn timeout_is_a_reset_within_the_deadline() {
    let rig = Rig::with(|o| o.connect_timeout = Duration::from_millis(400));
    let (address, _kept) = silent();
    rig.dials(address);
    let begin = Instant::now();
    let mut client = TcpStream::connect(rig.outbound).await.unwrap();
    expect_reset(&mut client).await;
    assert!(begin.elapsed() >= Duration::from_millis(390));
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert_eq!(rig.reason().await, "upstream_timeout");
}

#[tokio::test]
async fn no_original_destination() {
    let rig = Rig::new();
    let mut client = TcpStream::connect(rig.outbound).await.unwrap();
    expect_reset(&mut client).await;
    assert_eq!(rig.reason().await, "no_original_destination");
}

#[tokio::test]
async fn a_client_that_resets_while_connecting_cancels() {
    let rig = Rig::new();
    let (address, _kept) = silent();
    rig.dials(address);
    let client = TcpStream::connect(rig.outbound).await.unwrap();
    poll_until("the connection", || {
        (rig.telemetry.active() == 1).then_some(())
    })
    .await;
    let begin = Instant::now();
    reset(client);
    assert_eq!(rig.reason().await, "client_reset");
    assert!(begin.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn out_of_descriptors_for_the_socket() {
    let rig = Rig::new();
    *rig.pod.socket_error.lock().unwrap() = Some(libc::EMFILE);
    rig.dials(refusing());
    let mut client = TcpStream::connect(rig.outbound).await.unwrap();
    expect_reset(&mut client).await;
    assert_eq!(rig.reason().await, "no_descriptors");
}

#[tokio::test]
async fn registered_only_refuses_unknown_destinations() {
    let rig = Rig::new();
    *rig.pod.policy.lock().unwrap() = Arc::new(EffectivePolicy {
        outbound: crate::model::OutboundMode::RegisteredOnly { exceptions: vec![] },
        ..EffectivePolicy::default()
    });
    let server = listen().await;
    rig.dials(server.local_addr().unwrap());
    let mut client = TcpStream::connect(rig.outbound).await.unwrap();
    expect_reset(&mut client).await;
    assert_eq!(rig.reason().await, "unknown_destination");
}

#[tokio::test]
async fn inbound_reaches_the_application() {
    let rig = Rig::new();
    let application = listen().await;
    *rig.pod.application.lock().unwrap() = application.local_addr().unwrap();
    let mut client = TcpStream::connect(rig.inbound).await.unwrap();
    let (mut server, source) = within(application.accept()).await.unwrap();
    assert_eq!(source.ip(), IpAddr::V4(Ipv4Addr::LOCALHOST));
    assert_eq!(
        *rig.pod.clients.lock().unwrap(),
        [client.local_addr().unwrap()]
    );
    write(&mut client, b"hello").await;
    assert_eq!(read(&mut server, 5).await, b"hello");
    drop((client, server));
    let closed = rig.closed().await;
    assert_eq!(closed.reason.as_deref(), Some("completed"));
    assert_eq!(closed.direction, "inbound");
    assert_ne!(closed.agent_cookie, 0);
}

#[tokio::test]
async fn inbound_refused_by_the_application_is_a_reset() {
    let rig = Rig::new();
    *rig.pod.application.lock().unwrap() = refusing();
    let mut client = TcpStream::connect(rig.inbound).await.unwrap();
    expect_reset(&mut client).await;
    assert_eq!(rig.reason().await, "upstream_refused");
}
