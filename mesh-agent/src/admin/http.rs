//! What both servers share: accepting, deadlines, bounds, answers.

use std::{convert::Infallible, future::Future, sync::Arc, time::Duration};

use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};

use super::api::ErrorBody;

/// Whole answers, and streams of lines.
pub(super) type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// Connections at once to one server; more wait to be accepted.
pub(super) const MAX_CONNECTIONS: usize = 64;
/// For a client to send its request line and headers, and between two requests.
const HEADER_DEADLINE: Duration = Duration::from_secs(30);
/// Pause after a failed accept (no descriptors): it would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts until dropped; connections end with it.
pub(super) async fn accept_loop<S, F, A, H, R>(what: &'static str, mut accept: A, handle: H)
where
    A: FnMut() -> F,
    F: Future<Output = std::io::Result<S>>,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Answer> + Send + 'static,
{
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else {
            return;
        };
        match accept().await {
            Ok(stream) => {
                connections.spawn(serve_one(stream, permit, handle.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "{what}: accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn serve_one<S, H, R>(stream: S, _permit: OwnedSemaphorePermit, handle: H)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Answer> + Send + 'static,
{
    let service = service_fn(move |request| {
        let answer = handle(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the admin interface ended badly");
    }
}

/// Runs what may block on a thread for it.
pub(super) async fn blocking(work: impl FnOnce() -> Answer + Send + 'static) -> Answer {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| {
            tracing::error!(%error, "a request of the admin interface failed");
            refuse(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the agent failed on this request; its log has the error",
            )
        })
}

pub(super) fn text(status: StatusCode, content_type: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)).boxed_unsync());
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

pub(super) fn json(body: &impl Serialize) -> Answer {
    match serde_json::to_string(body) {
        Ok(body) => text(StatusCode::OK, "application/json", body),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

pub(super) fn refuse(status: StatusCode, error: &str) -> Answer {
    let body = serde_json::json!(ErrorBody {
        error: error.to_owned()
    });
    text(status, "application/json", body.to_string())
}

pub(super) fn not_allowed(path: &str, methods: &'static str) -> Answer {
    let mut answer = refuse(
        StatusCode::METHOD_NOT_ALLOWED,
        &format!("{path} answers only {methods}"),
    );
    answer
        .headers_mut()
        .insert(hyper::header::ALLOW, HeaderValue::from_static(methods));
    answer
}
