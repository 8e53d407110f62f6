//! One HTTP/2 stream that stays open both ways: a gRPC stream, or what an extended CONNECT (RFC 8441) has become. Reads and writes
//! block, for at most [`PATIENCE`].

use std::{
    fmt,
    future::poll_fn,
    io::{Error, ErrorKind, Read, Result, Write},
    net::SocketAddr,
    time::Duration,
};

use bytes::{Buf, Bytes};
use h2::{RecvStream, SendStream, client::SendRequest, ext::Protocol};
use http::{HeaderMap, Request, Response};
use tokio::{net::TcpStream, runtime::Runtime, time::timeout};

use crate::{
    netns::NetNs,
    traffic::{self, PATIENCE},
};

/// The connection, its stream, and the response's head.
pub struct Stream {
    pub response: Response<()>,
    runtime: Runtime,
    send: SendStream<Bytes>,
    receive: RecvStream,
    /// What was received and not read yet.
    rest: Bytes,
    /// Keeps the connection.
    _requests: SendRequest<Bytes>,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stream({:?})", self.response)
    }
}

impl Stream {
    /// A gRPC call whose first message is `first`; further ones are written.
    pub fn grpc(
        ns: &NetNs,
        to: SocketAddr,
        method: &str,
        id: &str,
        first: &[u8],
    ) -> Result<Stream> {
        let request = Request::post(format!("http://{to}{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("x-request-id", id);
        let first = super::client::grpc_message(first);
        Stream::open(ns, to, request.body(()).map_err(other)?, Some(first))
    }

    /// An extended CONNECT for a WebSocket.
    pub fn websocket(ns: &NetNs, to: SocketAddr, path: &str, id: &str) -> Result<Stream> {
        let mut request = Request::builder()
            .method("CONNECT")
            .uri(format!("http://{to}{path}"))
            .header("sec-websocket-version", "13")
            .header("x-request-id", id)
            .body(())
            .map_err(other)?;
        let protocol = Protocol::from_static("websocket");
        request.extensions_mut().insert(protocol);
        Stream::open(ns, to, request, None)
    }

    /// Waits for the head of the response.
    fn open(
        ns: &NetNs,
        to: SocketAddr,
        request: Request<()>,
        first: Option<Bytes>,
    ) -> Result<Stream> {
        let stream = traffic::connect(ns, to)?;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let connects = request.extensions().get::<Protocol>().is_some();
        let opening = async {
            let stream = TcpStream::from_std(stream)?;
            let (mut requests, connection) = h2::client::handshake(stream).await.map_err(other)?;
            tokio::spawn(async move {
                let _ = connection.await;
            });
            // RFC 8441 3: only once the peer has said that it takes it.
            while connects && !requests.is_extended_connect_protocol_enabled() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let (response, mut send) = requests.send_request(request, false).map_err(other)?;
            if let Some(first) = first {
                send.send_data(first, false).map_err(other)?;
            }
            let (head, receive) = response.await.map_err(other)?.into_parts();
            Ok::<_, Error>((Response::from_parts(head, ()), send, receive, requests))
        };
        let opened = runtime.block_on(async { timeout(PATIENCE, opening).await });
        let (response, send, receive, _requests) = opened.map_err(|_| late())??;
        Ok(Stream {
            response,
            runtime,
            send,
            receive,
            rest: Bytes::new(),
            _requests,
        })
    }

    pub fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    /// Says that nothing more is sent; the other direction goes on.
    pub fn finish(&mut self) -> Result<()> {
        self.send.send_data(Bytes::new(), true).map_err(other)
    }

    /// The trailers, after the end of the data.
    pub fn trailers(&mut self) -> Result<Option<HeaderMap>> {
        let receive = &mut self.receive;
        let trailers = async { timeout(PATIENCE, receive.trailers()).await };
        let trailers = self.runtime.block_on(trailers).map_err(|_| late())?;
        trailers.map_err(other)
    }
}

impl Read for Stream {
    /// 0 at the peer's end of the stream; an error if it was reset.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        while self.rest.is_empty() {
            let receive = &mut self.receive;
            let next = async { timeout(PATIENCE, receive.data()).await };
            match self.runtime.block_on(next).map_err(|_| late())? {
                None => return Ok(0),
                Some(data) => self.rest = data.map_err(other)?,
            }
            let _ = self
                .receive
                .flow_control()
                .release_capacity(self.rest.len());
        }
        let n = self.rest.len().min(buffer.len());
        self.rest.copy_to_slice(&mut buffer[..n]);
        Ok(n)
    }
}

impl Write for Stream {
    fn write(&mut self, data: &[u8]) -> Result<usize> {
        if data.is_empty() {
            return Ok(0);
        }
        let send = &mut self.send;
        send.reserve_capacity(data.len());
        let room = async { timeout(PATIENCE, poll_fn(|cx| send.poll_capacity(cx))).await };
        let room = self.runtime.block_on(room).map_err(|_| late())?;
        let room = room.ok_or(ErrorKind::BrokenPipe)?.map_err(other)?;
        let n = room.min(data.len());
        let data = Bytes::copy_from_slice(&data[..n]);
        self.send.send_data(data, false).map_err(other)?;
        Ok(n)
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

fn other(error: impl fmt::Display) -> Error {
    Error::other(error.to_string())
}

fn late() -> Error {
    Error::new(ErrorKind::TimedOut, "nothing within the time")
}
