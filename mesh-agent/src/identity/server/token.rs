//! Credentials of nodes: tokens (JWT, ES256) that say which node their bearer is. Made by `mesh-agent ca token`,
//! verified without asking anyone.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use zeroize::Zeroizing;

use crate::identity::moment::moment;

/// Who makes and who takes these tokens; one of another purpose is refused even if it is signed by the same key.
const ISSUER: &str = "mesh-agent ca";
const AUDIENCE: &str = "mesh-agent ca";
/// Clocks of nodes may be ahead of the authority's by this much.
const LEEWAY: Duration = Duration::from_secs(60);
/// A token of ours has about 400 bytes.
pub const MAX_TOKEN: usize = 8 * 1024;
const MAX_NODE: usize = 253;

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: String,
    iat: u64,
    nbf: u64,
    exp: u64,
    jti: String,
    node: String,
}

/// What a token says of its bearer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeToken {
    pub node: String,
    /// Name of the token, to revoke it by.
    pub id: String,
    pub expires: SystemTime,
}

/// Why a token is refused. Shown to whoever presented it: nothing here helps to forge one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the credential is no token of `mesh-agent ca token`")]
    Malformed,
    #[error(
        "the token is signed by key {0:?}, which this authority does not have: make it with the --state that the \
         authority runs with"
    )]
    UnknownKey(String),
    #[error("the token's signature is wrong: it was altered, or cut short")]
    Signature,
    #[error("the token is for something else (audience or issuer)")]
    Audience,
    #[error("the token expired at {0}: make a new one with `mesh-agent ca token`")]
    Expired(String),
    #[error("the token is valid from {0} on: compare the clocks of this node and the authority")]
    NotYet(String),
    #[error("the token {} is revoked: make a new one with `mesh-agent ca token`", .0.id)]
    Revoked(NodeToken),
}

/// The key that signs tokens, and verifies them.
pub struct TokenKey {
    id: String,
    signing: EncodingKey,
    verifying: DecodingKey,
}

impl std::fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("TokenKey").field(&self.id).finish()
    }
}

impl TokenKey {
    /// A new private key: PKCS #8, PEM.
    ///
    /// # Errors
    /// The random source fails.
    pub fn generate() -> Result<Zeroizing<String>, String> {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
            .map_err(|e| e.to_string())?;
        Ok(Zeroizing::new(pair.serialize_pem()))
    }

    /// # Errors
    /// The text is no ECDSA P-256 key in PKCS #8.
    pub fn from_pem(pem: &str) -> Result<Self, String> {
        let bad = || "no ECDSA P-256 private key in PKCS #8 (BEGIN PRIVATE KEY)".to_owned();
        let pair =
            rcgen::KeyPair::from_pkcs8_pem_and_sign_algo(pem, &rcgen::PKCS_ECDSA_P256_SHA256)
                .map_err(|_| bad())?;
        let public = pair.public_key_pem();
        let hash = digest::digest(&digest::SHA256, public.as_bytes());
        let id = hash.as_ref().iter().take(8).map(|b| format!("{b:02x}"));
        Ok(Self {
            id: id.collect(),
            signing: EncodingKey::from_ec_pem(pem.as_bytes()).map_err(|_| bad())?,
            verifying: DecodingKey::from_ec_pem(public.as_bytes()).map_err(|_| bad())?,
        })
    }

    /// The header field `kid`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Makes a token for a node.
    ///
    /// # Errors
    /// Signing fails.
    pub fn issue(
        &self,
        node: &str,
        now: SystemTime,
        ttl: Duration,
    ) -> Result<(String, NodeToken), String> {
        let mut id = [0_u8; 12];
        aws_lc_rs::rand::fill(&mut id).map_err(|_| "no random numbers".to_owned())?;
        let claims = Claims {
            iss: ISSUER.to_owned(),
            sub: node.to_owned(),
            aud: AUDIENCE.to_owned(),
            iat: seconds(now),
            nbf: seconds(now),
            exp: seconds(now).saturating_add(ttl.as_secs()),
            jti: id.iter().map(|b| format!("{b:02x}")).collect(),
            node: node.to_owned(),
        };
        Ok((self.sign_claims(&claims)?, said(claims)))
    }

    pub(super) fn sign_claims(&self, claims: &impl serde::Serialize) -> Result<String, String> {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.id.clone());
        jsonwebtoken::encode(&header, claims, &self.signing)
            .map_err(|error| format!("cannot sign: {error}"))
    }

    /// Verifies all of a token but whether it is revoked.
    ///
    /// # Errors
    /// It is not a token of this key, or not valid now.
    pub fn verify(&self, token: &str, now: SystemTime) -> Result<NodeToken, TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(TokenError::Malformed);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| TokenError::Malformed)?;
        if header.alg != Algorithm::ES256 {
            return Err(TokenError::Malformed);
        }
        match header.kid {
            Some(kid) if kid == self.id => {}
            Some(kid) => return Err(TokenError::UnknownKey(shortened(kid))),
            None => return Err(TokenError::Malformed),
        }
        // Only the signature and the form: the rest is checked below, against the time that was passed in.
        let mut form = Validation::new(Algorithm::ES256);
        form.required_spec_claims.clear();
        form.validate_exp = false;
        form.validate_aud = false;
        let claims: Claims = jsonwebtoken::decode(token, &self.verifying, &form)
            .map_err(|e| match e.kind() {
                jsonwebtoken::errors::ErrorKind::InvalidSignature => TokenError::Signature,
                _ => TokenError::Malformed,
            })?
            .claims;
        check(&claims, now)?;
        Ok(said(claims))
    }
}

fn check(claims: &Claims, now: SystemTime) -> Result<(), TokenError> {
    if claims.iss != ISSUER || claims.aud != AUDIENCE {
        return Err(TokenError::Audience);
    }
    let named = |text: &str| !text.is_empty() && text.len() <= MAX_NODE;
    if claims.sub != claims.node || !named(&claims.node) || !named(&claims.jti) {
        return Err(TokenError::Malformed);
    }
    let now = seconds(now);
    // The authority's clock alone decides when it ends.
    if now >= claims.exp {
        return Err(TokenError::Expired(moment(at(claims.exp))));
    }
    let from = claims.nbf.max(claims.iat);
    if now.saturating_add(LEEWAY.as_secs()) < from {
        return Err(TokenError::NotYet(moment(at(from))));
    }
    Ok(())
}

fn said(claims: Claims) -> NodeToken {
    NodeToken {
        node: claims.node,
        id: claims.jti,
        expires: at(claims.exp),
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

/// The end of the year 9999 stands for all that is later.
fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds.min(253_402_300_799))
}

/// What a stranger sent and is shown again.
fn shortened(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(64) {
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests;
