//! A tunnel that another agent dials: TLS, HTTP/2, and its streams handed to the workload one by one.

use std::{
    future::poll_fn,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::{Arc, Weak},
    task::Poll,
    time::SystemTime,
};

use bytes::Bytes;
use h2::{
    RecvStream,
    server::{Connection, SendResponse},
};
use http::{HeaderMap, Method, Request, Response, StatusCode, header::FORWARDED};
use mesh_common::{Direction, TUNNEL_PORT};
use rustls_pki_types::CertificateDer;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::{
    TunnelOptions, TunnelStream, credentials,
    handshake::accept,
    headers::{Baggage, Forwarded, TraceParent, client_of, parse_authority},
    io::{Outgoing, TlsIo},
    life::{self, Windows},
    link::{Idle, Link},
    pool::Handshake,
    stream::Stream,
};
use crate::{
    identity::{PeerIdentity, Role},
    proxy::{
        Shared,
        accept::{Accepted, local_address, meta},
        inbound,
        served::{Report, Served},
        socket::reset_on_close,
    },
    telemetry::{self, Reason},
};

/// Ports of the peer implementation's capture; nothing of ours listens there, but nobody has business there either.
const FOREIGN_CAPTURE_PORTS: [u16; 2] = [15001, 15006];
/// Streams that one tunnel may have open.
const MAX_STREAMS: u32 = 200;
/// Streams that we have reset, or the peer before we looked at them, which are remembered; more of the peer's end the
/// tunnel (CVE-2023-44487).
const REMEMBERED_RESETS: usize = 50;
const PENDING_RESETS: usize = 50;
/// Streams that we reset because of what the peer did; more end the tunnel (CVE-2025-8671).
const ERROR_RESETS: usize = 1024;

/// Who is at the other end of an accepted tunnel.
#[derive(Debug)]
pub(in crate::proxy) struct TunnelPeer {
    pub(in crate::proxy) identity: Arc<PeerIdentity>,
    /// Where the tunnel came from: the source workload's address.
    pub(in crate::proxy) address: SocketAddr,
    /// Where it was dialled.
    pub(in crate::proxy) dialled: SocketAddr,
}

/// Serves one accepted tunnel to its end.
pub(in crate::proxy) async fn serve(shared: Arc<Shared>, served: Arc<Served>, accepted: Accepted) {
    let peer = accepted.peer;
    let dialled = local_address(&accepted.socket);
    if served.pod.is_self_test(peer, dialled) {
        return;
    }
    let refuse = |reason| {
        let meta = meta(&shared, &served, Direction::Inbound, peer, dialled, None, 0);
        Report::new(shared.telemetry.open(meta), Arc::clone(&served)).finish(reason);
    };
    let pool = shared.tunnels.pod(served.pod.cookie());
    let Some(handshake) = Handshake::admit(&shared.tunnels.accepted, &pool.accepting) else {
        reset_on_close(&accepted.socket);
        return refuse(Reason::HandshakeLimit);
    };
    let options = shared.tunnels.options;
    let deadline = Instant::now() + options.handshake_timeout;
    let made = timeout_at(
        deadline,
        Box::pin(make(&shared, &served, accepted, deadline)),
    )
    .await;
    drop(handshake);
    let Made {
        connection,
        outgoing,
        chain,
        ends,
        identity,
        windows,
    } = match made {
        Ok(Ok(made)) => made,
        Ok(Err(reason)) => return refuse(reason),
        Err(_) => {
            tracing::debug!(workload = %served.pod.name(), client = %peer, "a tunnel's handshake took too long");
            failed(&shared, "timeout");
            return refuse(Reason::TlsFailed);
        }
    };
    let driver = Driver {
        connection,
        outgoing,
        chain,
        ends,
        windows,
        link: shared.tunnels.inbound.link(),
        peer: Arc::new(TunnelPeer {
            identity: Arc::new(identity),
            address: peer,
            dialled,
        }),
    };
    driver.run(&shared, &served, &options).await;
}

