//! Headers that a route must not touch.

/// Why a header of this name may not be set, added to or removed; `lower` is its name in lower case.
pub(super) fn reserved(lower: &str) -> Option<&'static str> {
    match lower {
        "connection" | "keep-alive" | "proxy-connection" | "te" | "trailer"
        | "transfer-encoding" | "upgrade" => {
            Some("belongs to one connection: the agent sets it by the rules of RFC 9110")
        }
        "content-length" => Some("says where the body ends: a route must not change it"),
        "host" => Some("is changed by the filter URLRewrite, with hostname"),
        "x-forwarded-client-cert" => {
            Some("says who the client is: only the agent sets it, from the tunnel's identity")
        }
        _ => None,
    }
}
