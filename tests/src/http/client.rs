//! The client: one connection at a time, requests one after another, everything bounded by [`PATIENCE`].

use std::{
    io::{Error, Result},
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Version};
use http_body_util::BodyExt;
use hyper::{
    body::{Frame, Incoming},
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::runtime::Runtime;

use super::Frames;
use crate::{
    netns::NetNs,
    traffic::{self, PATIENCE},
};

/// Which version a client speaks; HTTP/2 by prior knowledge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    Http1,
    Http2,
}

/// A request as a test says it.
#[derive(Clone, Debug)]
pub struct Ask {
    method: Method,
    path: String,
    headers: Vec<(String, String)>,
    chunks: Vec<Bytes>,
    sized: bool,
    trailers: Option<HeaderMap>,
    patience: Duration,
}

impl Ask {
    pub fn new(method: &str, path: &str) -> Ask {
        Ask {
            method: method.parse().expect("a method"),
            path: path.into(),
            headers: Vec::new(),
            chunks: Vec::new(),
            sized: true,
            trailers: None,
            patience: PATIENCE,
        }
    }

    pub fn get(path: &str) -> Ask {
        Ask::new("GET", path)
    }

    pub fn post(path: &str, body: impl Into<Bytes>) -> Ask {
        Ask::new("POST", path).body(body)
    }

    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Ask {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// A body with a declared length.
    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Ask {
        self.chunks = vec![body.into()];
        self
    }

    /// A body in pieces, without a declared length.
    #[must_use]
    pub fn chunks(mut self, chunks: Vec<Bytes>) -> Ask {
        self.chunks = chunks;
        self.sized = false;
        self
    }

    /// A trailer; the body has no declared length then.
    #[must_use]
    pub fn trailer(mut self, name: &'static str, value: &'static str) -> Ask {
        let trailers = self.trailers.get_or_insert_default();
        trailers.insert(name, HeaderValue::from_static(value));
        self.sized = false;
        self
    }

    /// How long the answer may take.
    #[must_use]
    pub fn within(mut self, patience: Duration) -> Ask {
        self.patience = patience;
        self
    }

    /// A gRPC request with these messages.
    pub fn grpc(method: &str, messages: &[&[u8]]) -> Ask {
        let chunks = messages.iter().map(|message| grpc_message(message));
        Ask::new("POST", method)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .chunks(chunks.collect())
    }

    fn body_frames(&self) -> Frames {
        if self.chunks.is_empty() && self.trailers.is_none() {
            return Frames::whole(Bytes::new());
        }
        if self.sized {
            return Frames::whole(self.chunks.concat());
        }
        let (sender, frames) = Frames::channel(None);
        let (chunks, trailers) = (self.chunks.clone(), self.trailers.clone());
        tokio::spawn(async move {
            for chunk in chunks {
                if sender.send(Ok(Frame::data(chunk))).await.is_err() {
                    return;
                }
            }
            if let Some(trailers) = trailers {
                let _ = sender.send(Ok(Frame::trailers(trailers))).await;
            }
        });
        frames
    }

    fn request(&self, speaks: Speaks, authority: &str) -> Request<Frames> {
        let named = self.headers.iter().find(|(name, _)| name == "host");
        let authority = named.map_or(authority, |(_, host)| host);
        let uri = match speaks {
            Speaks::Http1 => self.path.clone(),
            Speaks::Http2 => format!("http://{authority}{}", self.path),
        };
        let mut request = Request::builder().method(self.method.clone()).uri(uri);
        if speaks == Speaks::Http1 {
            request = request.header("host", authority);
        }
        for (name, value) in self.headers.iter().filter(|(name, _)| name != "host") {
            request = request.header(
                name.parse::<HeaderName>().expect("a header name"),
                HeaderValue::from_bytes(value.as_bytes()).expect("a header value"),
            );
        }
        request.body(self.body_frames()).expect("a request")
    }
}

/// A message as gRPC frames it.
pub fn grpc_message(message: &[u8]) -> Bytes {
    let mut framed = vec![0];
    framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
    framed.extend_from_slice(message);
    framed.into()
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub version: Version,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: Option<HeaderMap>,
    /// Why the body ended before its end.
    pub broken: Option<String>,
    /// From the request to the last byte.
    pub took: Duration,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// What the echo server said.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{} {:?}: {e}", self.status, self.text()))
    }

