//! The decision on each request: who asks, whether the identity is theirs to have, and what is signed.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use super::{
    authn::{NodeAuthenticator, Review},
    authority::{Authority, Seen, to_pem},
    followed::Followed,
    limit::Limits,
    placement::{NotPlaced, Placements},
    token::{NodeToken, TokenError},
};
use crate::{
    identity::{
        csr::{Csr, CsrError},
        proto::IstioCertificateRequest,
        signer::{DEFAULT_TTL, SignError},
    },
    model::{IdentityError, SpiffeId, TrustDomain},
};

/// A certificate that lives shorter than this is of no use to anyone.
const MIN_TTL: Duration = Duration::from_secs(10);

/// Why nothing is signed. Shown to the node, so it says nothing of other nodes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("no credential came with the request: expected `authorization: Bearer TOKEN`")]
    NoToken,
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("the token no longer stands: {0}")]
    Withdrawn(String),
    #[error("node {0} asks for too many certificates; the next one is free in {1:?}")]
    TooMany(String, Duration),
    #[error(
        "the request names no identity: set ImpersonatedIdentity in its metadata. This authority signs for the workloads \
         of a node, and has nothing to sign for the node itself"
    )]
    NoIdentity,
    #[error("{0:?} is no identity of a workload: {1}")]
    Identity(String, IdentityError),
    #[error("this authority signs for trust domain {own}, and {id} is of another")]
    TrustDomain { own: TrustDomain, id: SpiffeId },
    #[error(transparent)]
    NotPlaced(#[from] NotPlaced),
    #[error(transparent)]
    Csr(#[from] CsrError),
    #[error("the authority cannot sign now: {0}")]
    Signer(String),
}

/// Settings of the decision.
#[derive(Clone, Debug)]
pub(super) struct Limit {
    /// No certificate lives longer.
    pub(super) ttl_max: Duration,
    /// Only identities of this trust domain; `None`: what the configuration says.
    pub(super) trust_domain: Option<TrustDomain>,
}

/// What was signed.
#[derive(Clone, Debug)]
pub(super) struct Certified {
    /// As the answer carries it: leaf, intermediates, all roots in one.
    pub(super) chain: Vec<String>,
    pub(super) serial: String,
    pub(super) not_after: SystemTime,
}

/// What a request turned out to be, for the audit log: filled as far as the decision went.
#[derive(Debug, Default)]
pub(super) struct Asked {
    pub(super) node: Option<NodeToken>,
    pub(super) identity: Option<String>,
}

pub(super) struct Registration {
    authenticator: Arc<dyn NodeAuthenticator>,
    placements: Placements,
    authority: Followed<Authority, Seen>,
    limits: Limits,
    limit: Limit,
}

impl Registration {
    pub(super) fn new(
        authenticator: Arc<dyn NodeAuthenticator>,
        placements: Placements,
        folder: PathBuf,
        limit: Limit,
    ) -> Result<Self, String> {
        let read = {
            let folder = folder.clone();
            move || Authority::load(&folder).map_err(|error| error.to_string())
        };
        let said = format!("the authority in {}", folder.display());
        let authority = Followed::new(said, move || Authority::look(&folder), read)?;
        Ok(Self {
            authenticator,
            placements,
            authority,
            limits: Limits::default(),
            limit,
        })
    }

    pub(super) fn authority(&self) -> Arc<Authority> {
        self.authority.get()
    }

    /// Decides and signs. `asked` is filled on the way.
    pub(super) async fn certify(
        self: &Arc<Self>,
        token: Option<String>,
        request: IstioCertificateRequest,
        now: SystemTime,
        asked: &mut Asked,
    ) -> Result<Certified, Refusal> {
        asked.identity = request.impersonated_identity().map(str::to_owned);
        let token = token.ok_or(Refusal::NoToken)?;
        let node = self.authenticate(token, now).await.inspect_err(|refusal| {
            if let Refusal::Token(TokenError::Revoked(node)) = refusal {
                asked.node = Some(node.clone());
            }
        })?;
        asked.node = Some(node.clone());
        // After the token: nobody can use up what another node has.
        self.limits
            .take(&node.node, Instant::now())
            .map_err(|wait| Refusal::TooMany(node.node.clone(), wait))?;
        let this = Arc::clone(self);
        blocking(move || this.sign(&node, &request, now)).await
    }

    /// First without asking anyone, then where somebody can be asked.
    async fn authenticate(
        self: &Arc<Self>,
        token: String,
        now: SystemTime,
    ) -> Result<NodeToken, Refusal> {
        let authenticator = Arc::clone(&self.authenticator);
        let (token, node) = blocking(move || {
            let node = authenticator.verify(&token, now)?;
            Ok((token, node))
        })
        .await?;
        match self.authenticator.review(&token, &node).await {
            Review::Stands => {}
            Review::Withdrawn(why) => return Err(Refusal::Withdrawn(why)),
            Review::Unanswered(why) => tracing::warn!(
                node = node.node,
                "whoever made the token cannot be asked about it ({why}); its signature is enough"
            ),
        }
        Ok(node)
    }

    fn sign(
        &self,
        node: &NodeToken,
        request: &IstioCertificateRequest,
        now: SystemTime,
    ) -> Result<Certified, Refusal> {
        let text = request.impersonated_identity().ok_or(Refusal::NoIdentity)?;
        let id: SpiffeId = text
            .parse()
            .map_err(|error| Refusal::Identity(text.chars().take(300).collect(), error))?;
        if let Some(own) = &self.limit.trust_domain
            && own != id.trust_domain()
        {
            let own = own.clone();
            return Err(Refusal::TrustDomain { own, id });
        }
        self.placements.get().allows(&node.node, &id)?;
        let csr = Csr::from_pem(&request.csr)?;
        csr.asks_only_for(&id)?;
        let ttl = ttl(request.validity_duration, self.limit.ttl_max);
        let authority = self.authority();
        let chain = authority
            .signer
            .sign(&csr, &id, ttl, now)
            .map_err(|error: SignError| Refusal::Signer(error.to_string()))?;
        let leaf = chain
            .first()
            .ok_or_else(|| Refusal::Signer("it signed nothing".to_owned()))?;
        let leaf = crate::identity::roots::describe(leaf).map_err(Refusal::Signer)?;
        let mut elements: Vec<String> = chain.iter().map(to_pem).collect();
        elements.push(authority.bundle.clone());
        Ok(Certified {
            chain: elements,
            serial: leaf.serial,
            not_after: leaf.not_after,
        })
    }
}

/// What is asked for, within what is allowed; nothing asked for is the usual.
fn ttl(seconds: i64, max: Duration) -> Duration {
    let wanted = match u64::try_from(seconds) {
        Ok(0) | Err(_) => DEFAULT_TTL,
        Ok(seconds) => Duration::from_secs(seconds),
    };
    wanted.min(max).max(MIN_TTL)
}

/// Reading files and signing does not belong on the threads that serve connections.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Refusal::Signer(error.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn validity_is_clamped() {
        let day = Duration::from_secs(86_400);
        for (asked, max, given) in [
            (3600, day, 3600),
            (0, day, 86_400),
            (-5, day, 86_400),
            (i64::MIN, day, 86_400),
            (i64::MAX, day, 86_400),
            (1, day, 10),
            (0, day / 24, 3600),
        ] {
            assert_eq!(ttl(asked, max), Duration::from_secs(given), "{asked}");
        }
    }
}
