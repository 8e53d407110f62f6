//! The API behind the command line, over the Unix socket. HTTP/1.1, JSON, versioned paths.

use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::{Method, Request, StatusCode, body::Incoming};

use super::{
    AdminState, LocalSocket,
    api::{ExplainQuery, LogLevel, PortEndpoints, Released, Routes},
    bundle,
    filter::ConnectionFilter,
    http::{self, Answer, accept_loop, blocking},
    query, tap,
};

/// Bytes of a request's body; the largest that is meant is a log filter.
const MAX_BODY: usize = 64 * 1024;
const BODY_DEADLINE: Duration = Duration::from_secs(10);

/// Serves until dropped.
pub async fn serve(socket: LocalSocket, state: AdminState) {
    accept_loop(
        "admin socket",
        || socket.accept(),
        move |request| answer(request, state.clone()),
    )
    .await;
}

async fn answer(request: Request<Incoming>, state: AdminState) -> Answer {
    let path = request.uri().path().to_owned();
    let text = request.uri().query().unwrap_or_default().to_owned();
    let Some(known) = methods(&path) else {
        return http::refuse(
            StatusCode::NOT_FOUND,
            &format!("{path} is not a path of this agent; is it older than the command line?"),
        );
    };
    let method = request.method().clone();
    if !known.split(", ").any(|m| m == method.as_str()) {
        return http::not_allowed(&path, known);
    }
    match (method, path.as_str()) {
        (Method::PUT, "/v1/log-level") => set_log_level(request, &state).await,
        (_, "/v1/log-level") => http::json(&LogLevel {
            filter: state.log.filter(),
        }),
        (_, "/v1/release") => http::json(&Released {
            removed: state.agent.release().await,
        }),
        (_, "/v1/tap") => tap::answer(&text, &state),
        _ => blocking(move || read(&path, &text, &state)).await,
    }
}

/// Paths and what they answer.
fn methods(path: &str) -> Option<&'static str> {
    Some(match path {
        "/v1/status" | "/v1/workloads" | "/v1/services" | "/v1/connections" | "/v1/certs"
        | "/v1/policies" | "/v1/endpoints" | "/v1/routes" | "/v1/explain" | "/v1/config"
        | "/v1/tap" => "GET",
        "/v1/log-level" => "GET, PUT",
        "/v1/release" | "/v1/support-bundle" => "POST",
        _ => return None,
    })
}

fn read(path: &str, text: &str, state: &AdminState) -> Answer {
    match path {
        "/v1/status" => http::json(&state.status()),
        "/v1/workloads" => {
            let mut rows = state.agent.workloads();
            rows.retain(|w| in_namespace(text, &w.name));
            http::json(&rows)
        }
        "/v1/services" => {
            let mut rows = state.agent.services();
            rows.retain(|s| in_namespace(text, &s.name));
            http::json(&rows)
        }
        "/v1/connections" => match ConnectionFilter::parse(text) {
            Ok(filter) => {
                let mut rows = if filter.closed {
                    state.telemetry.closed_connections()
                } else {
                    state.telemetry.open_connections()
                };
                rows.retain(|c| filter.matches(c));
                http::json(&rows)
            }
            Err(error) => http::refuse(StatusCode::BAD_REQUEST, &error),
        },
        "/v1/certs" => {
            let mut certs = state.agent.certificates();
            certs
                .identities
                .retain(|c| in_namespace(text, c.namespace_and_account()));
            http::json(&certs)
        }
        "/v1/policies" => {
            let mut rows = state.agent.policies();
            rows.retain(|p| in_namespace(text, &p.name));
            http::json(&rows)
        }
        "/v1/endpoints" => match endpoints(text, state) {
            Ok(rows) => http::json(&rows),
            Err(error) => http::refuse(StatusCode::BAD_REQUEST, &error),
        },
        "/v1/routes" => match routes(text, state) {
            Ok(routes) => http::json(&routes),
            Err(error) => http::refuse(StatusCode::BAD_REQUEST, &error),
        },
        "/v1/explain" => match ExplainQuery::parse(text).and_then(|q| state.agent.explain(&q)) {
            Ok(explanation) => http::json(&explanation),
            Err(error) => http::refuse(StatusCode::BAD_REQUEST, &error),
        },
        "/v1/config" => http::json(&state.agent.config()),
        _ => http::json(&bundle::collect(state)),
    }
}

fn endpoints(text: &str, state: &AdminState) -> Result<Vec<PortEndpoints>, String> {
    let (service, namespace) = which(text)?;
    let service = service.ok_or("which service? ?service=NAME or NAMESPACE/NAME")?;
    state.agent.endpoints(&service, namespace.as_deref())
}

fn routes(text: &str, state: &AdminState) -> Result<Routes, String> {
    let (service, namespace) = which(text)?;
    state.agent.routes(service.as_deref(), namespace.as_deref())
}

/// `?service=` and `?namespace=`
fn which(text: &str) -> Result<(Option<String>, Option<String>), String> {
    let (mut service, mut namespace) = (None, None);
    for (key, value) in query::parse(text) {
        match key.as_str() {
            "service" => service = Some(value),
            "namespace" => namespace = Some(value),
            _ => return Err(format!("{key} is not asked for here: service, namespace")),
        }
    }
    Ok((service, namespace))
}

fn in_namespace(text: &str, name: &str) -> bool {
    query::parse(text)
        .iter()
        .filter(|(key, _)| key == "namespace")
        .all(|(_, wanted)| name.split_once('/').is_some_and(|(ns, _)| ns == wanted))
}

async fn set_log_level(request: Request<Incoming>, state: &AdminState) -> Answer {
    let body = Limited::new(request.into_body(), MAX_BODY).collect();
    let bytes = match tokio::time::timeout(BODY_DEADLINE, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) => return http::refuse(StatusCode::BAD_REQUEST, &error.to_string()),
        Err(_) => return http::refuse(StatusCode::REQUEST_TIMEOUT, "the body did not come"),
    };
    let level: LogLevel = match serde_json::from_slice(&bytes) {
        Ok(level) => level,
        Err(error) => return http::refuse(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let before = state.log.filter();
    match state.log.set_filter(&level.filter) {
        Ok(()) => {
            tracing::info!(%before, now = %level.filter, "log filter changed");
            http::json(&level)
        }
        Err(error) => http::refuse(StatusCode::BAD_REQUEST, &error.to_string()),
    }
}
