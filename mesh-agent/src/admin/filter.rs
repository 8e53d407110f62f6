//! Which connections a request asks for.

use crate::{
    admin::{api::Connection, query},
    telemetry::{Reason, security},
};

/// The filters of `/v1/connections`; all must match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectionFilter {
    /// Namespace of the enrolled workload.
    pub namespace: Option<String>,
    /// `name` or `namespace/name` of the enrolled workload or of the other end.
    pub workload: Option<String>,
    /// `name` or `namespace/name`.
    pub service: Option<String>,
    /// Dialled port, or the endpoint's.
    pub port: Option<u16>,
    /// A TCP state, or `open`: every one that is not closed.
    pub state: Option<String>,
    pub reason: Option<String>,
    /// `mutual_tls` or `none`.
    pub security: Option<String>,
    /// SPIFFE ID at either end, with or without `spiffe://`; `*` at one end of it stands for the rest.
    pub principal: Option<String>,
    /// Closed ones instead of open ones.
    pub closed: bool,
}

impl ConnectionFilter {
    /// # Errors
    /// A sentence for whoever wrote the query.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut filter = Self::default();
        for (key, value) in query::parse(text) {
            match key.as_str() {
                "namespace" => filter.namespace = Some(value),
                "workload" => filter.workload = Some(value),
                "service" => filter.service = Some(value),
                "port" => {
                    let port = value
                        .parse()
                        .map_err(|_| format!("port must be a number up to 65535, got {value:?}"))?;
                    filter.port = Some(port);
                }
                "state" => filter.state = Some(value),
                "reason" => {
                    value.parse::<Reason>()?;
                    filter.reason = Some(value);
                }
                "security" => {
                    if ![security::MUTUAL_TLS, security::NONE].contains(&value.as_str()) {
                        return Err(format!(
                            "security must be {} or {}, got {value:?}",
                            security::MUTUAL_TLS,
                            security::NONE
                        ));
                    }
                    filter.security = Some(value);
                }
                "principal" => filter.principal = Some(value),
                "closed" => {
                    filter.closed = match value.as_str() {
                        "true" | "1" | "" => true,
                        "false" | "0" => false,
                        _ => return Err(format!("closed must be true or false, got {value:?}")),
                    }
                }
                _ => {
                    return Err(format!(
                        "unknown filter {key:?}; known are namespace, workload, service, port, state, reason, security, principal, closed"
                    ));
                }
            }
        }
        // Only a closed connection has a reason.
        filter.closed |= filter.reason.is_some() || filter.state.as_deref() == Some("closed");
        Ok(filter)
    }

    pub fn to_query(&self) -> String {
        let port = self.port.map(|p| p.to_string());
        let pairs = [
            ("namespace", self.namespace.as_deref()),
            ("workload", self.workload.as_deref()),
            ("service", self.service.as_deref()),
            ("port", port.as_deref()),
            ("state", self.state.as_deref()),
            ("reason", self.reason.as_deref()),
            ("security", self.security.as_deref()),
            ("principal", self.principal.as_deref()),
            ("closed", self.closed.then_some("true")),
        ];
        query::build(pairs.into_iter().filter_map(|(k, v)| Some((k, v?))))
    }

    pub fn matches(&self, c: &Connection) -> bool {
        let any = |wanted: &str, names: &[&Option<String>]| {
            names
                .iter()
                .filter_map(|n| n.as_deref())
                .any(|name| named(wanted, name))
        };
        self.namespace.as_ref().is_none_or(|ns| {
            c.workload
                .as_deref()
                .and_then(|w| w.split_once('/'))
                .is_some_and(|(have, _)| have == ns)
        }) && self
            .workload
            .as_ref()
            .is_none_or(|w| any(w, &[&c.workload, &c.source_workload, &c.upstream_workload]))
            && self.service.as_ref().is_none_or(|s| any(s, &[&c.service]))
            && self.port.is_none_or(|p| {
                port_of(&c.original_dst) == Some(p)
                    || c.upstream.as_deref().and_then(port_of) == Some(p)
            })
            && self.state.as_ref().is_none_or(|s| match s.as_str() {
                "open" => !c.is_closed(),
                state => c.state == state,
            })
            && self
                .reason
                .as_ref()
                .is_none_or(|r| c.reason.as_ref() == Some(r))
            && self.security.as_ref().is_none_or(|s| c.security == *s)
            && self.principal.as_ref().is_none_or(|wanted| {
                [&c.source_principal, &c.destination_principal]
                    .into_iter()
                    .flatten()
                    .any(|have| is_principal(wanted, have))
            })
    }
}

