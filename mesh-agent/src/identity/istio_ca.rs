//! Client of the Istio CA: istiod, or `mesh-agent ca serve`.
//!
//! One HTTP/2 connection carries all requests and is made anew when it breaks. What proves who we are to it and it to
//! us is read from files each time, so that both may be replaced while the agent runs.

mod answer;
mod connect;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use http::uri::PathAndQuery;
use tonic::{
    Code, Request, Status,
    metadata::AsciiMetadataValue,
    transport::{Channel, Endpoint, Uri},
};

pub use self::answer::signed;
use self::connect::{ConnectError, Connector, Host};
use super::{
    CaError, CertificateAuthority, Signed,
    proto::{self, IstioCertificateRequest, IstioCertificateResponse},
};
use crate::model::SpiffeId;

/// Largest answer that is read: a chain and a bundle of some hundred roots.
const MAX_ANSWER: usize = 1024 * 1024;
/// A Kubernetes token has about 1 KiB; header lists are limited to 16 KiB at many servers.
const MAX_TOKEN: u64 = 12 * 1024;

/// Where the authority is and what we prove ourselves with.
#[derive(Clone, Debug)]
pub struct IstioCaOptions {
    /// `HOST:PORT`, also as `https://HOST:PORT`.
    pub address: String,
    /// Name in the authority's TLS certificate, where it is not the host of `address`.
    pub server_name: Option<String>,
    /// Roots that the authority's TLS certificate is verified against, PEM; read for each connection. `None`: the roots
    /// of the system.
    pub root_file: Option<PathBuf>,
    /// The bearer token; read for each request. `None`: the authority is asked without one.
    pub token_file: Option<PathBuf>,
    /// What the authority knows this cluster as.
    pub cluster_id: String,
    /// For address look-up, TCP and TLS together.
    pub connect_timeout: Duration,
    /// For a request with all that it waits for.
    pub call_timeout: Duration,
}

impl IstioCaOptions {
    pub fn new(address: impl Into<String>) -> Self {
        Self {
            address: address.into(),
            server_name: None,
            root_file: None,
            token_file: None,
            cluster_id: "Kubernetes".to_owned(),
            connect_timeout: Duration::from_secs(5),
            call_timeout: Duration::from_secs(10),
        }
    }
}

/// The options make no client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IstioCaError {
    #[error("{0:?} is no address of a certificate authority: expected HOST:PORT")]
    Address(String),
    #[error("{0:?} is no name that a TLS certificate can have")]
    ServerName(String),
    #[error("{0:?} cannot be sent as the name of a cluster")]
    ClusterId(String),
}

/// A certificate authority behind Istio's gRPC service.
pub struct IstioCa {
    name: String,
    options: IstioCaOptions,
    cluster_id: AsciiMetadataValue,
    endpoint: Endpoint,
    connector: Connector,
    /// Made with the first request; thrown away when it fails, so that the next one begins anew.
    channel: Mutex<Option<Channel>>,
}

impl std::fmt::Debug for IstioCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("IstioCa").field(&self.name).finish()
    }
}

impl IstioCa {
    /// Connects only when there is something to sign.
    ///
    /// # Errors
    /// The options cannot be used.
    pub fn new(options: IstioCaOptions) -> Result<Self, IstioCaError> {
        let host = Host::parse(&options.address)?;
        let name = format!("https://{}", host.authority());
        let bad = |_| IstioCaError::Address(options.address.clone());
        let origin: Uri = name.parse().map_err(|_| bad(()))?;
        let connector = Connector::new(
            host,
            options.server_name.as_deref(),
            options.root_file.clone(),
            options.connect_timeout,
        )?;
        let cluster_id = options
            .cluster_id
            .parse()
            .map_err(|_| IstioCaError::ClusterId(options.cluster_id.clone()))?;
        // A dead connection is noticed within the deadline of a request that waits on it.
        let alive = options.call_timeout / 3;
        let endpoint = Endpoint::from(origin)
            .http2_keep_alive_interval(alive)
            .keep_alive_timeout(alive)
            .http2_max_header_list_size(16 * 1024);
        Ok(Self {
            name,
            options,
            cluster_id,
            endpoint,
            connector,
            channel: Mutex::new(None),
        })
    }

    fn channel(&self) -> Channel {
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        channel
            .get_or_insert_with(|| {
                self.endpoint
                    .connect_with_connector_lazy(self.connector.clone())
            })
            .clone()
    }

