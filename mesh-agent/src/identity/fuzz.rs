//! Doors to the private parsers for the fuzz targets in tests/fuzz; compiled for them only (`--cfg fuzzing`).

use std::{sync::Arc, time::SystemTime};

use rustls_pki_types::CertificateDer;

use super::{
    crl::Crls,
    csr::Csr,
    roots::{Roots, certificates, describe},
    trust::{Role, Trust, within},
};

/// A file of revocation lists.
pub fn crl(bytes: &[u8]) {
    if let Ok(crls) = Crls::read(bytes) {
        assert!(!crls.is_empty());
        for list in crls.lists() {
            assert!(!list.issuer_der().is_empty() || list.issuer.is_empty());
        }
        let trust = Trust::new(Arc::new(Roots::none()), Arc::new(crls), Arc::default());
        assert_eq!(trust.disowned_list(), None, "there are no roots");
    }
}

/// A file of roots, and the same certificates shown by a peer.
pub fn bundle(bytes: &[u8]) {
    if let Ok(chain) = certificates(bytes) {
        peer(&chain);
        if let Ok(roots) = Roots::new(chain.clone()) {
            let trust = Trust::new(Arc::new(roots), Arc::default(), Arc::default());
            let now = SystemTime::UNIX_EPOCH;
            for certificate in &chain {
                let _ = trust.verify_chain(&chain, Role::Server, within(certificate, now));
            }
        }
    }
    peer(&[CertificateDer::from(bytes)]);
}

fn peer(chain: &[CertificateDer<'_>]) {
    let nobody = Trust::new(Arc::new(Roots::none()), Arc::default(), Arc::default());
    for certificate in chain {
        let _ = describe(certificate);
    }
    for role in [Role::Client, Role::Server] {
        let refused = nobody.verify_peer(chain, role, SystemTime::UNIX_EPOCH);
        assert!(refused.is_err(), "nobody is trusted");
    }
}

/// A certificate request.
pub fn request(text: &str) {
    if let Ok(csr) = Csr::from_pem(text) {
        for uri in csr.uris() {
            if let Ok(id) = uri.parse() {
                let _ = csr.asks_only_for(&id);
            }
        }
    }
}
