//! What Prometheus and the kubelet read: `/metrics`, `/healthz`, `/readyz`, nothing else.

use std::fmt::Write as _;

use hyper::{Method, Request, StatusCode, body::Incoming};
use tokio::net::TcpListener;

use super::{
    AdminState,
    http::{self, Answer, accept_loop, blocking},
};
use crate::telemetry::CONTENT_TYPE;

const PLAIN: &str = "text/plain; charset=utf-8";

/// Serves until dropped.
pub async fn serve(listener: TcpListener, state: AdminState) {
    let accept = || async { listener.accept().await.map(|(stream, _)| stream) };
    accept_loop("metrics", accept, move |request| {
        answer(request, state.clone())
    })
    .await;
}

async fn answer(request: Request<Incoming>, state: AdminState) -> Answer {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return http::not_allowed(request.uri().path(), "GET, HEAD");
    }
    match request.uri().path() {
        "/metrics" => {
            blocking(move || http::text(StatusCode::OK, CONTENT_TYPE, state.telemetry.exposition()))
                .await
        }
        // That it answers is what it says.
        "/healthz" => http::text(StatusCode::OK, PLAIN, "ok\n".into()),
        "/readyz" => blocking(move || readyz(&state)).await,
        _ => http::text(
            StatusCode::NOT_FOUND,
            PLAIN,
            "here are /metrics, /healthz and /readyz\n".into(),
        ),
    }
}

fn readyz(state: &AdminState) -> Answer {
    let (ready, conditions) = state.readiness();
    let mut body = String::from(if ready { "ready\n" } else { "not ready\n" });
    for c in &conditions {
        let mark = if c.ok { "ok    " } else { "not ok" };
        // Writing to a String does not fail.
        let _ = writeln!(body, "{mark} {}: {}", c.name, c.detail);
    }
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    http::text(status, PLAIN, body)
}
