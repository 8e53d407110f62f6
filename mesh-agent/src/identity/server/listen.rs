//! The port: accepting, TLS with a deadline, and stopping without losing an answer.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use futures::stream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
    time::Instant,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::transport::{Server, server::Connected};

use super::{
    authn::NodeAuthenticator,
    placement::Placements,
    registration::{Limit, Registration},
    service::{CertificateService, Peer},
    sources::{Place, Sources},
    state::{State, StateError},
    tls::{Names, PortCertificate},
};
use crate::{catalog::Catalog, model::TrustDomain};

/// Connections at once. An agent has one.
const MAX_CONNECTIONS: usize = 4096;
/// Handshakes under way at once; further connections wait to be accepted.
const MAX_HANDSHAKES: usize = 1024;
const HANDSHAKE: Duration = Duration::from_secs(10);
/// For a request with all that it waits for.
const REQUEST: Duration = Duration::from_secs(10);
/// Requests of one connection at once.
const MAX_STREAMS: u32 = 128;
/// An idle peer is asked for a sign of life this often, and given this long.
const ALIVE: Duration = Duration::from_secs(30);
/// How often files are looked at when nobody asks for anything.
const LOOK: Duration = Duration::from_secs(1);
/// Requests that are under way at a stop may take this long.
const DRAIN: Duration = Duration::from_secs(5);
/// Pause after the kernel could not give a connection.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error("{0}")]
    Start(String),
    #[error("cannot listen on {0}: {1}")]
    Bind(SocketAddr, io::Error),
    #[error("the port fails: {0}")]
    Serve(String),
}

#[derive(Clone, Debug)]
pub struct CaServerOptions {
    pub listen: SocketAddr,
    /// Names in the certificate of the port.
    pub dns_names: Vec<String>,
    pub ips: Vec<IpAddr>,
    /// No certificate lives longer.
    pub ttl_max: Duration,
    /// Only identities of this trust domain; `None`: what the configuration says.
    pub trust_domain: Option<TrustDomain>,
}

/// A server that listens already.
pub struct CaServer {
    listener: TcpListener,
    registration: Arc<Registration>,
    certificate: Arc<PortCertificate>,
    /// To say where it is.
    bundle: PathBuf,
}

impl std::fmt::Debug for CaServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("CaServer")
            .field(&self.listener.local_addr().ok())
            .finish()
    }
}

impl CaServer {
    /// Makes the authority if there is none yet, and listens.
    ///
    /// # Errors
    /// What is in the folder cannot be used, or the address is taken.
    pub async fn bind(
        state: &State,
        authenticator: Arc<dyn NodeAuthenticator>,
        catalog: Arc<Catalog>,
        options: CaServerOptions,
    ) -> Result<Self, ServeError> {
        state.ensure_authority()?;
        let limit = Limit {
            ttl_max: options.ttl_max,
            trust_domain: options.trust_domain,
        };
        let registration = Registration::new(
            authenticator,
            Placements::new(catalog),
            state.dir().to_owned(),
            limit,
        )
        .map_err(ServeError::Start)?;
        let names = Names {
            dns: options.dns_names,
            ips: options.ips,
        };
        let certificate = PortCertificate::new(names, &registration.authority(), SystemTime::now())
            .map_err(|error| ServeError::Start(format!("no certificate for the port: {error}")))?;
        let listener = TcpListener::bind(options.listen)
            .await
            .map_err(|error| ServeError::Bind(options.listen, error))?;
        Ok(Self {
            listener,
            registration: Arc::new(registration),
            certificate,
            bundle: state.bundle_file(),
        })
    }

