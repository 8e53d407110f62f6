//! From routes as they are written to rules and matches.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, Method};

use crate::{
    api::{self, BackendObjectReference, Object, ParentReference},
    model::{Backoff, ResourceName, RetryConditions, RetryPolicy, Service, Timestamp},
    routing::{
        Backend, BackendError, BadExpression, Cors, Expression, Filters, Fraction, HeaderMatch,
        HeaderModifier, Match, Mirror, PathMatch, PathRewrite, QueryMatch, Redirect, Rewrite,
        RouteId, RouteKind, RoutePolicy, RouteTimeouts, Rule, RuleSettings, TextMatch,
    },
};

/// A route, but for what depends on services.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) id: RouteId,
    pub(super) created: Option<Timestamp>,
    /// With their namespaces filled in.
    pub(super) parents: Vec<(ResourceName, ParentReference)>,
    /// What the rules are made from; their matches are left out.
    pub(super) sources: Vec<api::HttpRouteRule>,
    /// Of each rule.
    pub(super) matches: Vec<Arc<[Match]>>,
    /// Why it cannot be in effect. What is read from files has been checked, what comes from elsewhere has not.
    pub(super) error: Option<String>,
}

impl Compiled {
    pub(super) fn http(route: &Object<api::HttpRoute>) -> Self {
        let rules = route.spec.rules();
        let matches: Vec<_> = rules
            .iter()
            .map(|rule| http_matches(&rule.matches))
            .collect();
        let sources = rules.into_iter().map(|mut rule| {
            rule.matches.clear();
            rule
        });
        Self::new(RouteKind::Http, route, sources.collect(), matches)
    }

    pub(super) fn grpc(route: &Object<api::GrpcRoute>) -> Self {
        let rules = &route.spec.rules;
        let matches: Vec<_> = rules
            .iter()
            .map(|rule| grpc_matches(&rule.matches))
            .collect();
        let sources = rules.iter().map(|rule| api::HttpRouteRule {
            name: rule.name.clone(),
            filters: rule
                .filters
                .iter()
                .map(api::GrpcRouteFilter::to_http)
                .collect(),
            backend_refs: rule
                .backend_refs
                .iter()
                .map(api::GrpcBackendRef::to_http)
                .collect(),
            ..api::HttpRouteRule::default()
        });
        Self::new(RouteKind::Grpc, route, sources.collect(), matches)
    }

    fn new<T: api::Route>(
        kind: RouteKind,
        route: &Object<T>,
        sources: Vec<api::HttpRouteRule>,
        matches: Vec<Result<Vec<Match>, BadExpression>>,
    ) -> Self {
        let own = &route.name.namespace;
        let parents = route.body.parent_refs().iter().map(|reference| {
            let namespace = match &reference.namespace {
                Some(namespace) => Arc::from(namespace.as_str()),
                None => Arc::clone(own),
            };
            let name = ResourceName::new(namespace, reference.name.as_str());
            (name, reference.clone())
        });
        let mut error = None;
        let matches = matches.into_iter().enumerate().map(|(index, matches)| {
            Arc::from(matches.unwrap_or_else(|bad| {
                let message = format!("rules[{index}]: bad regular expression: {bad}");
                error.get_or_insert(message);
                Vec::new()
            }))
        });
        Self {
            id: RouteId {
                kind,
                name: route.name.clone(),
            },
            created: route.body.metadata().creation_timestamp,
            parents: parents.collect(),
            matches: matches.collect(),
            sources,
            error,
        }
    }

    /// Positions in `parentRefs` that name a Service, and what they say.
    pub(super) fn parents_to(
        &self,
        service: &ResourceName,
    ) -> impl Iterator<Item = (usize, &ParentReference)> {
        let parents = self.parents.iter().enumerate();
        parents
            .filter(move |(_, (name, reference))| name == service && reference.is_service())
            .map(|(index, (_, reference))| (index, reference))
    }

    pub(super) fn parent_services(&self) -> BTreeSet<ResourceName> {
        let services = self
            .parents
            .iter()
            .filter(|(_, parent)| parent.is_service());
        services.map(|(name, _)| name.clone()).collect()
    }

    pub(super) fn backend_services(&self) -> BTreeSet<ResourceName> {
        let mut services = BTreeSet::new();
        let mut add = |reference: &BackendObjectReference| {
            if reference.is_service() {
                services.insert(self.backend_name(reference));
            }
        };
        for rule in &self.sources {
            mirrors(&rule.filters).for_each(|mirror| add(&mirror.backend_ref));
            for backend in &rule.backend_refs {
                add(&backend.reference());
                mirrors(&backend.filters).for_each(|mirror| add(&mirror.backend_ref));
            }
        }
        services
    }

