//! Chains that verified under one state of trust, so that the same chain is not verified again and again: once in the handshake,
//! once after it, and for every tunnel with the same peer.
//!
//! What a verification says depends on the chain, the role, the state of trust and the time. The first two are the key, the third owns
//! this memory, and a remembered answer holds only while every certificate of the chain is valid. Refusals are not
//! remembered: they end a connection, and a peer could fill the memory with them. That the peer holds the leaf's key is no
//! part of this; each full handshake proves it.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use aws_lc_rs::digest;
use rustls_pki_types::CertificateDer;

use super::{
    super::{peer::PeerIdentity, roots::describe},
    Role,
};

/// Chains that are remembered; all are forgotten when they are more. About 400 bytes each.
const MOST: usize = 4096;

pub(super) type Key = [u8; 32];

#[derive(Debug, Default)]
pub(super) struct Verified(Mutex<HashMap<Key, Good>>);

#[derive(Debug)]
struct Good {
    peer: PeerIdentity,
    from: SystemTime,
    to: SystemTime,
}

pub(super) fn key(chain: &[CertificateDer<'_>], role: Role) -> Key {
    let mut hash = digest::Context::new(&digest::SHA256);
    hash.update(&[match role {
        Role::Client => 0,
        Role::Server => 1,
    }]);
    for certificate in chain {
        hash.update(&certificate.len().to_be_bytes());
        hash.update(certificate);
    }
    let mut key = [0; 32];
    key.copy_from_slice(hash.finish().as_ref());
    key
}

impl Verified {
    pub(super) fn get(&self, key: &Key, now: SystemTime) -> Option<PeerIdentity> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let good = known.get(key)?;
        (good.from <= now && now <= good.to).then(|| good.peer.clone())
    }

    pub(super) fn put(&self, key: Key, chain: &[CertificateDer<'_>], peer: &PeerIdentity) {
        let mut times = chain.iter().map(describe);
        let first = times.next().and_then(Result::ok);
        let Some(mut good) = first.map(|leaf| Good {
            peer: peer.clone(),
            from: leaf.not_before,
            to: leaf.not_after,
        }) else {
            return;
        };
        for other in times {
            let Ok(other) = other else {
                return;
            };
            good.from = good.from.max(other.not_before);
            good.to = good.to.min(other.not_after);
        }
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(key, good);
    }
}