/// What a handshake brings.
struct Made {
    connection: Connection<TlsIo, Bytes>,
    outgoing: Arc<Outgoing>,
    chain: Vec<CertificateDer<'static>>,
    /// When the first certificate does.
    ends: SystemTime,
    identity: PeerIdentity,
    windows: Windows,
}

async fn make(
    shared: &Shared,
    served: &Served,
    accepted: Accepted,
    deadline: Instant,
) -> Result<Made, Reason> {
    let client = accepted.peer;
    let workload = served.pod.name();
    let own = shared
        .catalog
        .load()
        .workload(workload)
        .map(|w| w.identity.clone());
    let own = own.ok_or(Reason::WorkloadGone)?;
    let stream = TcpStream::from_std(accepted.socket.into()).map_err(|error| {
        tracing::warn!(%workload, %error, "cannot register a connection");
        Reason::Internal
    })?;
    let credentials = shared.tunnels.credentials.as_ref();
    let tls = credentials.tls(&own, deadline).await?;
    let own_end = tls.ends();
    let begin = Instant::now();
    let (io, chain) = accept(tls.server, stream).await.map_err(|error| {
        tracing::debug!(%workload, %client, cause = error.cause(), %error, "no TLS with a client");
        failed(shared, error.cause());
        error.reason()
    })?;
    // A resumed session verified nothing.
    let identity = credentials.verify(&chain, Role::Client).map_err(|refused| {
        tracing::warn!(%workload, %client, cause = refused.cause(), error = %refused, "a client is refused");
        failed(shared, refused.cause());
        credentials::reason(&refused)
    })?;
    let telemetry = &shared.telemetry;
    telemetry.handshake_done(telemetry::Role::Server, begin.elapsed());
    let outgoing = io.outgoing();
    let window = Windows::initial();
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(window)
        .initial_connection_window_size(life::TUNNEL_WINDOW)
        .max_frame_size(life::MAX_FRAME)
        .max_header_list_size(64 << 10)
        .max_concurrent_streams(MAX_STREAMS)
        .max_send_buffer_size(life::SEND_BUFFER)
        .data_frame_budget(life::SMALL_FRAMES)
        .max_concurrent_reset_streams(REMEMBERED_RESETS)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(Some(ERROR_RESETS));
    let connection = builder.handshake(io).await.map_err(|error| {
        tracing::debug!(%workload, %client, %error, "no HTTP/2 with a client");
        Reason::TunnelProtocol
    })?;
    Ok(Made {
        connection,
        outgoing,
        chain,
        ends: life::first_end(&identity, own_end),
        identity,
        windows: Windows::new(window),
    })
}

fn failed(shared: &Shared, cause: &'static str) {
    shared
        .telemetry
        .handshake_failed(telemetry::Role::Server, cause);
}

struct Driver {
    connection: Connection<TlsIo, Bytes>,
    outgoing: Arc<Outgoing>,
    chain: Vec<CertificateDer<'static>>,
    ends: SystemTime,
    windows: Windows,
    link: Arc<Link>,
    peer: Arc<TunnelPeer>,
}