/// `name` matches in every namespace, `namespace/name` in one.
pub(crate) fn named(wanted: &str, name: &str) -> bool {
    if wanted.contains('/') {
        wanted == name
    } else {
        name.split_once('/').is_some_and(|(_, n)| n == wanted)
    }
}

/// As AuthorizationPolicy compares principals: exact, `prefix*`, `*suffix` or `*`.
fn is_principal(wanted: &str, have: &str) -> bool {
    let bare = |text: &'_ str| text.strip_prefix("spiffe://").unwrap_or(text).to_owned();
    let (wanted, have) = (bare(wanted), bare(have));
    match (wanted.strip_prefix('*'), wanted.strip_suffix('*')) {
        (Some(suffix), _) => have.ends_with(suffix),
        (None, Some(prefix)) => have.starts_with(prefix),
        (None, None) => have == wanted,
    }
}

fn port_of(addr: &str) -> Option<u16> {
    addr.rsplit_once(':')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::ConnectionFilter;
    use crate::admin::api::Connection;

    fn connection() -> Connection {
        Connection {
            workload: Some("shop/client".into()),
            service: Some("shop/web".into()),
            original_dst: "10.96.0.1:80".into(),
            upstream: Some("[fd00::2]:8080".into()),
            upstream_workload: Some("shop/web-1".into()),
            security: "mutual_tls".into(),
            destination_principal: Some("spiffe://mesh.example/ns/shop/sa/web".into()),
            state: "established".into(),
            ..Connection::default()
        }
    }

    #[test]
    fn each_filter_selects() {
        for (query, matches) in [
            ("", true),
            ("namespace=shop", true),
            ("namespace=other", false),
            ("workload=client", true),
            ("workload=shop/web-1", true),
            ("workload=other/client", false),
            ("service=web&port=80", true),
            ("port=8080", true),
            ("port=81", false),
            ("state=open", true),
            ("state=established", true),
            ("state=close_wait", false),
            ("state=closed", false),
            ("reason=completed", false),
            ("security=mutual_tls", true),
            ("security=none", false),
            ("principal=mesh.example/ns/shop/sa/web", true),
            ("principal=spiffe://mesh.example/ns/shop/sa/web", true),
            ("principal=mesh.example/ns/shop/*", true),
            ("principal=*/sa/web", true),
            ("principal=*", true),
            ("principal=mesh.example/ns/shop/sa/we", false),
            ("principal=*/sa/client", false),
        ] {
            let filter = ConnectionFilter::parse(query).unwrap();
            assert_eq!(filter.matches(&connection()), matches, "{query}");
            let again = filter.to_query();
            assert_eq!(
                ConnectionFilter::parse(again.trim_start_matches('?')),
                Ok(filter)
            );
        }
    }

    #[test]
    fn a_reason_is_only_a_closed_connections() {
        assert!(
            ConnectionFilter::parse("reason=upstream_timeout")
                .unwrap()
                .closed
        );
    }

    #[test]
    fn what_is_not_understood_is_said() {
        for (query, says) in [
            ("port=http", "port must be a number"),
            ("colour=red", "unknown filter \"colour\""),
            ("reason=bad", "upstream_refused"),
            ("closed=maybe", "true or false"),
            ("security=tls", "mutual_tls or none"),
        ] {
            let error = ConnectionFilter::parse(query).unwrap_err();
            assert!(error.contains(says), "{query}: {error}");
        }
    }
}
