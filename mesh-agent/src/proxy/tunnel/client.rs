//! A tunnel that we dial: made, driven to its end, and streams opened on it.

use std::{
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicU8, Ordering},
    },
    task::Poll,
    time::SystemTime,
};

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use http::{Method, Request, StatusCode, header::FORWARDED};
use rustix::io::Errno;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::{Instant, timeout_at},
};

use super::{
    Credentials, TunnelOptions, TunnelRequest, TunnelStream, credentials,
    handshake::connect,
    headers::{Forwarded, TraceParent},
    io::{Outgoing, TlsIo},
    life::{self, Windows},
    link::{Idle, Link, Links},
    stream::Stream,
};
use crate::{
    identity::Role,
    model::SpiffeId,
    proxy::{connect as plain, socket::Keepalive},
    telemetry::{self, Reason, Telemetry},
};

/// A tunnel that stands.
pub(super) struct Made {
    pub(super) client: Client,
    pub(super) driver: Driver,
}

/// Opens streams on it. As long as there is one of these the tunnel stays.
#[derive(Debug)]
pub(super) struct Client {
    requests: SendRequest<Bytes>,
    pub(super) link: Arc<Link>,
    probe: Weak<TcpStream>,
    max_streams: usize,
}

/// Its task's part.
pub(super) struct Driver {
    connection: Connection<TlsIo, Bytes>,
    outgoing: Arc<Outgoing>,
    chain: Vec<CertificateDer<'static>>,
    /// When the first certificate does.
    ends: SystemTime,
    link: Arc<Link>,
    windows: Windows,
}

/// How far making a tunnel got, for those whose deadline ends while it does.
#[derive(Debug, Default)]
pub(super) struct Stage(AtomicU8);

impl Stage {
    fn set(&self, reason: Reason) {
        let stage = match reason {
            Reason::TlsFailed => 1,
            Reason::TunnelProtocol => 2,
            Reason::NoCertificate => 3,
            _ => 0,
        };
        self.0.store(stage, Ordering::Relaxed);
    }

    /// What to blame.
    pub(super) fn blame(&self) -> Reason {
        match self.0.load(Ordering::Relaxed) {
            0 => Reason::TunnelUnreachable,
            1 => Reason::TlsFailed,
            2 => Reason::TunnelProtocol,
            _ => Reason::NoCertificate,
        }
    }
}

/// What a tunnel is made for.
pub(super) struct Target {
    pub(super) source: SpiffeId,
    pub(super) peer: SocketAddr,
    pub(super) expected: SpiffeId,
}

/// What making one needs.
pub(super) struct Maker<'a> {
    pub(super) credentials: &'a dyn Credentials,
    pub(super) telemetry: &'a Telemetry,
    pub(super) options: &'a TunnelOptions,
    pub(super) keepalive: &'a Keepalive,
    pub(super) links: &'a Links,
    pub(super) stage: &'a Stage,
}

