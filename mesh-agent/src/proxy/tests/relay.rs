//! What passes through an established connection: bytes, FIN, RST, back-pressure.

use super::*;

#[tokio::test]
async fn half_close_by_the_client() {
    let rig = Rig::new();
    let (mut client, mut server) = rig.connect(&listen().await).await;
    write(&mut client, b"question").await;
    client.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut server).await.unwrap(), b"question");
    // The other direction lives on.
    write(&mut server, b"first").await;
    assert_eq!(read(&mut client, 5).await, b"first");
    write(&mut server, b"answer").await;
    drop(server);
    assert_eq!(read_to_end(&mut client).await.unwrap(), b"answer");
    let closed = rig.closed().await;
    assert_eq!(closed.reason.as_deref(), Some("completed"));
    assert_eq!((closed.bytes_sent, closed.bytes_received), (8, 11));
}

#[tokio::test]
async fn half_close_by_the_server() {
    let rig = Rig::new();
    let (mut client, mut server) = rig.connect(&listen().await).await;
    write(&mut server, b"banner").await;
    server.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut client).await.unwrap(), b"banner");
    write(&mut client, b"first").await;
    assert_eq!(read(&mut server, 5).await, b"first");
    write(&mut client, b"more").await;
    drop(client);
    assert_eq!(read_to_end(&mut server).await.unwrap(), b"more");
    assert_eq!(rig.reason().await, "completed");
}

#[tokio::test]
async fn server_speaks_first() {
    let rig = Rig::new();
    let (mut client, mut server) = rig.connect(&listen().await).await;
    write(&mut server, b"220 ready").await;
    assert_eq!(read(&mut client, 9).await, b"220 ready");
}

#[tokio::test]
async fn fire_and_forget() {
    let rig = Rig::new();
    let server = listen().await;
    rig.dials(server.local_addr().unwrap());
    let mut client = TcpStream::connect(rig.outbound).await.unwrap();
    write(&mut client, b"datagram, nearly").await;
    drop(client);
    let (mut server, _) = within(server.accept()).await.unwrap();
    assert_eq!(read_to_end(&mut server).await.unwrap(), b"datagram, nearly");
    drop(server);
    assert_eq!(rig.reason().await, "completed");
}

#[tokio::test]
async fn reset_by_the_client() {
    let rig = Rig::new();
    let (client, mut server) = rig.connect(&listen().await).await;
    reset(client);
    expect_reset(&mut server).await;
    assert_eq!(rig.reason().await, "client_reset");
}

#[tokio::test]
async fn reset_by_the_server() {
    let rig = Rig::new();
    let (mut client, server) = rig.connect(&listen().await).await;
    reset(server);
    expect_reset(&mut client).await;
    assert_eq!(rig.reason().await, "upstream_reset");
}

#[tokio::test]
async fn data_before_a_reset_arrives() {
    let rig = Rig::new();
    let (mut client, mut server) = rig.connect(&listen().await).await;
    write(&mut client, b"last words").await;
    assert_eq!(read(&mut server, 10).await, b"last words");
    reset(client);
    expect_reset(&mut server).await;
}

/// The client has ended its stream; nobody reads from it any more, and its reset must still be seen.
#[tokio::test]
async fn reset_by_the_client_after_its_fin() {
    let rig = Rig::new();
    let (mut client, mut server) = rig.connect(&listen().await).await;
    client.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut server).await.unwrap(), b"");
    reset(client);
    expect_error(&server).await;
    assert_eq!(rig.reason().await, "client_reset");
}

#[tokio::test]
async fn reset_by_the_server_after_its_fin() {
    let rig = Rig::new();
    let (mut client, mut server) = rig.connect(&listen().await).await;
    server.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut client).await.unwrap(), b"");
    reset(server);
    expect_error(&client).await;
    assert_eq!(rig.reason().await, "upstream_reset");
}

/// The server does not read, so the proxy waits to write and does not read from the client.
#[tokio::test]
async fn reset_by_the_client_while_blocked() {
    let rig = Rig::new();
    let (client, server) = rig.connect(&listen().await).await;
    fill(&client).await;
    reset(client);
    expect_error(&server).await;
    assert_eq!(rig.reason().await, "client_reset");
}

#[tokio::test]
async fn reset_by_the_server_while_blocked() {
    let rig = Rig::new();
    let (client, server) = rig.connect(&listen().await).await;
    fill(&client).await;
    reset(server);
    expect_error(&client).await;
    assert_eq!(rig.reason().await, "upstream_reset");
}