    /// Which pod answered; empty if none did.
    pub fn pod(&self) -> String {
        serde_json::from_slice::<Value>(&self.body)
            .ok()
            .and_then(|json| json["pod"].as_str().map(str::to_owned))
            .unwrap_or_default()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// A header of the request as the server got it, values joined.
    pub fn sent(&self, name: &str) -> Option<String> {
        let values = &self.json()["headers"][name];
        let values: Vec<_> = values
            .as_array()?
            .iter()
            .filter_map(Value::as_str)
            .collect();
        Some(values.join(","))
    }

    /// The reason that the mesh names in `Proxy-Status`.
    pub fn reason(&self) -> Option<String> {
        let (_, details) = self.header("proxy-status")?.split_once("details=\"")?;
        let end = details.find([':', '"'])?;
        Some(details[..end].to_owned())
    }

    /// In the trailers, or in the headers of an answer without a body.
    pub fn grpc_status(&self) -> Option<u32> {
        let trailers = self.trailers.as_ref().and_then(|t| t.get("grpc-status"));
        let value = trailers.or_else(|| self.headers.get("grpc-status"))?;
        value.to_str().ok()?.parse().ok()
    }
}

enum Sender {
    Http1(http1::SendRequest<Frames>),
    Http2(http2::SendRequest<Frames>),
}

/// A client connection that is kept.
pub struct Connection {
    runtime: Runtime,
    sender: Sender,
    speaks: Speaks,
    authority: String,
    pub local: SocketAddr,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connection({})", self.local)
    }
}

/// A response whose body is still to come.
#[derive(Debug)]
pub struct Opened {
    response: Response<Incoming>,
}

impl Opened {
    pub fn status(&self) -> u16 {
        self.response.status().as_u16()
    }
}

fn other(error: impl std::fmt::Display) -> Error {
    Error::other(error.to_string())
}

impl Connection {
    pub fn open(ns: &NetNs, to: SocketAddr, speaks: Speaks) -> Result<Connection> {
        let stream = traffic::connect(ns, to)?;
        let local = stream.local_addr()?;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let sender = runtime.block_on(async {
            let io = TokioIo::new(tokio::net::TcpStream::from_std(stream)?);
            match speaks {
                Speaks::Http1 => {
                    let (sender, connection) = http1::handshake(io).await.map_err(other)?;
                    tokio::spawn(async move {
                        let _ = connection.await;
                    });
                    Ok::<_, Error>(Sender::Http1(sender))
                }
                Speaks::Http2 => {
                    let (sender, connection) = http2::handshake(TokioExecutor::new(), io)
                        .await
                        .map_err(other)?;
                    tokio::spawn(async move {
                        let _ = connection.await;
                    });
                    Ok(Sender::Http2(sender))
                }
            }
        })?;
        Ok(Connection {
            runtime,
            sender,
            speaks,
            authority: to.to_string(),
            local,
        })
    }

    /// Sends and waits for the headers of the answer.
    pub fn start(&mut self, ask: &Ask) -> Result<Opened> {
        let (sender, speaks, authority) = (&mut self.sender, self.speaks, &self.authority);
        self.runtime.block_on(async {
            let request = ask.request(speaks, authority);
            let response = async {
                match sender {
                    Sender::Http1(sender) => {
                        sender.ready().await?;
                        sender.send_request(request).await
                    }
                    Sender::Http2(sender) => {
                        sender.ready().await?;
                        sender.send_request(request).await
                    }
                }
            };
            let response = tokio::time::timeout(ask.patience, response).await;
            let response = response.map_err(|_| other("no answer within the time"))?;
            response.map(|response| Opened { response }).map_err(|e| {
                let cause = std::error::Error::source(&e).map(ToString::to_string);
                other(format!("{e}: {}", cause.unwrap_or_default()))
            })
        })
    }

    /// The next piece of a body; `None` at its end.
    pub fn next(&mut self, opened: &mut Opened) -> Result<Option<Bytes>> {
        self.runtime.block_on(async {
            loop {
                let next = opened.response.body_mut().frame();
                match tokio::time::timeout(PATIENCE, next).await {
                    Err(_) => return Err(other("the body rests")),
                    Ok(None) => return Ok(None),
                    Ok(Some(Err(e))) => return Err(other(e)),
                    Ok(Some(Ok(frame))) => {
                        if let Ok(data) = frame.into_data() {
                            return Ok(Some(data));
                        }
                    }
                }
            }
        })
    }

    /// Sends and reads the whole answer.
    pub fn send(&mut self, ask: &Ask) -> Result<Answer> {
        let began = Instant::now();
        let opened = self.start(ask)?;
        let patience = ask.patience;
        self.runtime.block_on(async move {
            let (head, mut incoming) = opened.response.into_parts();
            let mut answer = Answer {
                status: head.status.as_u16(),
                version: head.version,
                headers: head.headers,
                body: Vec::new(),
                trailers: None,
                broken: None,
                took: Duration::ZERO,
            };
            loop {
                match tokio::time::timeout(patience, incoming.frame()).await {
                    Err(_) => return Err(other("the body does not end within the time")),
                    Ok(None) => break,
                    Ok(Some(Err(e))) => {
                        answer.broken = Some(format!("{e:?}"));
                        break;
                    }
                    Ok(Some(Ok(frame))) => match frame.into_data() {
                        Ok(data) => answer.body.extend_from_slice(&data),
                        Err(frame) => answer.trailers = frame.into_trailers().ok(),
                    },
                }
            }
            answer.took = began.elapsed();
            Ok(answer)
        })
    }
}

/// One request on a connection of its own.
pub fn ask(ns: &NetNs, to: SocketAddr, speaks: Speaks, ask: &Ask) -> Result<Answer> {
    Connection::open(ns, to, speaks)?.send(ask)
}
