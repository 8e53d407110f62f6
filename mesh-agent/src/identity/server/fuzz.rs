//! Doors to what nodes send to the authority, for the fuzz targets in tests/fuzz; compiled for them only
//! (`--cfg fuzzing`).

use std::{
    sync::LazyLock,
    time::{Duration, SystemTime},
};

use prost::Message as _;

use super::{revoked::Revoked, token::TokenKey};
use crate::identity::{
    csr::Csr,
    proto::{IstioCertificateRequest, IstioCertificateResponse},
    signed,
};

static KEY: LazyLock<Option<TokenKey>> =
    LazyLock::new(|| TokenKey::from_pem(&TokenKey::generate().ok()?).ok());

/// A credential as a node shows it; and claims of one that this authority signed.
pub fn token(text: &str) {
    let Some(key) = &*KEY else { return };
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    assert!(key.verify(text, now).is_err(), "nobody has this key");
    if let Ok(claims) = serde_json::from_str::<serde_json::Value>(text)
        && let Ok(token) = key.sign_claims(&claims)
        && let Ok(node) = key.verify(&token, now)
    {
        assert_eq!(claims["node"], node.node.as_str());
        assert!(node.expires > now);
    }
}

/// The list of revoked credentials.
pub fn revoked(text: &str) {
    if let Ok(list) = Revoked::parse(text) {
        let names = text.lines().filter_map(|line| line.split('#').next());
        for name in names.map(str::trim).filter(|name| !name.is_empty()) {
            assert!(list.contains(name));
        }
    }
}

/// A message of the certificate service, read as a request and as an answer.
pub fn message(bytes: &[u8]) {
    if let Ok(request) = IstioCertificateRequest::decode(bytes) {
        if let Some(identity) = request.impersonated_identity() {
            let _ = identity.parse::<crate::model::SpiffeId>();
        }
        let _ = Csr::from_pem(&request.csr);
    }
    if let Ok(answer) = IstioCertificateResponse::decode(bytes)
        && let Ok(signed) = signed(&answer.cert_chain)
    {
        assert!(!signed.chain.is_empty() && !signed.roots.is_empty());
    }
}