impl Driver {
    async fn run(self, shared: &Arc<Shared>, served: &Arc<Served>, options: &TunnelOptions) {
        let Self {
            mut connection,
            outgoing,
            chain,
            ends,
            mut windows,
            link,
            peer,
        } = self;
        let ping = connection.ping_pong();
        let retire = Arc::new(tokio::sync::Notify::new());
        outgoing.drive();
        let mut heart = pin!(life::beat(ping, options, &outgoing));
        let credentials = shared.tunnels.credentials.as_ref();
        let mut distrust = pin!(life::distrust(
            credentials,
            &chain,
            Role::Client,
            ends,
            |refused| {
                tracing::info!(client = %peer.address, error = %refused, "no new connections on a tunnel");
                retire.notify_one();
            }
        ));
        let mut draining = served.draining();
        let mut draining = pin!(draining.wait_for(|draining| *draining));
        let mut drains = false;
        // When a peer has had time enough to hear that nothing new is taken. One that is deaf to it gets nothing all the
        // same: its certificate may have ended, and HTTP/2 goes on until the peer confirms.
        let mut deaf: Option<Instant> = None;
        let heard = options.ping_timeout;
        let mut idle = Idle::new(options.idle_timeout);
        let mut tick = life::tick(options);
        loop {
            tokio::select! {
                biased;
                stream = poll_fn(|cx| {
                    let stream = connection.poll_accept(cx);
                    // What all streams had to say leaves together. Its failure is the connection's next.
                    match outgoing.poll_flush(cx) {
                        Poll::Ready(Err(error)) => Poll::Ready(Some(Err(error.to_string()))),
                        _ => stream.map_err(|error| error.to_string()),
                    }
                }) => match stream {
                    Some(Ok((_, mut respond))) if deaf.is_some_and(|at| at <= Instant::now()) => {
                        respond.send_reset(h2::Reason::REFUSED_STREAM);
                    }
                    Some(Ok((request, respond))) => {
                        take(shared, served, Incoming::new(request, respond, &peer, &link));
                    }
                    Some(Err(error)) => {
                        tracing::debug!(client = %peer.address, %error, "a tunnel broke");
                        break;
                    }
                    None => break,
                },
                () = link.stir.notified() => {}
                () = &mut heart => {
                    tracing::info!(client = %peer.address, "the other agent of a tunnel does not answer any more");
                    break;
                }
                refused = &mut distrust => {
                    tracing::warn!(client = %peer.address, error = %refused, "a tunnel is cut");
                    link.cut(Reason::CertificateRevoked);
                    break;
                }
                () = retire.notified() => {
                    deaf.get_or_insert(Instant::now() + heard);
                    connection.graceful_shutdown();
                }
                _ = &mut draining, if !drains => {
                    drains = true;
                    deaf.get_or_insert(Instant::now() + heard);
                    connection.graceful_shutdown();
                }
                _ = tick.tick() => {
                    if idle.is_over(&link) {
                        connection.graceful_shutdown();
                    }
                }
            }
            windows.adjust(link.streams(), |window| {
                connection.set_initial_window_size(window)
            });
        }
    }
}

/// Makes a stream a connection of the workload.
fn take(shared: &Arc<Shared>, served: &Arc<Served>, incoming: Incoming) {
    // What the peer says of the source and of the trace is for whoever searches both agents' logs, and for nothing else.
    tracing::debug!(
        workload = %served.pod.name(), client = %incoming.peer.address, authority = %incoming.authority,
        trace = ?incoming.header("traceparent").and_then(TraceParent::parse).map(TraceParent::format),
        source = ?incoming.header("baggage").map(Baggage::parse),
        "a connection on a tunnel"
    );
    if !shared.limits.admit(&served.share) {
        let peer = incoming.peer.address;
        let meta = meta(
            shared,
            served,
            Direction::Inbound,
            peer,
            incoming.peer.dialled,
            None,
            0,
        );
        Report::new(shared.telemetry.open(meta), Arc::clone(served)).finish(Reason::AgentLimit);
        return incoming.refuse(StatusCode::SERVICE_UNAVAILABLE);
    }
    let (s, w) = (Arc::clone(shared), Arc::clone(served));
    served.spawn(shared, |id| inbound::serve_stream(s, w, incoming, id));
}

/// A connection that the peer asks for. Dropped without an answer, it is reset.
pub(in crate::proxy) struct Incoming {
    method: Method,
    authority: String,
    headers: HeaderMap,
    recv: Option<RecvStream>,
    respond: SendResponse<Bytes>,
    pub(in crate::proxy) peer: Arc<TunnelPeer>,
    link: Arc<Link>,
    held: bool,
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if self.held {
            self.respond.send_reset(h2::Reason::CONNECT_ERROR);
            self.link.remove_stream();
        }
    }
}

impl Incoming {
    fn new(
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
        peer: &Arc<TunnelPeer>,
        link: &Arc<Link>,
    ) -> Self {
        let (head, recv) = request.into_parts();
        link.add_stream();
        Self {
            method: head.method,
            authority: head
                .uri
                .authority()
                .map(ToString::to_string)
                .unwrap_or_default(),
            headers: head.headers,
            recv: Some(recv),
            respond,
            peer: Arc::clone(peer),
            link: Arc::clone(link),
            held: true,
        }
    }

