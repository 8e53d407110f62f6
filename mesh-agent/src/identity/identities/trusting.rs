//! Whom the node trusts: peers verified against it, its changes, and what they mean for tunnels that live.

use std::{sync::Arc, time::SystemTime};

use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

use super::{Health, Identities, Writer};
use crate::{
    identity::{
        bundle::{FileError, Seen},
        peer::{PeerIdentity, PeerRefused, Standing},
        tls::TlsIdentity,
        trust::{Domains, Role, Trust, within},
    },
    model::TrustDomain,
};

impl Identities {
    /// The mesh's trust domain, and others whose clients are let in.
    pub fn set_mesh(&self, trust_domain: TrustDomain, aliases: Vec<TrustDomain>) {
        let domains = Domains {
            own: trust_domain,
            aliases,
        };
        let mut writer = self.writer();
        let trust = self.trust.get();
        if *trust.domains != domains {
            self.change_trust(&mut writer, trust.with_domains(Arc::new(domains)));
        }
    }

    /// Verifies a client by what it showed: chain, validity, usage, revocation, identity and trust domain, all as of now. To be
    /// called after every handshake; see [`TlsIdentity`].
    ///
    /// # Errors
    /// It is refused.
    pub fn verify_client(&self, chain: &[CertificateDer<'_>]) -> Result<PeerIdentity, PeerRefused> {
        self.trust
            .get()
            .verify_peer(chain, Role::Client, self.options.clock.now())
    }

    /// Verifies a server, as [`Self::verify_client`] does a client, but for the trust domain: the caller compares the
    /// identity with the one it dialled.
    ///
    /// # Errors
    /// It is refused.
    pub fn verify_server(&self, chain: &[CertificateDer<'_>]) -> Result<PeerIdentity, PeerRefused> {
        self.trust
            .get()
            .verify_peer(chain, Role::Server, self.options.clock.now())
    }

    /// What becomes of a living tunnel to such a peer, to be asked when [`Self::trust`] changes. `role` is the peer's.
    ///
    /// Certificates are shown once, in the handshake: a peer that has renewed its own since cannot show the new one in a tunnel
    /// that lives. So a root that left the bundle and an expiry only drain the tunnel, or root rotation would break
    /// connections; revocation and a trust domain that is no longer accepted close it.
    pub fn standing(&self, chain: &[CertificateDer<'_>], role: Role) -> Standing {
        let Some(leaf) = chain.first() else {
            return Standing::Close(PeerRefused::NoCertificate);
        };
        let now = self.options.clock.now();
        match self.trust.get().verify_peer(chain, role, within(leaf, now)) {
            Ok(peer) if peer.not_after < now => Standing::Drain(PeerRefused::Expired),
            Ok(_) => Standing::Good,
            Err(
                refused @ (PeerRefused::UnknownRoot
                | PeerRefused::Expired
                | PeerRefused::NotYetValid),
            ) => Standing::Drain(refused),
            Err(refused) => Standing::Close(refused),
        }
    }

    /// Counts states of trust: bundle, revocation lists, trust domains. The new state is in effect before the number changes.
    /// Who keeps tunnels asks [`Self::standing`] for each on every change; one made meanwhile is safe if the number was read before its
    /// handshake's verification and is compared after it was put where the next change finds it.
    pub fn trust(&self) -> watch::Receiver<u64> {
        self.trust_version.subscribe()
    }

    /// Puts a state of trust into effect. Configurations are built anew, so that sessions that were made under the old
    /// state are not resumed.
    pub(super) fn change_trust(&self, _writer: &mut Writer, trust: Trust) {
        let trust = Arc::new(trust);
        report_disowned(&trust);
        self.trust.set(trust.clone());
        let now = self.options.clock.now();
        for entry in self.entries.load().values() {
            let Some(tls) = entry.tls.load_full() else {
                continue;
            };
            let refused = refuses(&trust, &tls.certified.cert, now);
            if let Some(refused) = &refused {
                tracing::warn!(id = %entry.id, "this node's own certificate is refused by its own trust ({refused}); a new one is asked for");
            }
            entry.progress().refused = refused.is_some();
            match self.build(&tls) {
                Ok(new) => entry.tls.store(Some(Arc::new(new))),
                Err(error) => {
                    tracing::error!(id = %entry.id, %error, "cannot build its TLS configuration anew; sessions from before may be resumed, and are verified when they are");
                }
            }
        }
        self.trust_version.send_modify(|n| *n += 1);
        self.wake.notify_one();
    }

    fn build(&self, old: &TlsIdentity) -> Result<TlsIdentity, rustls::Error> {
        TlsIdentity::new(
            old.id.clone(),
            old.certified.clone(),
            old.described.clone(),
            &self.trust,
            &self.options.clock,
        )
    }

    /// Takes over what the files say now.
    pub(super) fn take_files(&self, seen: Seen) {
        let now = self.options.clock.now();
        let mut writer = self.writer();
        let old = self.trust.get();
        let (mut new_roots, mut new_crls) = (None, None);
        match seen.bundle {
            Some(Ok(roots)) => {
                writer.bundle.error = None;
                if !roots.same(&old.roots) {
                    tracing::info!(
                        roots = roots.certificates().len(),
                        "the trust bundle has changed"
                    );
                    new_roots = Some(roots);
                }
            }
            Some(Err(error)) => writer.bundle.keep_last(&error, now),
            None => {}
        }
        match seen.crl {
            Some(Ok(crls)) => {
                writer.crl.error = None;
                writer.crl_loaded = now;
                if !crls.same(&old.crls) {
                    tracing::info!(
                        lists = crls.lists().len(),
                        "the revocation lists have changed"
                    );
                    new_crls = Some(crls);
                }
            }
            Some(Err(error)) => writer.crl.keep_last(&error, now),
            None => {}
        }
        if new_roots.is_some() || new_crls.is_some() {
            let trust = Trust::new(
                new_roots.unwrap_or_else(|| old.roots.clone()),
                new_crls.unwrap_or_else(|| old.crls.clone()),
                old.domains.clone(),
            );
            self.change_trust(&mut writer, trust);
        }
    }
}

impl Health {
    fn keep_last(&mut self, new: &FileError, now: SystemTime) {
        let new = new.to_string();
        if self.error.as_ref().is_none_or(|(_, old)| *old != new) {
            tracing::error!("{new}; what it said before stays in effect");
            self.error = Some((now, new));
            self.errors += 1;
        }
    }
}

pub(super) fn report_disowned(trust: &Trust) {
    if let Some(issuer) = trust.disowned_list() {
        tracing::error!(
            issuer,
            "a revocation list is not signed by the root whose name it carries, and has no effect"
        );
    }
}

/// Why trust refuses a chain whatever its age.
pub(super) fn refuses(
    trust: &Trust,
    chain: &[CertificateDer<'_>],
    now: SystemTime,
) -> Option<PeerRefused> {
    let leaf = chain.first()?;
    trust
        .verify_chain(chain, Role::Server, within(leaf, now))
        .err()
}