    fn forget_channel(&self) {
        *self.channel.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    async fn create(&self, id: &SpiffeId, csr_pem: &str, ttl: Duration) -> Result<Signed, CaError> {
        let token = match &self.options.token_file {
            Some(file) => Some(bearer(file).await?),
            None => None,
        };
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let mut request = Request::new(IstioCertificateRequest::for_identity(
            csr_pem,
            seconds,
            id.as_str(),
        ));
        request.set_timeout(self.options.call_timeout);
        let metadata = request.metadata_mut();
        if let Some(token) = token {
            metadata.insert("authorization", token);
        }
        metadata.insert(proto::CLUSTER_ID, self.cluster_id.clone());

        let call = self.call(request);
        let answer = match tokio::time::timeout(self.options.call_timeout, call).await {
            Ok(answer) => answer,
            Err(_) => Err(unavailable(format!(
                "{}: no answer within {:?}",
                self.name, self.options.call_timeout
            ))),
        };
        if let Err(CaError::Unavailable(_)) = answer {
            self.forget_channel();
        }
        let answer = answer?;
        signed(&answer.cert_chain).map_err(|why| CaError::Rubbish(why.into()))
    }

    async fn call(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<IstioCertificateResponse, CaError> {
        let mut grpc =
            tonic::client::Grpc::new(self.channel()).max_decoding_message_size(MAX_ANSWER);
        grpc.ready()
            .await
            .map_err(|error| unavailable(format!("{}: {}", self.name, root_cause(&error))))?;
        let codec =
            tonic_prost::ProstCodec::<IstioCertificateRequest, IstioCertificateResponse>::default();
        let path = PathAndQuery::from_static(proto::CREATE_CERTIFICATE);
        grpc.unary(request, path, codec)
            .await
            .map(tonic::Response::into_inner)
            .map_err(|status| self.refusal(&status))
    }

    /// What a gRPC status means for whoever wants a certificate.
    fn refusal(&self, status: &Status) -> CaError {
        // The connection could not be made, or broke.
        if std::error::Error::source(status).is_some() {
            return unavailable(format!("{}: {}", self.name, root_cause(status)));
        }
        let said = shortened(status.message());
        let text = format!("{}: {said}", self.name);
        match status.code() {
            Code::Unauthenticated => {
                let which = match &self.options.token_file {
                    Some(file) => format!("the credential is in {}", file.display()),
                    None => "no credential is configured".to_owned(),
                };
                CaError::Refused(format!("{text} ({which})").into())
            }
            Code::PermissionDenied
            | Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::NotFound
            | Code::AlreadyExists => CaError::Refused(text.into()),
            Code::Unimplemented => CaError::Refused(
                format!("{text}: what listens there is no Istio certificate authority").into(),
            ),
            // tonic's own words for an answer above the limit, and for one that is no message.
            Code::OutOfRange => CaError::Rubbish(text.into()),
            Code::Internal if said.starts_with("failed to decode") => CaError::Rubbish(text.into()),
            code => unavailable(format!("{text} ({code:?})")),
        }
    }
}

impl CertificateAuthority for IstioCa {
    fn name(&self) -> &str {
        &self.name
    }

    fn sign<'a>(
        &'a self,
        id: &'a SpiffeId,
        csr_pem: &'a str,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Signed, CaError>> {
        self.create(id, csr_pem, ttl).boxed()
    }
}

fn unavailable(text: impl Into<Arc<str>>) -> CaError {
    CaError::Unavailable(text.into())
}

/// The innermost cause says what happened; what wraps it says "transport error".
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    loop {
        if let Some(connect) = innermost.downcast_ref::<ConnectError>() {
            return connect.to_string();
        }
        match innermost.source() {
            Some(source) => innermost = source,
            None => return innermost.to_string(),
        }
    }
}

/// What a server says is shown, but not at any length.
fn shortened(text: &str) -> String {
    let clean: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(500)
        .collect();
    if clean.is_empty() {
        "it gave no reason".to_owned()
    } else {
        clean
    }
}

/// `Bearer TOKEN`, from the file.
async fn bearer(file: &Path) -> Result<AsciiMetadataValue, CaError> {
    let not_asked = |why: String| {
        unavailable(format!(
            "it was not asked, because the credential in {} cannot be used: {why}",
            file.display()
        ))
    };
    let read = async {
        let size = tokio::fs::metadata(file).await?.len();
        if size > MAX_TOKEN {
            return Ok(Err(format!("{size} bytes are too many for a token")));
        }
        tokio::fs::read(file).await.map(Ok)
    };
    let bytes = read
        .await
        .map_err(|error| not_asked(error.to_string()))?
        .map_err(not_asked)?;
    let token = std::str::from_utf8(&bytes).map_or("", str::trim);
    let visible = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
    if !visible(token) {
        return Err(not_asked("it is empty, or no token".to_owned()));
    }
    let mut value: AsciiMetadataValue = format!("Bearer {token}")
        .parse()
        .map_err(|_| not_asked("no token".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests;