    fn backend_name(&self, reference: &BackendObjectReference) -> ResourceName {
        let namespace = match &reference.namespace {
            Some(namespace) => Arc::from(namespace.as_str()),
            None => Arc::clone(&self.id.name.namespace),
        };
        ResourceName::new(namespace, reference.name.as_str())
    }

    /// Why a reference leads nowhere, in words.
    pub(super) fn describe(
        &self,
        reference: &BackendObjectReference,
        error: BackendError,
    ) -> String {
        let name = self.backend_name(reference);
        match (error, reference.port) {
            (BackendError::InvalidKind, _) => {
                let kind = reference.kind();
                format!("{kind} {name} is no Service")
            }
            (BackendError::NotFound, Some(port)) => {
                format!("there is no Service {name} with port {port}")
            }
            (BackendError::NotFound, None) => format!("Service {name} is named without a port"),
        }
    }

    /// Mirrors of a rule whose Service is not there.
    pub(super) fn lost_mirrors(
        &self,
        rule: &Rule,
        source: &api::HttpRouteRule,
    ) -> Vec<(BackendObjectReference, BackendError)> {
        let written = mirrors(&source.filters)
            .chain(source.backend_refs.iter().flat_map(|b| mirrors(&b.filters)));
        let backends = rule.backends.iter().flat_map(|b| &b.filters.mirrors);
        let made = rule.filters.mirrors.iter().chain(backends);
        written
            .zip(made)
            .filter(|(_, made)| made.service.is_none())
            .map(|(written, _)| {
                let reference = written.backend_ref.clone();
                let error = match reference.is_service() {
                    true => BackendError::NotFound,
                    false => BackendError::InvalidKind,
                };
                (reference, error)
            })
            .collect()
    }

    /// The rules with their backends as they are now. Those that are the same as before stay.
    pub(super) fn rules<'s>(
        &self,
        previous: &[Arc<Rule>],
        policy: Option<&Arc<RoutePolicy>>,
        service: impl Fn(&ResourceName) -> Option<&'s Service>,
    ) -> Vec<Arc<Rule>> {
        let resolve = |reference: &BackendObjectReference| {
            if !reference.is_service() {
                return Err(BackendError::InvalidKind);
            }
            let name = self.backend_name(reference);
            let port = reference.port.ok_or(BackendError::NotFound)?;
            let found = service(&name).ok_or(BackendError::NotFound)?;
            match found.ports.iter().any(|known| known.port == port) {
                true => Ok((name, port)),
                false => Err(BackendError::NotFound),
            }
        };
        let sources = self.sources.iter().enumerate();
        sources
            .map(|(index, source)| {
                let settings = settings(source, policy, &resolve);
                Rule::new(&self.id, index, settings, previous.get(index))
            })
            .collect()
    }
}

type Resolved = Result<(ResourceName, u16), BackendError>;

fn settings(
    rule: &api::HttpRouteRule,
    policy: Option<&Arc<RoutePolicy>>,
    resolve: &impl Fn(&BackendObjectReference) -> Resolved,
) -> RuleSettings {
    let timeouts = rule.timeouts.unwrap_or_default();
    RuleSettings {
        name: rule.name.as_deref().map(Arc::from),
        filters: filters(&rule.filters, resolve),
        backends: rule
            .backend_refs
            .iter()
            .map(|backend| Backend {
                service: resolve(&backend.reference()),
                weight: backend.weight,
                filters: filters(&backend.filters, resolve),
            })
            .collect(),
        timeouts: RouteTimeouts {
            request: timeouts.request.map(|d| d.0),
            backend_request: timeouts.backend_request.map(|d| d.0),
        },
        retry: rule.retry.as_ref().map(retry),
        policy: policy.cloned(),
    }
}

/// Codes that `retry` repeats when it lists none.
const RETRY_CODES: [(u16, u16); 2] = [(500, 500), (502, 504)];

