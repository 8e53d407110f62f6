//! `GET /v1/explain?source=&destination=`: what would happen to a connection or a request, and why.

use http::{HeaderName, HeaderValue, Method, Request, Uri, request::Parts};
use serde::{Deserialize, Serialize};

use crate::admin::query;

/// The question, as it was typed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainQuery {
    /// A workload, `name` or `namespace/name`, or an address.
    pub source: String,
    /// A service or workload (`name`, `namespace/name`, `name.namespace[.svc...]`) or an address, and `:port`.
    pub destination: String,
    /// Namespace of names that have none.
    pub namespace: Option<String>,
    /// Of a request; GET where only something else of it is asked about.
    pub method: Option<String>,
    /// Path and query; `/` where only something else is asked about.
    pub path: Option<String>,
    /// `name: value`; `Host` is the destination as it was typed where it is not among them.
    pub headers: Vec<String>,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    pub source: Party,
    /// What is dialled: its address, and the workload if the address is a workload's.
    pub destination: Party,
    pub port: u16,
    /// The service that the address belongs to.
    pub service: Option<String>,
    /// Whether the connection passes the agent of its source, and why not.
    pub captured: bool,
    pub captured_why: String,
    /// `tcp`, `http` ... as the service declares it.
    pub protocol: String,
    /// `round_robin` ...; empty without a service.
    pub strategy: String,
    /// The match that the request takes, where routes are bound to the port.
    pub route: Option<super::BoundMatch>,
    /// What applies to the request on its way, one sentence each: timeouts, retries, limits, breaker.
    pub traffic: Vec<String>,
    pub candidates: Vec<Candidate>,
    /// Of the connection as a whole.
    pub verdict: Verdict,
    /// What this agent cannot know: policies of another node that may not be up to date there, and the like.
    pub notes: Vec<String>,
}

/// One end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Party {
    pub address: String,
    /// `namespace/name`
    pub workload: Option<String>,
    pub node: Option<String>,
    /// `spiffe://...`
    pub identity: Option<String>,
    /// `enrolled`, or why not.
    pub state: String,
}

/// An endpoint that the connection may go to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    pub address: String,
    pub workload: Option<String>,
    pub node: Option<String>,
    pub identity: Option<String>,
    pub weight: u32,
    /// It takes traffic now.
    pub eligible: bool,
    /// Why not (`weight 0`, `breaker open` ...); empty if it does.
    pub why_not: String,
    pub transport: Transport,
    /// What the destination's side asks for.
    pub mtls: Mtls,
    /// Every policy that applies to the workload, in the order in which they are asked.
    pub policies: Vec<Considered>,
    pub verdict: Verdict,
}

/// How the connection gets to an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transport {
    /// `hbone`: through a mutual TLS tunnel; `plain`.
    pub kind: String,
    /// What decides it: `the endpoint takes tunnels`, `the source is not enrolled` ...
    pub why: String,
}

/// The mode of the port, and where it comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mtls {
    /// `strict`, `permissive`, `disable`; empty where no agent of the mesh decides.
    pub mode: String,
    /// The connection as it would come fits the mode.
    pub ok: bool,
}

/// One policy that was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Considered {
    /// `namespace/name`
    pub policy: String,
    /// `ALLOW` or `DENY`.
    pub action: String,
    pub dry_run: bool,
    pub matched: bool,
    /// The rule that matched, or what did not.
    pub why: String,
}

/// What becomes of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub allowed: bool,
    /// The reason it would end with (see metrics.md), if it is refused.
    pub reason: Option<String>,
    /// The policy that decides.
    pub policy: Option<String>,
    /// A sentence.
    pub why: String,
}

impl ExplainQuery {
    /// # Errors
    /// A sentence for whoever wrote the query.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parsed = Self::default();
        for (key, value) in query::parse(text) {
            match key.as_str() {
                "source" => parsed.source = value,
                "destination" => parsed.destination = value,
                "namespace" => parsed.namespace = Some(value),
                "method" => parsed.method = Some(value),
                "path" => parsed.path = Some(value),
                "header" => parsed.headers.push(value),
                _ => {
                    return Err(format!(
                        "unknown parameter {key:?}; known are source, destination, namespace, method, path, header"
                    ));
                }
            }
        }
        if parsed.source.is_empty() || parsed.destination.is_empty() {
            return Err("give source and destination".into());
        }
        Ok(parsed)
    }

    pub fn to_query(&self) -> String {
        let pairs = [
            ("source", Some(self.source.as_str())),
            ("destination", Some(self.destination.as_str())),
            ("namespace", self.namespace.as_deref()),
            ("method", self.method.as_deref()),
            ("path", self.path.as_deref()),
        ];
        let headers = self
            .headers
            .iter()
            .map(|header| ("header", Some(header.as_str())));
        let pairs = pairs.into_iter().chain(headers);
        query::build(pairs.filter_map(|(k, v)| Some((k, v?))))
    }

    /// The request that is asked about. `None`: it is about the connection alone.
    ///
    /// # Errors
    /// A sentence for whoever asked.
    pub fn request(&self) -> Result<Option<Parts>, String> {
        if self.method.is_none() && self.path.is_none() && self.headers.is_empty() {
            return Ok(None);
        }
        let method = self.method.as_deref().unwrap_or("GET");
        let method = Method::from_bytes(method.as_bytes())
            .map_err(|_| format!("{method:?} is no method of HTTP"))?;
        let path = self.path.as_deref().unwrap_or("/");
        let uri = Some(path)
            .filter(|path| path.starts_with('/') || *path == "*")
            .and_then(|path| path.parse::<Uri>().ok())
            .ok_or_else(|| format!("{path:?} is no path; it begins with /"))?;
        let (mut parts, ()) = Request::new(()).into_parts();
        parts.method = method;
        parts.uri = uri;
        for header in &self.headers {
            let wrong = || format!("{header:?} is no header; write it as name: value");
            let (name, value) = header.split_once(':').ok_or_else(wrong)?;
            let name = HeaderName::from_bytes(name.trim().as_bytes()).map_err(|_| wrong())?;
            let value = HeaderValue::from_str(value.trim()).map_err(|_| wrong())?;
            parts.headers.append(name, value);
        }
        if !parts.headers.contains_key(http::header::HOST)
            && let Ok(host) = HeaderValue::from_str(&self.destination)
        {
            parts.headers.insert(http::header::HOST, host);
        }
        Ok(Some(parts))
    }
}
