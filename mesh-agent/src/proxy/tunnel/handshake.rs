//! The TLS handshake: rustls does it, over buffers of ours, and hands over the keys when it is done.

use std::{io, sync::Arc};

use rustls::{
    CommonState, ExtractedSecrets,
    client::{ClientConnectionData, UnbufferedClientConnection},
    kernel::KernelConnection,
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, InsufficientSizeError, UnbufferedStatus},
};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::io::TlsIo;
use crate::{identity::handshake_cause, telemetry::Reason};

/// The one protocol that is spoken inside.
const ALPN: &[u8] = b"h2";
/// Bytes that are read at once.
const READ: usize = 8 * 1024;
/// Most that a peer may send before its handshake is over: certificates, and what it says right behind it.
const MAX_INCOMING: usize = 256 * 1024;

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    #[error("{0}")]
    Tls(#[from] rustls::Error),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the peer closed the connection in the handshake")]
    Closed,
    #[error("the peer does not offer HTTP/2 (ALPN h2)")]
    NoH2,
    #[error("the peer's handshake is too long")]
    TooLong,
}

impl TlsError {
    pub(super) fn reason(&self) -> Reason {
        match self.cause() {
            "revoked" => Reason::CertificateRevoked,
            _ => Reason::TlsFailed,
        }
    }

    /// Label of the metric.
    pub(super) fn cause(&self) -> &'static str {
        match self {
            Self::Tls(error) => handshake_cause(error),
            Self::Io(_) | Self::Closed => "closed",
            Self::NoH2 => "alpn",
            Self::TooLong => "protocol",
        }
    }
}

/// What is left of rustls when the handshake is done: it derives keys and takes session tickets.
pub(super) enum Kernel {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

/// Handshake as client. With the connection what the server showed of itself.
pub(super) async fn connect(
    config: Arc<rustls::ClientConfig>,
    stream: TcpStream,
    name: ServerName<'static>,
) -> Result<(TlsIo, Vec<CertificateDer<'static>>), TlsError> {
    run(UnbufferedClientConnection::new(config, name)?, stream).await
}

/// Handshake as server. With the connection what the client showed of itself.
pub(super) async fn accept(
    config: Arc<rustls::ServerConfig>,
    stream: TcpStream,
) -> Result<(TlsIo, Vec<CertificateDer<'static>>), TlsError> {
    run(UnbufferedServerConnection::new(config)?, stream).await
}

/// What client and server have in common.
trait Side: Send {
    type Data;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data>;

    fn common(&self) -> &CommonState;

    fn into_kernel(self) -> Result<(ExtractedSecrets, Kernel), rustls::Error>;
}

impl Side for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn common(&self) -> &CommonState {
        self
    }

    fn into_kernel(self) -> Result<(ExtractedSecrets, Kernel), rustls::Error> {
        let (secrets, kernel) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, Kernel::Client(kernel)))
    }
}

impl Side for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn common(&self) -> &CommonState {
        self
    }

    fn into_kernel(self) -> Result<(ExtractedSecrets, Kernel), rustls::Error> {
        let (secrets, kernel) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, Kernel::Server(kernel)))
    }
}

/// What to do next.
enum Next {
    Again,
    Send,
    Receive,
    Done,
    Closed,
}

/// Bytes on their way.
#[derive(Default)]
struct Buffers {
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    /// What the peer sent behind its handshake and rustls has opened already.
    early: Vec<u8>,
}

async fn run<S: Side>(
    mut side: S,
    mut stream: TcpStream,
) -> Result<(TlsIo, Vec<CertificateDer<'static>>), TlsError> {
    let mut buffers = Buffers::default();
    loop {
        match step(&mut side, &mut buffers) {
            Ok(Next::Again) => {}
            Ok(Next::Send) => send(&mut stream, &mut buffers).await?,
            Ok(Next::Receive) => {
                send(&mut stream, &mut buffers).await?;
                receive(&mut stream, &mut buffers).await?;
            }
            Ok(Next::Done) => break,
            Ok(Next::Closed) => return Err(TlsError::Closed),
            Err(error) => {
                // The alert that says so, if rustls has one.
                for _ in 0..4 {
                    let _ = step(&mut side, &mut buffers);
                }
                let _ = send(&mut stream, &mut buffers).await;
                return Err(error.into());
            }
        }
    }
    send(&mut stream, &mut buffers).await?;
    if side.common().alpn_protocol() != Some(ALPN) {
        return Err(TlsError::NoH2);
    }
    let chain = side.common().peer_certificates().unwrap_or_default();
    let chain = chain.iter().map(|c| c.clone().into_owned()).collect();
    let (secrets, kernel) = side.into_kernel()?;
    let io = TlsIo::new(stream, &secrets, kernel, &buffers.incoming, buffers.early);
    let io = io.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok((io, chain))
}

fn step<S: Side>(side: &mut S, buffers: &mut Buffers) -> Result<Next, rustls::Error> {
    let Buffers {
        incoming,
        outgoing,
        early,
    } = buffers;
    let UnbufferedStatus { discard, state } = side.process(incoming);
    let mut more = 0;
    let next = match state {
        Ok(ConnectionState::EncodeTlsData(mut data)) => {
            let at = outgoing.len();
            outgoing.resize(at + READ, 0);
            let encoded = match data.encode(&mut outgoing[at..]) {
                Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => {
                    outgoing.resize(at + required_size, 0);
                    data.encode(&mut outgoing[at..])
                }
                encoded => encoded,
            };
            outgoing.truncate(at + encoded.as_ref().copied().unwrap_or_default());
            match encoded {
                Ok(_) => Ok(Next::Again),
                Err(_) => Err(rustls::Error::EncryptError),
            }
        }
        // It leaves with the next send, before anything else is waited for.
        Ok(ConnectionState::TransmitTlsData(data)) => {
            data.done();
            Ok(Next::Send)
        }
        Ok(ConnectionState::BlockedHandshake) => Ok(Next::Receive),
        Ok(ConnectionState::WriteTraffic(_)) => Ok(Next::Done),
        Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
            match traffic.next_record() {
                None => break Ok(Next::Again),
                Some(Ok(record)) => {
                    more += record.discard;
                    early.extend_from_slice(record.payload);
                }
                Some(Err(error)) => break Err(error),
            }
        },
        Ok(_) => Ok(Next::Closed),
        Err(error) => Err(error),
    };
    incoming.drain(..discard + more);
    next
}

async fn send(stream: &mut TcpStream, buffers: &mut Buffers) -> io::Result<()> {
    if !buffers.outgoing.is_empty() {
        stream.write_all(&buffers.outgoing).await?;
        buffers.outgoing.clear();
    }
    Ok(())
}

async fn receive(stream: &mut TcpStream, buffers: &mut Buffers) -> Result<(), TlsError> {
    let incoming = &mut buffers.incoming;
    if incoming.len() + buffers.early.len() > MAX_INCOMING {
        return Err(TlsError::TooLong);
    }
    incoming.reserve(READ);
    match stream.read_buf(incoming).await? {
        0 => Err(TlsError::Closed),
        _ => Ok(()),
    }
}