/// `rules[].retry` of the experimental channel: its codes, and whatever says that no answer came.
fn retry(retry: &api::HttpRouteRetry) -> RetryPolicy {
    let status_codes = match retry.codes.as_slice() {
        [] => RETRY_CODES.to_vec(),
        codes => codes.iter().map(|&code| (code, code)).collect(),
    };
    let mut backoff = Backoff::default();
    if let Some(least) = retry.backoff {
        backoff.base = least.0;
        backoff.max = backoff.max.max(least.0 * 10);
    }
    RetryPolicy {
        attempts: retry.attempts.unwrap_or(1),
        conditions: RetryConditions {
            connect_failure: true,
            reset: true,
            refused_stream: true,
            attempt_timeout: true,
            status_codes,
            grpc_codes: Vec::new(),
        },
        non_idempotent: false,
        backoff,
        attempt_timeout: None,
    }
}

fn mirrors(filters: &[api::HttpRouteFilter]) -> impl Iterator<Item = &api::RequestMirror> {
    filters
        .iter()
        .filter_map(|filter| filter.request_mirror.as_ref())
}

fn filters(
    filters: &[api::HttpRouteFilter],
    resolve: &impl Fn(&BackendObjectReference) -> Resolved,
) -> Filters {
    let mut made = Filters::default();
    for filter in filters {
        if let Some(modifier) = &filter.request_header_modifier {
            made.request_headers = Some(header_modifier(modifier));
        }
        if let Some(modifier) = &filter.response_header_modifier {
            made.response_headers = Some(header_modifier(modifier));
        }
        if let Some(mirror) = &filter.request_mirror {
            made.mirrors.push(Mirror {
                service: resolve(&mirror.backend_ref).ok(),
                fraction: fraction(mirror),
            });
        }
        if let Some(redirect) = &filter.request_redirect {
            made.redirect = Some(Redirect {
                scheme: redirect.scheme.map(|scheme| match scheme {
                    api::Scheme::Http => Arc::from("http"),
                    api::Scheme::Https => Arc::from("https"),
                }),
                hostname: redirect.hostname.as_deref().map(Arc::from),
                path: redirect.path.as_ref().map(path_rewrite),
                port: redirect.port,
                status: redirect.status_code.unwrap_or(302),
            });
        }
        if let Some(rewrite) = &filter.url_rewrite {
            made.rewrite = Some(Rewrite {
                hostname: rewrite.hostname.as_deref().and_then(header_value),
                path: rewrite.path.as_ref().map(path_rewrite),
            });
        }
        if let Some(cors) = &filter.cors {
            made.cors = Some(shared(cors));
        }
    }
    made
}

/// Of several actions for one header the first counts.
fn header_modifier(modifier: &api::HeaderFilter) -> HeaderModifier {
    let pairs = |list: &[api::HeaderValueOf]| {
        let mut pairs: Vec<(HeaderName, HeaderValue)> = Vec::with_capacity(list.len());
        for header in list {
            if let (Some(name), Some(value)) =
                (header_name(&header.name), header_value(&header.value))
                && pairs.iter().all(|(known, _)| *known != name)
            {
                pairs.push((name, value));
            }
        }
        pairs
    };
    HeaderModifier {
        set: pairs(&modifier.set),
        add: pairs(&modifier.add),
        remove: modifier
            .remove
            .iter()
            .filter_map(|name| header_name(name))
            .collect(),
    }
}

fn fraction(mirror: &api::RequestMirror) -> Fraction {
    match (mirror.percent, mirror.fraction) {
        (Some(percent), _) => Fraction {
            numerator: percent,
            denominator: 100,
        },
        (None, Some(fraction)) => Fraction {
            numerator: fraction.numerator,
            denominator: fraction.denominator,
        },
        (None, None) => Fraction::ALL,
    }
}

fn path_rewrite(modifier: &api::PathModifier) -> PathRewrite {
    let text = |text: &Option<String>| Arc::from(text.as_deref().unwrap_or_default());
    match modifier.modifier_type {
        api::PathModifierType::ReplaceFullPath => {
            PathRewrite::Full(text(&modifier.replace_full_path))
        }
        api::PathModifierType::ReplacePrefixMatch => {
            PathRewrite::Prefix(text(&modifier.replace_prefix_match))
        }
    }
}

fn shared(cors: &api::CorsFilter) -> Cors {
    let any = |list: &[String]| list.iter().any(|one| one == "*");
    let allow_credentials = cors.allow_credentials.unwrap_or(false);
    // A browser with credentials takes `*` for the name of a header.
    let expose = match any(&cors.expose_headers) {
        true if allow_credentials => None,
        _ if cors.expose_headers.is_empty() => None,
        _ => header_value(&cors.expose_headers.join(", ")),
    };
    Cors {
        allow_origins: cors
            .allow_origins
            .iter()
            .map(|o| Arc::from(o.as_str()))
            .collect(),
        allow_methods: cors
            .allow_methods
            .iter()
            .filter(|name| *name != "*")
            .filter_map(|name| Method::from_bytes(name.as_bytes()).ok())
            .collect(),
        allow_any_method: any(&cors.allow_methods),
        allow_headers: cors
            .allow_headers
            .iter()
            .filter(|name| *name != "*")
            .filter_map(|name| header_name(name))
            .collect(),
        allow_any_header: any(&cors.allow_headers),
        expose_headers: expose,
        allow_credentials,
        max_age: Some(Duration::from_secs(u64::from(cors.max_age.unwrap_or(5)))),
    }
}

