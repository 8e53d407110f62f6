//! Connecting to the authority: TCP, then TLS 1.3 with roots from a file. tonic's own TLS would bring TLS 1.2 in.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use hyper_util::rt::TokioIo;
use rustls::{CertificateError, ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{codegen::Service, transport::Uri};

use super::IstioCaError;
use crate::identity::{provider, roots};

/// Where systems keep the roots that they trust: Debian, Red Hat, SUSE, Alpine.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Where the authority is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Host {
    /// Without brackets.
    name: String,
    port: u16,
}

impl Host {
    pub(super) fn parse(address: &str) -> Result<Self, IstioCaError> {
        let bad = || IstioCaError::Address(address.to_owned());
        let rest = address.strip_prefix("https://").unwrap_or(address);
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (name, port) = rest.rsplit_once(':').ok_or_else(bad)?;
        let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(bad)?;
        let name = match name.strip_prefix('[').and_then(|n| n.strip_suffix(']')) {
            Some(inner) => {
                inner.parse::<std::net::Ipv6Addr>().map_err(|_| bad())?;
                inner
            }
            None => name,
        };
        let host = Self {
            name: name.to_owned(),
            port,
        };
        if ServerName::try_from(name).is_err() || (name.contains(':') && !rest.starts_with('[')) {
            return Err(bad());
        }
        Ok(host)
    }

    pub(super) fn authority(&self) -> String {
        if self.name.contains(':') {
            format!("[{}]:{}", self.name, self.port)
        } else {
            format!("{}:{}", self.name, self.port)
        }
    }
}

/// Why there is no connection, and what to look at.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error(
        "its TLS certificate cannot be verified, because the roots in {file} cannot be used: {why}"
    )]
    Roots { file: String, why: String },
    #[error("{0}: is it running, and is the address right?")]
    Tcp(io::Error),
    #[error("no connection within {0:?}")]
    Late(Duration),
    #[error("its TLS certificate is not signed by a root in {0}: copy the authority's roots there")]
    UnknownRoot(String),
    #[error("its TLS certificate is not for {0}: connect to a name that it has")]
    WrongName(String),
    #[error(
        "its TLS certificate is not valid now: compare the clocks of this node and the authority"
    )]
    NotValid,
    #[error("TLS: {0}")]
    Tls(io::Error),
    #[error("it speaks TLS but not HTTP/2: what listens there is no certificate authority")]
    NotHttp2,
}

/// Makes connections for tonic.
#[derive(Clone, Debug)]
pub(super) struct Connector(Arc<Settings>);

#[derive(Debug)]
struct Settings {
    host: Host,
    server_name: ServerName<'static>,
    root_file: Option<PathBuf>,
    timeout: Duration,
}

impl Connector {
    pub(super) fn new(
        host: Host,
        server_name: Option<&str>,
        root_file: Option<PathBuf>,
        timeout: Duration,
    ) -> Result<Self, IstioCaError> {
        let name = server_name.unwrap_or(&host.name).to_owned();
        let server_name =
            ServerName::try_from(name.clone()).map_err(|_| IstioCaError::ServerName(name))?;
        Ok(Self(Arc::new(Settings {
            host,
            server_name,
            root_file,
            timeout,
        })))
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = ConnectError;
    type Future = BoxFuture<'static, Result<Self::Response, ConnectError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let settings = Arc::clone(&self.0);
        async move {
            match tokio::time::timeout(settings.timeout, settings.connect()).await {
                Ok(result) => result.map(TokioIo::new),
                Err(_) => Err(ConnectError::Late(settings.timeout)),
            }
        }
        .boxed()
    }
}

impl Settings {
    async fn connect(&self) -> Result<TlsStream<TcpStream>, ConnectError> {
        let config = self.config().await?;
        let stream = TcpStream::connect((self.host.name.as_str(), self.host.port))
            .await
            .map_err(ConnectError::Tcp)?;
        let stream = TlsConnector::from(Arc::new(config))
            .connect(self.server_name.clone(), stream)
            .await
            .map_err(|error| self.tls_error(error))?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(ConnectError::NotHttp2);
        }
        Ok(stream)
    }

    async fn config(&self) -> Result<ClientConfig, ConnectError> {
        let file = self.roots();
        let bad = |why: String| ConnectError::Roots {
            file: file.display().to_string(),
            why,
        };
        let pem = tokio::fs::read(file)
            .await
            .map_err(|error| bad(error.to_string()))?;
        let certificates = roots::certificates(&pem).map_err(|error| bad(error.to_string()))?;
        let mut store = RootCertStore::empty();
        if self.root_file.is_some() {
            for root in certificates {
                store.add(root).map_err(|error| bad(error.to_string()))?;
            }
        } else {
            // Some system has a root that is none.
            store.add_parsable_certificates(certificates);
        }
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| bad(error.to_string()))?
            .with_root_certificates(store)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }

    fn roots(&self) -> &Path {
        let system = || {
            SYSTEM_ROOTS
                .iter()
                .map(Path::new)
                .find(|path| path.exists())
        };
        self.root_file
            .as_deref()
            .or_else(system)
            .unwrap_or(Path::new(SYSTEM_ROOTS[0]))
    }

    fn tls_error(&self, error: io::Error) -> ConnectError {
        let rustls = error.get_ref().and_then(|e| e.downcast_ref());
        let Some(rustls::Error::InvalidCertificate(why)) = rustls else {
            return ConnectError::Tls(error);
        };
        match why {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                ConnectError::UnknownRoot(self.roots().display().to_string())
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                ConnectError::WrongName(self.server_name.to_str().into_owned())
            }
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => ConnectError::NotValid,
            _ => ConnectError::Tls(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_a_host_and_a_port() {
        for (text, authority) in [
            ("ca.example:15012", "ca.example:15012"),
            ("https://ca.example:15012", "ca.example:15012"),
            ("https://ca.example:15012/", "ca.example:15012"),
            ("10.0.0.1:1", "10.0.0.1:1"),
            ("[fd00::1]:15012", "[fd00::1]:15012"),
        ] {
            assert_eq!(Host::parse(text).unwrap().authority(), authority);
        }
        for text in [
            "",
            "ca.example",
            "ca.example:",
            "ca.example:0",
            "ca.example:70000",
            ":15012",
            "http://ca.example:15012",
            "ca.example:15012/path",
            "fd00::1:15012",
            "[fd00::1]",
            "[ca.example]:15012",
            "user@ca.example:15012",
            "a b:15012",
        ] {
            assert!(Host::parse(text).is_err(), "{text}");
        }
    }
}
