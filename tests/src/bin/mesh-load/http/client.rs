//! One connection and the requests on it.

use std::{cell::RefCell, net::SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::clock::Clock;
use crate::options::Options;

/// As large as it may be: the windows of HTTP/2 are not what is measured.
const WINDOW: u32 = 16 << 20;

pub(super) struct Target {
    address: SocketAddr,
    pub(super) http2: bool,
    request: Request<Empty<Bytes>>,
}

impl Target {
    pub(super) fn new(options: &Options) -> Result<Self> {
        let address = options.destination()?;
        let http2 = match options.get("version", 1)? {
            1 => false,
            2 => true,
            other => bail!("version={other}: 1 or 2"),
        };
        let path: String = options.get("path", "/".to_owned())?;
        let tier: String = options.get("tier", "gold".to_owned())?;
        let request = Request::builder().header("x-tier", tier);
        let request = if http2 {
            request.uri(format!("http://{address}{path}"))
        } else {
            request.uri(path).header("host", address.to_string())
        };
        Ok(Self {
            address,
            http2,
            request: request.body(Empty::new())?,
        })
    }
}

#[derive(Clone)]
enum Sender {
    // One stream at a time: whoever has it, has it alone.
    One(std::rc::Rc<tokio::sync::Mutex<http1::SendRequest<Empty<Bytes>>>>),
    Many(http2::SendRequest<Empty<Bytes>>),
}

pub(super) struct Client {
    target: std::rc::Rc<Target>,
    sender: RefCell<Sender>,
}

impl Client {
    pub(super) async fn connect(target: &std::rc::Rc<Target>) -> Result<Self> {
        Ok(Self {
            target: std::rc::Rc::clone(target),
            sender: RefCell::new(open(target).await?),
        })
    }

    /// Requests until the clock says that it is over.
    pub(super) async fn work(&self, clock: &Clock) {
        while let Some(due) = clock.next().await {
            let outcome = self.once().await;
            let failed = outcome.is_err();
            clock.done(due, outcome.err().map(|error| format!("{error:#}")));
            if failed && let Ok(sender) = open(&self.target).await {
                *self.sender.borrow_mut() = sender;
            }
        }
    }

    async fn once(&self) -> Result<()> {
        let request = self.target.request.clone();
        let sender = self.sender.borrow().clone();
        let mut body = match sender {
            Sender::One(sender) => {
                let mut sender = sender.lock().await;
                sender.ready().await?;
                let response = sender.send_request(request).await?;
                ensure!(response.status() == 200, "status {}", response.status());
                response.into_body()
            }
            Sender::Many(mut sender) => {
                sender.ready().await?;
                let response = sender.send_request(request).await?;
                ensure!(response.status() == 200, "status {}", response.status());
                response.into_body()
            }
        };
        while let Some(frame) = body.frame().await {
            frame.context("in the body")?;
        }
        Ok(())
    }
}

async fn open(target: &Target) -> Result<Sender> {
    let stream = TcpStream::connect(target.address).await?;
    stream.set_nodelay(true)?;
    let io = TokioIo::new(stream);
    if target.http2 {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .handshake(io)
            .await?;
        tokio::task::spawn_local(connection);
        return Ok(Sender::Many(sender));
    }
    let (sender, connection) = http1::handshake(io).await?;
    tokio::task::spawn_local(connection);
    let sender = tokio::sync::Mutex::new(sender);
    Ok(Sender::One(std::rc::Rc::new(sender)))
}
