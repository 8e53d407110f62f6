//! Tests of authorization: each sentence of its definition, and properties against a naive evaluator.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, LazyLock},
};

use http::{HeaderMap, HeaderName};

use super::{AuthorizationPolicies, Authorizer, Authorizers, Facts, Verdict, layer::Policy};
use crate::{
    api::{AuthorizationPolicySpec, Diff, Object, parse_bytes},
    model::{ResourceName, SpiffeId, TrustDomain},
    policy::{HttpFacts, RequestHost, RequestPath, Trust},
};

mod naive;
mod properties;
mod requests;
mod sentences;
mod sharing;
mod words;

const ROOT: &str = "mesh-system";

fn trust() -> Trust {
    Trust {
        domain: TrustDomain::default(),
        aliases: vec![TrustDomain::new("old.example").unwrap()],
    }
}

/// Policies of one text, each document without its first lines.
fn policies(documents: &[&str]) -> Vec<Policy> {
    let text: Vec<String> = documents
        .iter()
        .map(|document| {
            format!(
                "apiVersion: mesh.covet.dev/v1alpha1\nkind: AuthorizationPolicy\n{document}\n---\n"
            )
        })
        .collect();
    match parse_bytes("f", text.concat().as_bytes()) {
        Ok((config, _)) => config.authorization_policies,
        Err(errors) => panic!("{errors:#?}"),
    }
}

fn all(policies: &[Policy]) -> AuthorizationPolicies {
    let mut all = AuthorizationPolicies::new(ROOT);
    all.update(&Diff::between(&[], policies), &trust());
    all
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    owned.collect()
}

fn authorizer(
    policies: &[Policy],
    namespace: &str,
    labels: &BTreeMap<String, String>,
) -> Arc<Authorizer> {
    all(policies).authorizer(namespace, labels, &mut Authorizers::default())
}

fn with_spec(namespace: &str, name: &str, spec: AuthorizationPolicySpec) -> Policy {
    static ANY: LazyLock<Policy> =
        LazyLock::new(|| Arc::clone(&policies(&["metadata: {name: any}\nspec: {}"])[0]));
    let mut object = Object::clone(&ANY);
    object.name = ResourceName::new(namespace, name);
    object.body.spec = spec;
    Arc::new(object)
}

/// A connection to port 80 of a workload with address 10.0.0.1. `None`: a client without identity.
struct Client {
    id: Option<SpiffeId>,
    ip: IpAddr,
    port: u16,
    request: Option<Request>,
}

#[derive(Debug)]
struct Request {
    method: String,
    path: RequestPath<'static>,
    host: RequestHost<'static>,
    headers: HeaderMap,
}

impl Request {
    fn new(method: &str, path: &str, host: &str, headers: &[(&str, &str)]) -> Self {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        Self {
            method: method.to_owned(),
            path: RequestPath::new(path).into_owned(),
            host: RequestHost::new(host).into_owned(),
            headers: map,
        }
    }

    fn facts(&self) -> HttpFacts<'_> {
        HttpFacts {
            method: &self.method,
            path: &self.path,
            host: &self.host,
            headers: &self.headers,
        }
    }
}

fn client(principal: &str) -> Client {
    Client {
        id: (!principal.is_empty()).then(|| format!("spiffe://{principal}").parse().unwrap()),
        ip: "10.9.0.1".parse().unwrap(),
        port: 80,
        request: None,
    }
}

impl Client {
    fn at_ip(mut self, ip: &str) -> Self {
        self.ip = ip.parse().unwrap();
        self
    }

    fn on_port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// A request to host shop.
    fn asks(mut self, method: &str, path: &str, headers: &[(&str, &str)]) -> Self {
        self.request = Some(Request::new(method, path, "shop", headers));
        self
    }

    fn of_host(mut self, host: &str) -> Self {
        self.request = Some(Request::new("GET", "/", host, &[]));
        self
    }

    fn facts(&self) -> Facts<'_> {
        Facts {
            source: self.id.as_ref(),
            source_ip: self.ip,
            destination_ip: "10.0.0.1".parse().unwrap(),
            destination_port: self.port,
            http: self.request.as_ref().map(Request::facts),
        }
    }
}

fn show(verdict: Verdict<'_>) -> String {
    match verdict {
        Verdict::Allow(None) => "allow".into(),
        Verdict::Allow(Some(by)) => format!("allow by {by}"),
        Verdict::Deny(None) => "deny".into(),
        Verdict::Deny(Some(by)) => format!("deny by {by}"),
    }
}