    /// Where it is to go: an address and port of the workload that was dialled. Else the answer to give.
    pub(in crate::proxy) fn destination(&self) -> Result<SocketAddr, StatusCode> {
        destination(&self.method, &self.authority, self.peer.dialled.ip()).ok_or_else(|| {
            tracing::debug!(client = %self.peer.address, method = %self.method, authority = %self.authority,
                "a request on a tunnel is refused");
            StatusCode::BAD_REQUEST
        })
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.get(name).map(|value| value.as_bytes())
    }

    /// The client that the application is to see.
    pub(in crate::proxy) fn client(&self) -> SocketAddr {
        client_of(self.peer.address, self.header(FORWARDED.as_str()))
    }

    /// Host of the service that was dialled, as the peer says.
    pub(in crate::proxy) fn service(&self) -> Option<String> {
        self.header(FORWARDED.as_str())
            .and_then(|value| Forwarded::parse(value).host)
    }

    /// Resolves when the peer has given the connection up.
    pub(in crate::proxy) async fn given_up(&mut self) {
        // An error is an end too.
        let _ = std::future::poll_fn(|cx| self.respond.poll_reset(cx)).await;
    }

    /// Answers that there is no connection.
    pub(in crate::proxy) fn refuse(mut self, status: StatusCode) {
        let mut response = Response::new(());
        *response.status_mut() = status;
        if self.respond.send_response(response, true).is_ok() {
            self.held = false;
            self.link.remove_stream();
        }
    }

    /// Answers that there is one. `None`: the peer has given it up.
    pub(in crate::proxy) fn accept(mut self, baggage: &str) -> Option<TunnelStream> {
        let mut response = Response::new(());
        if let Ok(value) = baggage.parse()
            && !baggage.is_empty()
        {
            response.headers_mut().insert("baggage", value);
        }
        let recv = self.recv.take()?;
        let send = self.respond.send_response(response, false).ok()?;
        // The stream gives the place back.
        self.held = false;
        Some(TunnelStream {
            stream: Stream::new(send, recv, Arc::clone(&self.link)),
            probe: Weak::new(),
        })
    }
}

/// Where a request may go.
fn destination(method: &Method, authority: &str, dialled: IpAddr) -> Option<SocketAddr> {
    let destination = parse_authority(authority)?;
    (*method == Method::CONNECT
        && destination.ip() == dialled
        && !is_agent_port(destination.port()))
    .then_some(destination)
}

/// Ports that are of the mesh, on any workload's address. The capture range and the port of the self-test are not among
/// them: those are virtual, and an application may listen there.
fn is_agent_port(port: u16) -> bool {
    port == TUNNEL_PORT || FOREIGN_CAPTURE_PORTS.contains(&port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_dialled_address_and_only_ports_of_applications() {
        let dialled: IpAddr = "10.1.0.1".parse().unwrap();
        for (method, authority, good) in [
            (Method::CONNECT, "10.1.0.1:80", true),
            (Method::CONNECT, "10.1.0.1:16200", true),
            (Method::GET, "10.1.0.1:80", false),
            (Method::CONNECT, "10.1.0.2:80", false),
            (Method::CONNECT, "127.0.0.1:80", false),
            (Method::CONNECT, "web:80", false),
            (Method::CONNECT, "", false),
            (Method::CONNECT, "10.1.0.1:15001", false),
            (Method::CONNECT, "10.1.0.1:15006", false),
            (Method::CONNECT, "10.1.0.1:15008", false),
            (Method::CONNECT, "10.1.0.1:15009", true),
            (Method::CONNECT, "10.1.0.1:15100", true),
            (Method::CONNECT, "[::ffff:10.1.0.1]:80", false),
        ] {
            let found = destination(&method, authority, dialled);
            assert_eq!(found.is_some(), good, "{method} {authority}");
        }
    }
}
