use std::{future::poll_fn, net::SocketAddr};

use hyper::rt::ReadBuf;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::*;

const SOON: Duration = Duration::from_secs(10);

async fn pair() -> (TcpStream, Io) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let client = TcpStream::connect(address).await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    (client, Io::from(Leg::new(accepted)))
}

async fn write(io: &mut Io, mut data: &[u8]) {
    while !data.is_empty() {
        let n = poll_fn(|cx| Pin::new(&mut *io).poll_write(cx, data)).await;
        data = &data[n.unwrap()..];
    }
}

async fn read(io: &mut Io) -> io::Result<Vec<u8>> {
    let mut space = [0; 16];
    let mut buffer = ReadBuf::new(&mut space);
    poll_fn(|cx| Pin::new(&mut *io).poll_read(cx, buffer.unfilled())).await?;
    Ok(buffer.filled().to_vec())
}

async fn shut_down(mut io: Io) {
    let shutdown = poll_fn(|cx| Pin::new(&mut io).poll_shutdown(cx));
    timeout(SOON, shutdown).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_client_that_still_sends_gets_the_whole_response() {
    // The response fits the sockets; what the client sends then does not.
    const RESPONSE: usize = 100_000;
    let (mut client, mut io) = pair().await;
    client.write_all(b"POST / HTTP/1.1\r\n").await.unwrap();
    assert_eq!(read(&mut io).await.unwrap(), b"POST / HTTP/1.1\r"[..16]);
    let server = tokio::spawn(async move {
        write(&mut io, &[7; RESPONSE]).await;
        shut_down(io).await;
    });
    client.write_all(&[1; 8 << 20]).await.unwrap();
    let mut response = vec![0; RESPONSE];
    let read = client.read_exact(&mut response);
    timeout(SOON, read).await.unwrap().unwrap();
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "and then the end");
    drop(client);
    server.await.unwrap();
}

#[tokio::test]
async fn a_client_that_neither_sends_nor_ends_does_not_hold_the_connection() {
    let (client, mut io) = pair().await;
    write(&mut io, b"done").await;
    tokio::time::pause();
    let begin = Instant::now();
    shut_down_whenever(io).await;
    assert_eq!(begin.elapsed().as_secs(), LINGER_PAUSE.as_secs());
    tokio::time::resume();
    let mut client = client;
    let mut all = Vec::new();
    timeout(SOON, client.read_to_end(&mut all))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(all, b"done");
}

async fn shut_down_whenever(mut io: Io) {
    poll_fn(|cx| Pin::new(&mut io).poll_shutdown(cx))
        .await
        .unwrap();
}

#[tokio::test]
async fn what_is_dropped_in_the_middle_is_reset() {
    let (mut client, mut io) = pair().await;
    write(&mut io, b"begin").await;
    drop(io);
    let mut all = Vec::new();
    let error = client.read_to_end(&mut all).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn the_end_and_the_reset_of_a_peer_are_told_apart() {
    let (mut client, mut io) = pair().await;
    client.write_all(b"abc").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read(&mut io).await.unwrap(), b"abc");
    assert_eq!(read(&mut io).await.unwrap(), b"");
    let (client, mut io) = pair().await;
    client.set_zero_linger().unwrap();
    drop(client);
    let error = read(&mut io).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_peer_that_pauses_is_not_taken_for_one_that_is_gone() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    let keepalive = Keepalive {
        user_timeout: Duration::from_millis(900),
        ..Keepalive::default()
    };
    keepalive.apply(&accepted).unwrap();
    let mut io = Io::from(Leg::new(accepted));
    // More than the sockets hold.
    const MUCH: usize = 16 << 20;
    let writing = tokio::spawn(async move {
        write(&mut io, &vec![7; MUCH]).await;
        shut_down(io).await;
    });
    tokio::time::sleep(Duration::from_millis(3500)).await;
    let mut all = Vec::new();
    timeout(SOON, client.read_to_end(&mut all))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(all.len(), MUCH);
    drop(client);
    writing.await.unwrap();
}
