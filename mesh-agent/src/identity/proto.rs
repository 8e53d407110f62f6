//! The messages and the method of Istio's certificate service, `istio.v1.auth.IstioCertificateService`, by hand: two
//! messages need no code generator. Field numbers are those of `istio.io/api/security/v1alpha1/ca.proto`.

use std::collections::BTreeMap;

use prost_types::{Struct, Value, value::Kind};

/// Of the service, for routing.
pub const SERVICE: &str = "istio.v1.auth.IstioCertificateService";
/// Of its one method.
pub const CREATE_CERTIFICATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
/// Field of the request's metadata: the identity of a pod, when its node's agent asks for it.
pub const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";
/// gRPC metadata that names the cluster of whoever asks.
pub const CLUSTER_ID: &str = "clusterid";

#[derive(Clone, PartialEq, prost::Message)]
pub struct IstioCertificateRequest {
    /// PKCS #10, PEM.
    #[prost(string, tag = "1")]
    pub csr: String,
    /// Seconds.
    #[prost(int64, tag = "3")]
    pub validity_duration: i64,
    #[prost(message, optional, tag = "4")]
    pub metadata: Option<Struct>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct IstioCertificateResponse {
    /// PEM: leaf, intermediates, and as the last element all roots.
    #[prost(string, repeated, tag = "1")]
    pub cert_chain: Vec<String>,
}

impl IstioCertificateRequest {
    /// A request for the identity of a pod.
    pub fn for_identity(csr: &str, seconds: i64, identity: &str) -> Self {
        let identity = Value {
            kind: Some(Kind::StringValue(identity.to_owned())),
        };
        Self {
            csr: csr.to_owned(),
            validity_duration: seconds,
            metadata: Some(Struct {
                fields: BTreeMap::from([(IMPERSONATED_IDENTITY.to_owned(), identity)]),
            }),
        }
    }

    /// The identity that is asked for; `None` when the field is absent, empty or no string.
    pub fn impersonated_identity(&self) -> Option<&str> {
        let value = self.metadata.as_ref()?.fields.get(IMPERSONATED_IDENTITY)?;
        match &value.kind {
            Some(Kind::StringValue(text)) if !text.is_empty() => Some(text),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn the_bytes_are_those_of_the_published_definition() {
        // Written down from the wire format: a tag and a length before each field.
        let bytes = IstioCertificateRequest::for_identity("csr", 3600, "spiffe://td/ns/a/sa/b")
            .encode_to_vec();
        let mut wanted =
            b"\x0a\x03csr\x18\x90\x1c\x22\x31\x0a\x2f\x0a\x14ImpersonatedIdentity\x12\x17\x1a\x15"
                .to_vec();
        wanted.extend_from_slice(b"spiffe://td/ns/a/sa/b");
        assert_eq!(bytes, wanted);
        let response = IstioCertificateResponse::decode(&b"\x0a\x01a\x0a\x01b"[..]).unwrap();
        assert_eq!(response.cert_chain, ["a", "b"]);
    }

    #[test]
    fn an_identity_is_a_string_or_none() {
        let mut request = IstioCertificateRequest::for_identity("", 0, "x");
        assert_eq!(request.impersonated_identity(), Some("x"));
        for kind in [
            None,
            Some(Kind::BoolValue(true)),
            Some(Kind::StringValue(String::new())),
        ] {
            let fields = BTreeMap::from([(IMPERSONATED_IDENTITY.to_owned(), Value { kind })]);
            request.metadata = Some(Struct { fields });
            assert_eq!(request.impersonated_identity(), None);
        }
        request.metadata = None;
        assert_eq!(request.impersonated_identity(), None);
    }
}