/// close() with unread data is a reset, and has to arrive as one.
#[tokio::test]
async fn close_with_unread_data_is_a_reset() {
    let rig = Rig::new();
    let (client, mut server) = rig.connect(&listen().await).await;
    write(&mut server, b"nobody reads this").await;
    within(client.readable()).await.unwrap();
    drop(client);
    expect_reset(&mut server).await;
    assert_eq!(rig.reason().await, "client_reset");
}

/// A client that closes while the server sends on.
#[tokio::test]
async fn writing_to_a_closed_peer_resets() {
    let rig = Rig::new();
    let (client, mut server) = rig.connect(&listen().await).await;
    drop(client);
    assert_eq!(read_to_end(&mut server).await.unwrap(), b"");
    let sent = within(async {
        loop {
            if server.write_all(&[0; 1000]).await.is_err() {
                return true;
            }
            tokio::task::yield_now().await;
        }
    });
    assert!(sent.await);
    assert_eq!(rig.reason().await, "client_reset");
}

/// Writes until nothing is taken any more, and returns how much was.
pub(super) async fn fill(client: &TcpStream) -> usize {
    let chunk = vec![7; 256 * 1024];
    let mut sent = 0;
    loop {
        match client.try_write(&chunk) {
            Ok(n) => sent += n,
            Err(_) => {
                let quiet = tokio::time::timeout(Duration::from_millis(300), client.writable());
                if quiet.await.is_err() {
                    return sent;
                }
            }
        }
        assert!(sent < 256 << 20, "no back-pressure");
    }
}

async fn back_pressure(splice: bool) {
    let rig = Rig::with(|o| o.copy.splice = splice);
    let (client, mut server) = rig.connect(&listen().await).await;
    let sent = fill(&client).await;
    // What is on the way: two send and two receive buffers, and the remainder in the proxy.
    let most = 2 * (buffer_max("rmem") + buffer_max("wmem")) + (1 << 20);
    assert!(sent <= most, "{sent} bytes taken, nobody reads");
    // What the proxy says it has sent on is what the server's kernel or our own has taken.
    let mut client = client;
    client.shutdown().await.unwrap();
    let received = read_to_end(&mut server).await.unwrap();
    assert_eq!(received.len(), sent);
    assert!(received.iter().all(|b| *b == 7));
    drop((client, server));
    assert_eq!(rig.closed().await.bytes_sent as usize, sent);
}

fn buffer_max(kind: &str) -> usize {
    let text = std::fs::read_to_string(format!("/proc/sys/net/ipv4/tcp_{kind}")).unwrap();
    text.split_whitespace().last().unwrap().parse().unwrap()
}

#[tokio::test]
async fn back_pressure_of_a_copy() {
    back_pressure(false).await;
}

#[tokio::test]
async fn back_pressure_of_a_splice() {
    back_pressure(true).await;
}

/// Pseudo-random blocks that sender and receiver make alike.
struct Pattern(u64);

impl Pattern {
    fn fill(&mut self, block: &mut [u8]) {
        for word in block.chunks_exact_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes());
        }
    }
}

pub(super) async fn send_pattern(
    stream: &mut (impl AsyncWriteExt + Unpin),
    seed: u64,
    total: usize,
) {
    let mut pattern = Pattern(seed);
    let mut block = vec![0; 256 * 1024];
    for _ in 0..total / block.len() {
        pattern.fill(&mut block);
        stream.write_all(&block).await.unwrap();
    }
    stream.shutdown().await.unwrap();
}

pub(super) async fn check_pattern(
    stream: &mut (impl AsyncReadExt + Unpin),
    seed: u64,
    total: usize,
) {
    let mut pattern = Pattern(seed);
    let (mut expected, mut block) = (vec![0; 256 * 1024], vec![0; 256 * 1024]);
    for i in 0..total / block.len() {
        pattern.fill(&mut expected);
        stream.read_exact(&mut block).await.unwrap();
        assert!(block == expected, "block {i} differs");
    }
    assert_eq!(stream.read(&mut block).await.unwrap(), 0);
}