/// No match means every request.
fn http_matches(matches: &[api::HttpRouteMatch]) -> Result<Vec<Match>, BadExpression> {
    let everything = [api::HttpRouteMatch::default()];
    let matches = if matches.is_empty() {
        &everything
    } else {
        matches
    };
    matches
        .iter()
        .map(|one| {
            Ok(Match {
                path: match &one.path {
                    None => PathMatch::prefix("/"),
                    Some(path) => match path.match_type {
                        api::PathMatchType::Exact => PathMatch::Exact(path.value.as_str().into()),
                        api::PathMatchType::PathPrefix => PathMatch::prefix(&path.value),
                        api::PathMatchType::RegularExpression => {
                            PathMatch::Regex(Expression::new(&path.value)?)
                        }
                    },
                },
                method: one.method.map(method),
                headers: headers(&one.headers)?,
                queries: queries(&one.query_params)?,
            })
        })
        .collect()
}

fn grpc_matches(matches: &[api::GrpcRouteMatch]) -> Result<Vec<Match>, BadExpression> {
    let everything = [api::GrpcRouteMatch::default()];
    let matches = if matches.is_empty() {
        &everything
    } else {
        matches
    };
    matches
        .iter()
        .map(|one| {
            let part = |pick: fn(&api::GrpcMethodMatch) -> &Option<String>| {
                let method = one.method.as_ref();
                let text = method.and_then(|m| pick(m).as_deref().filter(|t| !t.is_empty()));
                let kind = method.map(|m| m.match_type).unwrap_or_default();
                text.map(|text| text_match(kind, text)).transpose()
            };
            Ok(Match {
                path: PathMatch::Grpc {
                    service: part(|m| &m.service)?,
                    method: part(|m| &m.method)?,
                },
                method: None,
                headers: headers(&one.headers)?,
                queries: Vec::new(),
            })
        })
        .collect()
}

fn method(method: api::HttpMethod) -> Method {
    match method {
        api::HttpMethod::Get => Method::GET,
        api::HttpMethod::Head => Method::HEAD,
        api::HttpMethod::Post => Method::POST,
        api::HttpMethod::Put => Method::PUT,
        api::HttpMethod::Delete => Method::DELETE,
        api::HttpMethod::Connect => Method::CONNECT,
        api::HttpMethod::Options => Method::OPTIONS,
        api::HttpMethod::Trace => Method::TRACE,
        api::HttpMethod::Patch => Method::PATCH,
    }
}

fn text_match(kind: api::MatchType, text: &str) -> Result<TextMatch, BadExpression> {
    Ok(match kind {
        api::MatchType::Exact => TextMatch::Exact(text.into()),
        api::MatchType::RegularExpression => TextMatch::Regex(Expression::new(text)?),
    })
}

/// Of several for one name the first counts.
fn headers(headers: &[api::HeaderMatch]) -> Result<Vec<HeaderMatch>, BadExpression> {
    let mut made: Vec<HeaderMatch> = Vec::with_capacity(headers.len());
    for header in headers {
        if let Some(name) = header_name(&header.name)
            && made.iter().all(|known| known.name != name)
        {
            let value = text_match(header.match_type, &header.value)?;
            made.push(HeaderMatch { name, value });
        }
    }
    Ok(made)
}

fn queries(parameters: &[api::QueryParamMatch]) -> Result<Vec<QueryMatch>, BadExpression> {
    let mut made: Vec<QueryMatch> = Vec::with_capacity(parameters.len());
    for parameter in parameters {
        if made.iter().all(|known| *known.name != *parameter.name) {
            made.push(QueryMatch {
                name: parameter.name.as_str().into(),
                value: text_match(parameter.match_type, &parameter.value)?,
            });
        }
    }
    Ok(made)
}

fn header_name(name: &str) -> Option<HeaderName> {
    HeaderName::from_bytes(name.as_bytes()).ok()
}

fn header_value(value: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(value).ok()
}
