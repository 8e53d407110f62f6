//! Whom this node trusts: roots, revocation lists, trust domains; and the verification of a chain against them.

mod verified;

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use rustls_pki_types::{CertificateDer, SubjectPublicKeyInfoDer, TrustAnchor};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath, spki_for_anchor};

use self::verified::Verified;
use super::{
    clock::unix,
    crl::Crls,
    peer::{PeerIdentity, PeerRefused},
    roots::{Roots, describe, hex},
    verify::SIGNATURES,
};
use crate::model::{SpiffeId, TrustDomain};

/// Longest chain that is looked at.
const MAX_CHAIN: usize = 8;

/// Which side of a connection a certificate stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Client,
    Server,
}

impl Role {
    fn usage(self) -> KeyUsage {
        match self {
            Self::Client => KeyUsage::client_auth(),
            Self::Server => KeyUsage::server_auth(),
        }
    }
}

/// Trust domains whose clients are let in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Domains {
    pub(super) own: TrustDomain,
    pub(super) aliases: Vec<TrustDomain>,
}

impl Domains {
    fn accept(&self, domain: &TrustDomain) -> bool {
        *domain == self.own || self.aliases.contains(domain)
    }
}

/// One state of trust; replaced as a whole.
#[derive(Debug)]
pub(super) struct Trust {
    pub(super) roots: Arc<Roots>,
    pub(super) crls: Arc<Crls>,
    pub(super) domains: Arc<Domains>,
    /// Of this state only.
    verified: Verified,
}

/// The state of now, shared with the verifiers inside TLS configurations.
#[derive(Debug)]
pub(super) struct TrustCell(ArcSwap<Trust>);

impl TrustCell {
    pub(super) fn new(trust: Trust) -> Arc<Self> {
        Arc::new(Self(ArcSwap::from_pointee(trust)))
    }

    pub(super) fn get(&self) -> Arc<Trust> {
        self.0.load_full()
    }

    pub(super) fn set(&self, trust: Arc<Trust>) {
        self.0.store(trust);
    }
}

impl Trust {
    pub(super) fn new(roots: Arc<Roots>, crls: Arc<Crls>, domains: Arc<Domains>) -> Self {
        Self {
            roots,
            crls,
            domains,
            verified: Verified::default(),
        }
    }

    pub(super) fn with_roots(&self, roots: Arc<Roots>) -> Self {
        Self::new(roots, self.crls.clone(), self.domains.clone())
    }

    pub(super) fn with_domains(&self, domains: Arc<Domains>) -> Self {
        Self::new(self.roots.clone(), self.crls.clone(), domains)
    }

    /// Verifies what a peer showed: the chain with its validity, usage and revocation, a SPIFFE identity, and of a client
    /// also the trust domain. A server's identity is for the caller to compare with the one it expects.
    pub(super) fn verify_peer(
        &self,
        chain: &[CertificateDer<'_>],
        role: Role,
        now: SystemTime,
    ) -> Result<PeerIdentity, PeerRefused> {
        let peer = self.verify_chain(chain, role, now)?;
        if role == Role::Client && !self.domains.accept(peer.id.trust_domain()) {
            return Err(PeerRefused::TrustDomain(peer.id.trust_domain().clone()));
        }
        Ok(peer)
    }

    /// The same without the trust domain.
    pub(super) fn verify_chain(
        &self,
        chain: &[CertificateDer<'_>],
        role: Role,
        now: SystemTime,
    ) -> Result<PeerIdentity, PeerRefused> {
        let key = verified::key(chain, role);
        if let Some(peer) = self.verified.get(&key, now) {
            return Ok(peer);
        }
        let peer = self.verify_anew(chain, role, now)?;
        self.verified.put(key, chain, &peer);
        Ok(peer)
    }

    fn verify_anew(
        &self,
        chain: &[CertificateDer<'_>],
        role: Role,
        now: SystemTime,
    ) -> Result<PeerIdentity, PeerRefused> {
        let (leaf, intermediates) = chain.split_first().ok_or(PeerRefused::NoCertificate)?;
        if intermediates.len() > MAX_CHAIN {
            return Err(PeerRefused::BadCertificate("its chain is too long".into()));
        }
        let leaf = EndEntityCert::try_from(leaf)?;
        let path = leaf.verify_for_usage(
            SIGNATURES,
            &self.roots.anchors,
            intermediates,
            unix(now),
            role.usage(),
            None,
            None,
        )?;
        if self.revoked(&path) {
            return Err(PeerRefused::Revoked);
        }
        let ids: Vec<SpiffeId> = leaf
            .valid_uri_names()
            .filter_map(|uri| uri.parse().ok())
            .collect();
        let id = ids.first().cloned().ok_or(PeerRefused::NoIdentity)?;
        let not_after = describe(&leaf.der())
            .map_err(PeerRefused::BadCertificate)?
            .not_after;
        Ok(PeerIdentity {
            id,
            ids,
            serial: hex(leaf.serial()),
            not_after,
        })
    }

    /// Whether a list names a certificate of the path. Certificates whose issuer has no list are taken as good.
    fn revoked(&self, path: &VerifiedPath<'_>) -> bool {
        if self.crls.is_empty() {
            return false;
        }
        let leaf = path.end_entity();
        let mut child = (leaf.issuer().to_vec(), leaf.serial().to_vec());
        for issuer in path.intermediate_certificates() {
            if self
                .crls
                .revoked(&child.0, &child.1, &issuer.subject_public_key_info())
            {
                return true;
            }
            child = (issuer.issuer().to_vec(), issuer.serial().to_vec());
        }
        self.crls
            .revoked(&child.0, &child.1, &anchor_key(path.anchor()))
    }

    /// A list whose issuer's name is that of a root here, but which no such root signed: damaged or forged, and not used.
    pub(super) fn disowned_list(&self) -> Option<&str> {
        self.crls.lists().iter().find_map(|list| {
            let mut named = self
                .roots
                .anchors
                .iter()
                .filter(|anchor| anchor.subject.as_ref() == list.issuer_der())
                .peekable();
            named.peek()?;
            (!named.any(|anchor| list.signed_by(&anchor_key(anchor)))).then_some(&*list.issuer)
        })
    }
}

fn anchor_key(anchor: &TrustAnchor<'_>) -> SubjectPublicKeyInfoDer<'static> {
    spki_for_anchor(anchor)
}

/// `now`, moved into the validity of a leaf: what remains to be said of a chain when its age is left out.
pub(super) fn within(leaf: &CertificateDer<'_>, now: SystemTime) -> SystemTime {
    match describe(leaf) {
        Ok(leaf) if leaf.not_before <= leaf.not_after => now.clamp(leaf.not_before, leaf.not_after),
        _ => now.max(UNIX_EPOCH + Duration::from_secs(1)),
    }
}
