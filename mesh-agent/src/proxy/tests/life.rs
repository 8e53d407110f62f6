//! Limits, descriptors, stopping.

use super::*;

#[tokio::test]
async fn one_workload_cannot_take_all_places() {
    let rig = Rig::with(|o| o.capacity.connections = 45);
    let server = listen().await;
    let mut held = Vec::new();
    for _ in 0..36 {
        held.push(rig.connect(&server).await);
    }
    // 36 of 45: four times what is left.
    let mut refused = TcpStream::connect(rig.outbound).await.unwrap();
    expect_reset(&mut refused).await;
    assert_eq!(rig.reason().await, "agent_limit");
    // Another workload still has room.
    let (other, outbound, _) = add_pod(&rig.proxy, "other", 2);
    *other.dials.lock().unwrap() = Some(server.local_addr().unwrap());
    let _client = TcpStream::connect(outbound).await.unwrap();
    within(server.accept()).await.unwrap();
    // And the first one again when some of its connections have ended.
    held.truncate(10);
    poll_until("places", || {
        (rig.proxy.status().connections < 20).then_some(())
    })
    .await;
    held.push(rig.connect(&server).await);
}

#[tokio::test]
async fn places_are_given_back() {
    let rig = Rig::new();
    let server = listen().await;
    for _ in 0..20 {
        drop(rig.connect(&server).await);
    }
    rig.dials(refusing());
    let mut client = TcpStream::connect(rig.outbound).await.unwrap();
    expect_reset(&mut client).await;
    poll_until("no connection", || {
        (rig.proxy.status().connections == 0).then_some(())
    })
    .await;
    assert_eq!(rig.telemetry.active(), 0);
}

#[tokio::test]
async fn drain_lets_connections_end() {
    let rig = Rig::new();
    let server = listen().await;
    let (mut client, mut upstream) = rig.connect(&server).await;
    let proxy = rig.proxy.clone();
    let drain = tokio::spawn(async move { proxy.drain().await });
    poll_until("the listener to close", || {
        std::net::TcpStream::connect(rig.outbound).err()
    })
    .await;
    write(&mut client, b"still").await;
    assert_eq!(read(&mut upstream, 5).await, b"still");
    drop((client, upstream));
    within(drain).await.unwrap();
    assert_eq!(rig.reason().await, "completed");
}

#[tokio::test]
async fn drain_resets_what_is_left() {
    let rig = Rig::new();
    *rig.pod.policy.lock().unwrap() = Arc::new(EffectivePolicy {
        drain_timeout: Duration::from_millis(50),
        ..EffectivePolicy::default()
    });
    let (mut client, mut server) = rig.connect(&listen().await).await;
    within(rig.proxy.drain()).await;
    expect_reset(&mut client).await;
    expect_reset(&mut server).await;
    assert_eq!(rig.reason().await, "drained");
    assert_eq!(rig.proxy.status().connections, 0);
}

#[tokio::test]
async fn stop_resets_the_connections_of_a_workload_that_is_gone() {
    let rig = Rig::new();
    let server = listen().await;
    let (mut client, mut upstream) = rig.connect(&server).await;
    // One that is still connecting.
    let (address, _kept) = silent();
    rig.dials(address);
    let mut connecting = TcpStream::connect(rig.outbound).await.unwrap();
    poll_until("both", || (rig.telemetry.active() == 2).then_some(())).await;
    assert!(rig.proxy.since_last_accept(1).unwrap() < Duration::from_secs(10));
    within(rig.proxy.stop_pod(1, Duration::ZERO)).await;
    expect_reset(&mut client).await;
    expect_reset(&mut upstream).await;
    expect_reset(&mut connecting).await;
    let closed = rig.telemetry.closed_connections();
    assert_eq!(closed.len(), 2);
    assert!(
        closed
            .iter()
            .all(|c| c.reason.as_deref() == Some("workload_gone"))
    );
    assert!(rig.proxy.status().workloads.is_empty());
}