async fn bulk(workers: WorkerMode, splice: bool, pipes: usize) {
    const TOTAL: usize = 256 << 20;
    let rig = Rig::with(|o| {
        o.workers = workers;
        o.copy.splice = splice;
        o.capacity.pipes = pipes;
    });
    let (client, server) = rig.connect(&listen().await).await;
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
    let closed = rig.closed().await;
    assert_eq!(closed.reason.as_deref(), Some("completed"));
    assert_eq!(closed.bytes_sent as usize, TOTAL);
    assert_eq!(closed.bytes_received as usize, TOTAL);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_both_ways_spliced() {
    bulk(WorkerMode::Shared, true, 16).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_both_ways_copied() {
    bulk(WorkerMode::Shared, false, 16).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_both_ways_without_pipes_to_be_had() {
    bulk(WorkerMode::PerCore(2), true, 0).await;
}

#[tokio::test]
async fn pipes_are_given_back() {
    let rig = Rig::with(|o| o.capacity.pipes = 2);
    let server = listen().await;
    for _ in 0..5 {
        let (mut client, mut server) = rig.connect(&server).await;
        tokio::join!(
            send_pattern(&mut client, 3, 8 << 20),
            check_pattern(&mut server, 3, 8 << 20)
        );
    }
    assert!(rig.proxy.shared.copy.pipes.open() <= 2);
}

/// A reader that pauses for longer than TCP_USER_TIMEOUT is alive; the kernel alone would end the connection.
#[tokio::test]
async fn a_reader_that_pauses_is_not_a_peer_that_vanished() {
    let rig = Rig::with(|o| {
        o.keepalive.user_timeout = Duration::from_secs(2);
        o.keepalive.check = Duration::from_millis(500);
    });
    let (client, mut server) = rig.connect(&listen().await).await;
    let sent = fill(&client).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let mut client = client;
    client.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut server).await.unwrap().len(), sent);
}

/// Bulk must not starve others on the same worker.
#[tokio::test]
async fn fairness_beside_bulk() {
    let rig = Rig::with(|o| o.workers = WorkerMode::PerCore(1));
    let server = listen().await;
    let mut bulk = Vec::new();
    for _ in 0..4 {
        let (mut client, mut server) = rig.connect(&server).await;
        bulk.push(tokio::spawn(async move {
            let block = vec![1; 256 * 1024];
            while client.write_all(&block).await.is_ok() {}
        }));
        bulk.push(tokio::spawn(async move {
            let mut block = vec![0; 256 * 1024];
            while server.read(&mut block).await.is_ok() {}
        }));
    }
    let (mut client, mut server) = rig.connect(&server).await;
    for _ in 0..50 {
        let begin = Instant::now();
        write(&mut client, b"ping").await;
        assert_eq!(read(&mut server, 4).await, b"ping");
        assert!(begin.elapsed() < Duration::from_secs(2));
    }
    for task in bulk {
        task.abort();
    }
}

/// A read ends before an urgent byte, and no event tells of what is behind it.
#[tokio::test]
async fn bytes_behind_urgent_data() {
    let rig = Rig::new();
    let (mut client, mut server) = rig.connect(&listen().await).await;
    write(&mut client, b"question").await;
    assert_eq!(read(&mut server, 8).await, b"question");
    // All three are queued when the proxy looks.
    let together = client.into_std().unwrap();
    rustix::net::send(&together, b"abc", rustix::net::SendFlags::empty()).unwrap();
    rustix::net::send(&together, b"!", rustix::net::SendFlags::OOB).unwrap();
    rustix::net::send(&together, b"def", rustix::net::SendFlags::empty()).unwrap();
    let mut client = TcpStream::from_std(together).unwrap();
    assert_eq!(read(&mut server, 6).await, b"abcdef");
    client.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut server).await.unwrap(), b"");
}

/// splice(2) never gets past an urgent byte; with a FIN behind it, it reports the end.
#[tokio::test]
async fn bulk_behind_urgent_data() {
    const EACH: usize = 24 << 20;
    for pause in [Duration::ZERO, Duration::from_millis(200)] {
        let rig = Rig::new();
        let (mut client, mut server) = rig.connect(&listen().await).await;
        let sender = async {
            let block = vec![7; EACH];
            write(&mut client, &block).await;
            rustix::net::send(&client, b"!", rustix::net::SendFlags::OOB).unwrap();
            tokio::time::sleep(pause).await;
            write(&mut client, &block).await;
            client.shutdown().await.unwrap();
        };
        let (received, ()) = tokio::join!(read_to_end(&mut server), sender);
        assert_eq!(received.unwrap().len(), 2 * EACH);
    }
}