impl Maker<'_> {
    /// Connects a prepared socket of the source pod and makes a tunnel of it, all of it before a deadline.
    pub(super) async fn make(
        &self,
        socket: socket2::Socket,
        target: &Target,
    ) -> Result<Made, Reason> {
        let deadline = Instant::now() + self.options.handshake_timeout;
        timeout_at(deadline, self.steps(socket, target, deadline))
            .await
            .unwrap_or_else(|_| {
                let reason = self.stage.blame();
                if reason == Reason::TlsFailed {
                    self.failed("timeout");
                }
                Err(reason)
            })
    }

    async fn steps(
        &self,
        socket: socket2::Socket,
        target: &Target,
        deadline: Instant,
    ) -> Result<Made, Reason> {
        let peer = target.peer;
        // Waiting for the first certificate may take all the time there is.
        self.stage.set(Reason::NoCertificate);
        let tls = self.credentials.tls(&target.source, deadline).await?;
        self.stage.set(Reason::TunnelUnreachable);
        let stream = dial(socket, peer, self.keepalive).await.map_err(|error| {
            tracing::debug!(%peer, %error, "cannot reach the tunnel port");
            match plain::reason(&error) {
                reason @ (Reason::NoDescriptors | Reason::WorkloadGone) => reason,
                _ => Reason::TunnelUnreachable,
            }
        })?;
        self.stage.set(Reason::TlsFailed);
        let begin = Instant::now();
        let name = ServerName::IpAddress(peer.ip().into());
        let connecting = connect(Arc::clone(&tls.client), stream, name.clone());
        let (io, chain) = connecting.await.map_err(|error| {
            tracing::warn!(%peer, cause = error.cause(), %error, "no TLS with the other agent");
            self.failed(error.cause());
            error.reason()
        })?;
        // A resumed session verified nothing, and whom the chain is for was not looked at yet.
        let verified = self.credentials.verify(&chain, Role::Server);
        let found = verified.map_err(|refused| {
            tracing::warn!(%peer, cause = refused.cause(), error = %refused, "the other agent is refused");
            tls.forget(&name);
            self.failed(refused.cause());
            credentials::reason(&refused)
        })?;
        if !found.is(&target.expected) {
            tracing::warn!(%peer, expected = %target.expected, found = ?found.ids,
                "the other agent shows another identity than the one dialled");
            tls.forget(&name);
            self.failed("other_identity");
            return Err(Reason::PeerIdentity);
        }
        self.telemetry
            .handshake_done(telemetry::Role::Client, begin.elapsed());
        let ends = life::first_end(&found, tls.ends());
        self.http(io, chain, ends, peer).await
    }

    async fn http(
        &self,
        io: TlsIo,
        chain: Vec<CertificateDer<'static>>,
        ends: SystemTime,
        peer: SocketAddr,
    ) -> Result<Made, Reason> {
        let options = self.options;
        self.stage.set(Reason::TunnelProtocol);
        let (outgoing, probe) = (io.outgoing(), io.probe());
        let window = Windows::initial();
        let handshake = h2::client::Builder::new()
            .initial_window_size(window)
            .initial_connection_window_size(life::TUNNEL_WINDOW)
            .max_frame_size(life::MAX_FRAME)
            .max_header_list_size(16 << 10)
            .max_send_buffer_size(life::SEND_BUFFER)
            .data_frame_budget(life::SMALL_FRAMES)
            .initial_max_send_streams(options.max_streams)
            .enable_push(false)
            .handshake(io);
        let (requests, connection) = handshake.await.map_err(|error| {
            tracing::debug!(%peer, %error, "no HTTP/2 with the other agent");
            Reason::TunnelProtocol
        })?;
        let link = self.links.link();
        Ok(Made {
            client: Client {
                requests,
                link: Arc::clone(&link),
                probe,
                max_streams: options.max_streams,
            },
            driver: Driver {
                connection,
                outgoing,
                chain,
                ends,
                link,
                windows: Windows::new(window),
            },
        })
    }

    fn failed(&self, cause: &'static str) {
        self.telemetry
            .handshake_failed(telemetry::Role::Client, cause);
    }
}

async fn dial(
    socket: socket2::Socket,
    peer: SocketAddr,
    keepalive: &Keepalive,
) -> io::Result<TcpStream> {
    keepalive.apply(&socket)?;
    TcpSocket::from_std_stream(socket.into())
        .connect(peer)
        .await
}

impl Driver {
    /// Runs the tunnel until it is closed or broken. `retire` is called when no new stream may be put on it, and when it
    /// has been idle: if it answers true then, nobody holds the [`Client`] any more and the tunnel closes by itself.
    pub(super) async fn run(
        self,
        credentials: &dyn Credentials,
        options: &TunnelOptions,
        retire: impl Fn(bool) -> bool,
    ) {
        let Self {
            mut connection,
            outgoing,
            chain,
            ends,
            link,
            mut windows,
        } = self;
        let ping = connection.ping_pong();
        outgoing.drive();
        let mut heart = pin!(life::beat(ping, options, &outgoing));
        let mut distrust = pin!(life::distrust(
            credentials,
            &chain,
            Role::Server,
            ends,
            |refused| {
                tracing::info!(error = %refused, "no new connections on a tunnel");
                retire(false);
            }
        ));
        let mut idle = Idle::new(options.idle_timeout);
        let mut tick = life::tick(options);
        loop {
            tokio::select! {
                biased;
                ended = poll_fn(|cx| {
                    let ended = std::pin::Pin::new(&mut connection).poll(cx);
                    // What all streams had to say leaves together. Its failure is the connection's next.
                    match outgoing.poll_flush(cx) {
                        Poll::Ready(Err(error)) => Poll::Ready(Err(error.to_string())),
                        _ => ended.map_err(|error| error.to_string()),
                    }
                }) => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a tunnel ended");
                    }
                    break;
                }
                () = link.stir.notified() => {}
                () = &mut heart => {
                    tracing::info!("the other agent of a tunnel does not answer any more");
                    link.cut(Reason::TunnelBroken);
                }
                refused = &mut distrust => {
                    tracing::warn!(error = %refused, "a tunnel is cut");
                    link.cut(Reason::CertificateRevoked);
                }
                _ = tick.tick() => {
                    if idle.is_over(&link) {
                        retire(true);
                    }
                }
            }
            if link.was_cut().is_some() {
                break;
            }
            windows.adjust(link.streams(), |window| {
                connection.set_initial_window_size(window)
            });
        }
        retire(false);
    }
}

