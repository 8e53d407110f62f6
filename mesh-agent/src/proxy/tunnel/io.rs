//! TLS over TCP, as the two ends of a tunnel use it.

use std::{io, sync::Arc};

use rustls::CommonState;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::{identity::handshake_cause, telemetry::Reason};

pub(super) type TlsIo = TlsStream<TcpStream>;

/// The one protocol that is spoken inside.
const ALPN: &[u8] = b"h2";

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    #[error("TLS handshake: {0}")]
    Handshake(#[from] io::Error),
    #[error("the peer does not offer HTTP/2 (ALPN h2)")]
    NoH2,
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
            Self::NoH2 => "alpn",
            Self::Handshake(_) => self.tls().map_or("closed", handshake_cause),
        }
    }

    fn tls(&self) -> Option<&rustls::Error> {
        match self {
            Self::Handshake(error) => error.get_ref()?.downcast_ref(),
            Self::NoH2 => None,
        }
    }
}

/// Handshake as client.
pub(super) async fn connect(
    config: Arc<rustls::ClientConfig>,
    stream: TcpStream,
    name: ServerName<'static>,
) -> Result<TlsIo, TlsError> {
    let stream = TlsConnector::from(config).connect(name, stream).await?;
    checked(stream.into())
}

/// Handshake as server.
pub(super) async fn accept(
    config: Arc<rustls::ServerConfig>,
    stream: TcpStream,
) -> Result<TlsIo, TlsError> {
    checked(TlsAcceptor::from(config).accept(stream).await?.into())
}

fn checked(stream: TlsIo) -> Result<TlsIo, TlsError> {
    if state(&stream).alpn_protocol() == Some(ALPN) {
        Ok(stream)
    } else {
        Err(TlsError::NoH2)
    }
}

/// What the peer showed of itself.
pub(super) fn chain(stream: &TlsIo) -> Vec<CertificateDer<'static>> {
    let chain = state(stream).peer_certificates().unwrap_or_default();
    chain.iter().map(|c| c.clone().into_owned()).collect()
}

fn state(stream: &TlsIo) -> &CommonState {
    stream.get_ref().1
}