    /// # Errors
    /// The socket is gone.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` is ready; requests that are under way then are answered.
    ///
    /// # Errors
    /// The port fails.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), ServeError> {
        let config = self.certificate.config().map_err(ServeError::Start)?;
        tracing::info!(
            address = %self.address().map_err(|e| ServeError::Serve(e.to_string()))?,
            roots = %self.bundle.display(),
            "signing certificates"
        );
        let (ready, mut connections) = mpsc::channel(1);
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(self.listener, TlsAcceptor::from(config), ready));
        tasks.spawn(upkeep(Arc::clone(&self.registration), self.certificate));

        let incoming = stream::poll_fn(move |cx| connections.poll_recv(cx));
        let incoming = futures::StreamExt::map(incoming, Ok::<_, io::Error>);
        let (stopping, stopped) = tokio::sync::oneshot::channel::<()>();
        let serving = Server::builder()
            .timeout(REQUEST)
            .max_concurrent_streams(MAX_STREAMS)
            .http2_keepalive_interval(Some(ALIVE))
            .http2_keepalive_timeout(Some(ALIVE))
            .http2_max_header_list_size(16 * 1024)
            .add_service(CertificateService::new(self.registration))
            .serve_with_incoming_shutdown(incoming, async {
                let _ = stopped.await;
            });
        tokio::pin!(serving);
        let result = tokio::select! {
            result = &mut serving => result,
            () = stop => {
                tracing::info!("stopping: no new connections, requests under way are answered");
                let _ = stopping.send(());
                // A connection that does not end is not waited for.
                tokio::time::timeout(DRAIN, serving).await.unwrap_or(Ok(()))
            }
        };
        tasks.shutdown().await;
        result.map_err(|error| ServeError::Serve(error.to_string()))
    }
}

/// Accepts, and shakes hands on tasks of their own: one slow peer holds up nobody.
async fn accept(listener: TcpListener, acceptor: TlsAcceptor, ready: mpsc::Sender<Connection>) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    let sources = Sources::default();
    let mut tasks = JoinSet::new();
    loop {
        let (Ok(connection), Ok(handshake)) = (
            Arc::clone(&connections).acquire_owned().await,
            Arc::clone(&handshakes).acquire_owned().await,
        ) else {
            return;
        };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        while tasks.try_join_next().is_some() {}
        let Some(place) = sources.take(peer.ip()) else {
            tracing::debug!(%peer, "closed: too many connections from there");
            continue;
        };
        let (acceptor, ready) = (acceptor.clone(), ready.clone());
        tasks.spawn(async move {
            let _handshake = handshake;
            let _ = stream.set_nodelay(true);
            match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => {
                    let connection = Connection {
                        stream,
                        peer: Peer(peer),
                        _place: place,
                        _permit: connection,
                    };
                    let _ = ready.send(connection).await;
                }
                Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
                Err(_) => tracing::debug!(%peer, "TLS handshake not done within {HANDSHAKE:?}"),
            }
        });
    }
}

/// Takes up changes of the folder, and keeps the port's certificate fresh.
async fn upkeep(registration: Arc<Registration>, certificate: Arc<PortCertificate>) {
    let (mut serving, mut made) = (registration.authority(), Instant::now());
    loop {
        tokio::time::sleep(LOOK).await;
        let look = Arc::clone(&registration);
        let Ok(authority) = tokio::task::spawn_blocking(move || look.authority()).await else {
            continue;
        };
        let changed = !Arc::ptr_eq(&authority, &serving);
        if !changed && made.elapsed() < PortCertificate::renew_every() {
            continue;
        }
        match certificate.renew(&authority, SystemTime::now()) {
            Ok(()) => {
                if changed {
                    let is = &authority.generations;
                    tracing::info!(
                        signs = is.current,
                        next = is.next.as_deref().unwrap_or_default(),
                        previous = is.previous.as_deref().unwrap_or_default(),
                        "roots in effect"
                    );
                }
                (serving, made) = (authority, Instant::now());
            }
            Err(error) => tracing::error!("no new certificate for the port: {error}"),
        }
    }
}

/// A connection after its handshake; gives its place back when it ends.
struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    _place: Place,
    _permit: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