/// Why a stream was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failed {
    /// The peer has not looked at it: another tunnel may do.
    Unprocessed,
    Reason(Reason),
}

/// A place for one stream. Given back when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    client: Arc<Client>,
    held: bool,
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.held {
            self.client.link.remove_stream();
        }
    }
}

impl Client {
    /// Takes a place for a stream, if one is left.
    pub(super) fn slot(self: &Arc<Self>) -> Option<Slot> {
        let limit = self
            .max_streams
            .min(self.requests.current_max_send_streams());
        if self.link.streams() >= limit {
            return None;
        }
        self.link.add_stream();
        Some(Slot {
            client: Arc::clone(self),
            held: true,
        })
    }
}

impl Slot {
    pub(super) fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// Asks the peer for the connection and waits for its answer.
    pub(super) async fn open(mut self, request: &TunnelRequest) -> Result<TunnelStream, Failed> {
        let connect = request_of(request).ok_or(Failed::Reason(Reason::Internal))?;
        let mut requests = self.client.requests.clone();
        let (response, send) = requests
            .send_request(connect, false)
            .map_err(|error| self.failed(&error))?;
        let response = response.await.map_err(|error| self.failed(&error))?;
        let (head, recv) = response.into_parts();
        match head.status {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED => return Err(Failed::Reason(Reason::DeniedByPeer)),
            StatusCode::SERVICE_UNAVAILABLE => {
                return Err(Failed::Reason(Reason::UnreachableByPeer));
            }
            status => {
                tracing::debug!(peer = %request.peer, authority = %request.authority, %status, "the other agent refused a connection");
                return Err(Failed::Reason(Reason::TunnelProtocol));
            }
        }
        // The stream gives the place back.
        self.held = false;
        Ok(TunnelStream {
            stream: Stream::new(send, recv, Arc::clone(&self.client.link)),
            probe: self.client.probe.clone(),
        })
    }

    fn failed(&self, error: &h2::Error) -> Failed {
        if let Some(reason) = self.client.link.was_cut() {
            return Failed::Reason(reason);
        }
        // A GOAWAY that leaves the stream out, a refusal, or a tunnel that was dead when we used it.
        let unprocessed = error.is_io()
            || (error.is_go_away() && error.is_remote())
            || (error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM));
        tracing::debug!(%error, unprocessed, "no stream on a tunnel");
        if unprocessed {
            Failed::Unprocessed
        } else if error.is_reset() {
            Failed::Reason(Reason::TunnelProtocol)
        } else {
            Failed::Reason(Reason::TunnelBroken)
        }
    }
}

/// The CONNECT request. `None` if something in it is no header, which configuration does not let through.
fn request_of(request: &TunnelRequest) -> Option<Request<()>> {
    let forwarded = Forwarded::format(request.client, request.service.as_deref());
    let mut builder = Request::builder()
        .method(Method::CONNECT)
        .uri(request.authority.to_string())
        .header(FORWARDED, forwarded)
        .header("traceparent", TraceParent::random().format());
    if !request.baggage.is_empty() {
        builder = builder.header("baggage", &request.baggage);
    }
    builder.body(()).ok()
}

/// What a socket that cannot be had means.
pub(super) fn no_socket(error: &io::Error) -> Reason {
    match Errno::from_io_error(error) {
        Some(Errno::ADDRNOTAVAIL) => Reason::TunnelUnreachable,
        _ => plain::reason(error),
    }
}