/// Released with a connection that lives on, and enrolled again meanwhile: what is served anew is another thing.
#[tokio::test]
async fn a_workload_that_is_served_again_while_it_stops() {
    let rig = Rig::new();
    let server = listen().await;
    let (mut old, mut old_server) = rig.connect(&server).await;
    let proxy = rig.proxy.clone();
    let stop = tokio::spawn(async move { proxy.stop_pod(1, Duration::MAX).await });
    poll_until("the listener to close", || {
        std::net::TcpStream::connect(rig.outbound).err()
    })
    .await;
    let (again, outbound, _) = add_pod(&rig.proxy, "again", 1);
    *again.dials.lock().unwrap() = Some(server.local_addr().unwrap());
    let client = TcpStream::connect(outbound).await.unwrap();
    let (accepted, _) = within(server.accept()).await.unwrap();
    // Its own name and policy, not those of the one that stops.
    let names = |proxy: &Proxy| -> Vec<(String, usize)> {
        let status = proxy.status().workloads;
        status
            .iter()
            .map(|w| (w.name.to_string(), w.connections))
            .collect()
    };
    assert_eq!(
        names(&rig.proxy),
        [("test/again".to_owned(), 1), ("test/app".to_owned(), 1)]
    );
    drop((client, accepted));
    write(&mut old, b"lives").await;
    assert_eq!(read(&mut old_server, 5).await, b"lives");
    drop((old, old_server));
    within(stop).await.unwrap();
    // The end of the old one has not ended the new one, and the new one can be stopped.
    assert_eq!(names(&rig.proxy).len(), 1);
    within(rig.proxy.stop_pod(1, Duration::ZERO)).await;
    poll_until("the second listener to close", || {
        std::net::TcpStream::connect(outbound).err()
    })
    .await;
}

/// Runs in a process of its own: the limit is the process's.
#[test]
fn out_of_descriptors_is_refused_and_counted() {
    const CHILD: &str = "COVET_PROXY_EMFILE_CHILD";
    if std::env::var_os(CHILD).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        return runtime.block_on(starve());
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture"])
        .arg("proxy::tests::life::out_of_descriptors_is_refused_and_counted")
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

async fn starve() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let rig = Rig::new();
    let server = listen().await;
    let first = rig.connect(&server).await;
    let clients: Vec<_> = (0..3)
        .map(|_| Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap())
        .collect();
    // The limit bounds the number of a descriptor, not how many there are: take the lowest free one and all above.
    let lowest = std::os::fd::AsRawFd::as_raw_fd(&std::fs::File::open("/dev/null").unwrap());
    let before = getrlimit(Resource::Nofile);
    let limit = |current| {
        setrlimit(
            Resource::Nofile,
            Rlimit {
                current: Some(current),
                maximum: before.maximum,
            },
        )
        .unwrap();
    };
    limit(lowest as u64);
    assert!(
        std::fs::File::open("/dev/null").is_err(),
        "there are descriptors left"
    );
    let cpu = cpu_time();
    // Not closed before the limit is lifted, or their places would become the proxy's.
    let mut kept = Vec::new();
    for client in clients {
        let _ = client.connect(&rig.outbound.into());
        let mut client = TcpStream::from_std(client.into()).unwrap();
        expect_reset(&mut client).await;
        kept.push(client);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(cpu_time() - cpu < Duration::from_millis(200), "spinning");
    limit(before.current.unwrap());
    let closed = rig.telemetry.closed_connections();
    assert_eq!(closed.len(), 3);
    assert!(
        closed
            .iter()
            .all(|c| c.reason.as_deref() == Some("no_descriptors"))
    );
    // And all is well again.
    drop(rig.connect(&server).await);
    drop(first);
}

fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[tokio::test]
async fn accepted_sockets_inherit_what_the_listener_has() {
    use rustix::net::sockopt;

    let keepalive = Keepalive::default();
    let listener = listen().await;
    keepalive.apply(&listener).unwrap();
    let _client = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (accepted, _) = within(listener.accept()).await.unwrap();
    assert!(sockopt::tcp_nodelay(&accepted).unwrap());
    assert!(sockopt::socket_keepalive(&accepted).unwrap());
    assert_eq!(sockopt::tcp_keepidle(&accepted).unwrap(), keepalive.idle);
    assert_eq!(
        sockopt::tcp_keepintvl(&accepted).unwrap(),
        keepalive.interval
    );
    let millis = u128::from(sockopt::tcp_user_timeout(&accepted).unwrap());
    assert_eq!(millis, keepalive.user_timeout.as_millis());
}

/// What an idle connection costs is mostly its task; a local that is kept over an await by mistake shows here.
#[tokio::test]
async fn the_task_of_a_connection_is_small() {
    let rig = Rig::new();
    let served = Arc::new(served::Served::new(rig.pod.clone()));
    let accepted = |socket: std::net::TcpStream| accept::Accepted {
        peer: socket.peer_addr().unwrap(),
        socket: socket.into(),
    };
    let socket = || std::net::TcpStream::connect(rig.outbound).unwrap();
    let shared = || Arc::clone(&rig.proxy.shared);
    let outbound = outbound::serve(shared(), served.clone(), accepted(socket()));
    let id = served::ConnectionId::test();
    let inbound = inbound::serve(shared(), served.clone(), accepted(socket()), id);
    let sizes = (size_of_val(&outbound), size_of_val(&inbound));
    assert!(sizes.0 <= 1024 && sizes.1 <= 1024, "{sizes:?}");
}
