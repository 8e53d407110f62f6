use std::{future::poll_fn, io::ErrorKind};

use futures::task::noop_waker;
use hyper::rt::ReadBuf;
use proptest::prelude::*;

use super::*;

/// A socket that takes so many bytes of each write, or for once none.
#[derive(Debug, Default)]
struct Socket {
    takes: Vec<usize>,
    /// What each write has taken.
    writes: Vec<Vec<u8>>,
    broken: bool,
    closed: bool,
}

impl Read for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl Write for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        assert!(!self.closed);
        if self.broken {
            return Poll::Ready(Err(ErrorKind::BrokenPipe.into()));
        }
        let most = self.takes.pop().unwrap_or(usize::MAX);
        if most == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let n = data.len().min(most);
        self.writes.push(data[..n].to_vec());
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.closed = true;
        Poll::Ready(Ok(()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all: Vec<u8> = slices.iter().flat_map(|s| s.iter().copied()).collect();
        self.poll_write(cx, &all)
    }
}

async fn write(io: &mut Gathered<Socket>, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        let (head, tail) = data.split_at(data.len() / 3);
        let slices = [IoSlice::new(head), IoSlice::new(tail)];
        let n = poll_fn(|cx| Pin::new(&mut *io).poll_write_vectored(cx, &slices)).await?;
        data = &data[n..];
        poll_fn(|cx| Pin::new(&mut *io).poll_flush(cx)).await?;
    }
    Ok(())
}

fn send(io: &Gathered<Socket>) {
    io.send(&mut Context::from_waker(&noop_waker()));
}

#[tokio::test]
async fn one_write_for_a_turn() {
    let mut io = Gathered::new(Socket::default());
    for word in ["a", "bc", "def"] {
        write(&mut io, word.as_bytes()).await.unwrap();
    }
    assert!(io.lock().io.writes.is_empty());
    send(&io);
    send(&io);
    assert_eq!(io.lock().io.writes, [b"abcdef"]);
    // It holds nothing while it rests.
    assert_eq!(io.lock().waiting.capacity(), 0);
}

#[tokio::test]
async fn a_failure_is_met_by_the_next_read() {
    let mut io = Gathered::new(Socket::default());
    write(&mut io, b"a").await.unwrap();
    io.lock().io.broken = true;
    send(&io);
    let mut space = [0; 4];
    let mut buffer = ReadBuf::new(&mut space);
    let read = poll_fn(|cx| Pin::new(&mut io).poll_read(cx, buffer.unfilled())).await;
    assert_eq!(read.unwrap_err().kind(), ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn what_waits_goes_out_before_the_end() {
    let socket = Socket {
        takes: vec![0, 2, 0],
        ..Socket::default()
    };
    let mut io = Gathered::new(socket);
    write(&mut io, b"abc").await.unwrap();
    let shut = poll_fn(|cx| Pin::new(&mut io).poll_shutdown(cx)).await;
    shut.unwrap();
    assert_eq!(io.lock().io.writes.concat(), b"abc");
    assert!(io.lock().io.closed);
}

proptest! {
    #[test]
    fn nothing_is_lost_or_swapped(
        sizes in proptest::collection::vec(prop_oneof![1usize..300, LARGE - 2..LARGE + 2, 1..MOST * 2], 0..20),
        takes in proptest::collection::vec(prop_oneof![Just(0usize), 1usize..50, 1..MOST * 2], 0..20),
        turns in proptest::collection::vec(any::<bool>(), 20),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut io = Gathered::new(Socket { takes, ..Socket::default() });
            let mut expected = Vec::new();
            for (at, size) in sizes.into_iter().enumerate() {
                let data: Vec<u8> = (0..size).map(|n| (n * 7 + at * 13) as u8).collect();
                write(&mut io, &data).await.unwrap();
                expected.extend_from_slice(&data);
                if turns[at] {
                    send(&io);
                }
                let state = io.lock();
                assert!(state.waiting.len() - state.sent < MOST + LARGE);
            }
            poll_fn(|cx| Pin::new(&mut io).poll_shutdown(cx)).await.unwrap();
            assert!(io.lock().io.writes.concat() == expected);
        });
    }
}
