//! The gRPC side: one method, its limits, its answers, and the audit log.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
    time::SystemTime,
};

use futures::{FutureExt as _, future::BoxFuture};
use tokio::sync::Semaphore;
use tonic::{
    Request, Response, Status,
    body::Body,
    codegen::{Service, StdError, http},
    server::{Grpc, NamedService, UnaryService},
};
use tonic_prost::ProstCodec;

use super::registration::{Asked, Certified, Refusal, Registration};
use crate::identity::{
    moment::moment,
    proto::{self, IstioCertificateRequest, IstioCertificateResponse},
};

/// A request has a CSR of some 500 bytes, with a large RSA key 2 KiB.
const MAX_REQUEST: usize = 64 * 1024;
/// Decisions at once; more wait for their turn, as long as the deadline of a request lets them.
const MAX_AT_ONCE: usize = 32;

/// Whom a connection is with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub(super) SocketAddr);

#[derive(Clone)]
pub(super) struct CertificateService {
    registration: Arc<Registration>,
    turns: Arc<Semaphore>,
}

impl CertificateService {
    pub(super) fn new(registration: Arc<Registration>) -> Self {
        Self {
            registration,
            turns: Arc::new(Semaphore::new(MAX_AT_ONCE)),
        }
    }

    async fn create(
        self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let _turn = self
            .turns
            .acquire()
            .await
            .map_err(|_| Status::unavailable("the authority is stopping"))?;
        let peer = request.extensions().get::<Peer>().copied();
        let token = bearer(&request);
        let mut asked = Asked::default();
        let result = self
            .registration
            .certify(token, request.into_inner(), SystemTime::now(), &mut asked)
            .await;
        audit(peer, &asked, &result);
        match result {
            Ok(certified) => Ok(Response::new(IstioCertificateResponse {
                cert_chain: certified.chain,
            })),
            Err(refusal) => Err(status(&refusal)),
        }
    }
}

fn bearer(request: &Request<IstioCertificateRequest>) -> Option<String> {
    let value = request.metadata().get("authorization")?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim().to_owned())
}

/// One line for each decision. Nothing secret is in it: a token is shown by its name.
fn audit(peer: Option<Peer>, asked: &Asked, result: &Result<Certified, Refusal>) {
    let peer = peer.map_or_else(String::new, |peer| peer.0.to_string());
    let identity = asked.identity.as_deref().unwrap_or_default();
    let node = asked.node.as_ref().map_or("", |node| &node.node);
    let token = asked.node.as_ref().map_or("", |node| &node.id);
    match result {
        Ok(certified) => tracing::info!(
            target: "ca",
            node, token, identity, peer,
            serial = certified.serial,
            not_after = moment(certified.not_after),
            "signed"
        ),
        Err(refusal) => tracing::warn!(
            target: "ca",
            node, token, identity, peer,
            reason = %refusal,
            "refused"
        ),
    }
}

fn status(refusal: &Refusal) -> Status {
    let text = refusal.to_string();
    match refusal {
        Refusal::NoToken | Refusal::Token(_) | Refusal::Withdrawn(_) => {
            Status::unauthenticated(text)
        }
        Refusal::TooMany(..) => Status::resource_exhausted(text),
        Refusal::NoIdentity | Refusal::Identity(..) | Refusal::Csr(_) => {
            Status::invalid_argument(text)
        }
        Refusal::TrustDomain { .. } | Refusal::NotPlaced(_) => Status::permission_denied(text),
        Refusal::Signer(_) => Status::unavailable(text),
    }
}

impl NamedService for CertificateService {
    const NAME: &'static str = proto::SERVICE;
}

impl<B> Service<http::Request<B>> for CertificateService
where
    B: tonic::codegen::Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        if request.uri().path() != proto::CREATE_CERTIFICATE {
            let status = Status::unimplemented("this authority has the method CreateCertificate");
            return std::future::ready(Ok(status.into_http())).boxed();
        }
        let method = CreateCertificate(self.clone());
        async move {
            let mut grpc = Grpc::new(ProstCodec::default()).max_decoding_message_size(MAX_REQUEST);
            Ok(grpc.unary(method, request).await)
        }
        .boxed()
    }
}

struct CreateCertificate(CertificateService);

impl UnaryService<IstioCertificateRequest> for CreateCertificate {
    type Response = IstioCertificateResponse;
    type Future = BoxFuture<'static, Result<Response<IstioCertificateResponse>, Status>>;

    fn call(&mut self, request: Request<IstioCertificateRequest>) -> Self::Future {
        self.0.clone().create(request).boxed()
    }
}
