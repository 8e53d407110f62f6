//! Copies of requests (RequestMirror), sent and forgotten.
//!
//! A copy never slows or fails the request that it is of: it is sent by a task of its own, there are only so many at a
//! time, and one whose receiver does not keep up with the client is cut. Its Host is that of the request: not Envoy's
//! habit of adding `-shadow`, which a service that looks at its name would trip over.

use std::{pin::Pin, sync::Arc, time::Duration};

use ::http::{Request, request::Parts};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};

use super::{
    attempt,
    body::{Body, Replay},
    headers::{self, Hop},
    outbound::Outbound,
    pool::{Take, UpstreamBody},
};
use crate::{
    catalog::{Snapshot, Upstream},
    routing::Filters,
    telemetry::{self, Reason},
};

/// Copies at once, in the whole agent.
const COPIES: usize = 128;
/// Bytes of one copy's body that may wait for its receiver.
const WAITING: usize = 256 << 10;
/// A copy is given up after this.
const LIMIT: Duration = Duration::from_secs(30);
/// Bytes of an answer that are read, so that its connection can be used again.
const ANSWER: usize = 256 << 10;

/// The places for copies.
#[derive(Debug)]
pub(in crate::proxy) struct Mirrors(Arc<Semaphore>);

impl Default for Mirrors {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(COPIES)))
    }
}

/// Sends the copies that the filters ask for. Before the first attempt.
pub(super) fn mirror<'a>(
    outbound: &Arc<Outbound>,
    catalog: &Snapshot,
    filters: impl Iterator<Item = &'a Filters>,
    parts: &Parts,
    hop: &Hop,
    replay: &Replay,
) {
    for mirror in filters.flat_map(|filters| &filters.mirrors) {
        let Some((name, port)) = &mirror.service else {
            continue;
        };
        if !mirror.fraction.includes(rand::random()) {
            continue;
        }
        let ipv6 = outbound.dialled.is_ipv6();
        let Some(upstream) = catalog.backend(name, *port, ipv6) else {
            continue;
        };
        let telemetry = Arc::clone(&outbound.shared.telemetry);
        let place = Arc::clone(&outbound.shared.mirrors.0).try_acquire_owned();
        let (Ok(place), Some(body)) = (place, replay.copy(WAITING)) else {
            telemetry.mirror(telemetry::Mirror::Dropped);
            continue;
        };
        let copy = send(
            Arc::clone(outbound),
            Arc::clone(upstream),
            parts.clone(),
            hop.clone(),
            body,
            place,
        );
        tokio::spawn(async move {
            let outcome = match timeout(LIMIT, copy).await {
                Ok(Ok(())) => telemetry::Mirror::Sent,
                Ok(Err(reason)) => {
                    tracing::debug!(%reason, "the copy of a request failed");
                    telemetry::Mirror::Failed
                }
                Err(_) => telemetry::Mirror::Failed,
            };
            telemetry.mirror(outcome);
        });
    }
}

async fn send(
    outbound: Arc<Outbound>,
    upstream: Arc<Upstream>,
    mut parts: Parts,
    hop: Hop,
    body: Body,
    _place: OwnedSemaphorePermit,
) -> Result<(), Reason> {
    let index = attempt::any(&outbound, &upstream).ok_or(Reason::NoEndpoints)?;
    let version = attempt::version(&outbound, &upstream);
    let address = upstream.endpoints[index].endpoint.address;
    let key = attempt::key(
        &outbound.shared,
        &outbound.served,
        outbound.client,
        version,
        address,
    )?;
    let options = &upstream.service.traffic.pool;
    let deadline = Instant::now() + outbound.shared.options.connect_timeout;
    let checkout = outbound
        .shared
        .http
        .checkout(&key, options, Take::Any, || {
            attempt::connect(&outbound, &upstream, index, deadline)
        })
        .await?;
    let streamed = !body.is_end_stream() && body.size_hint().exact().is_none();
    parts.headers.remove(::http::header::EXPECT);
    headers::for_upstream(&mut parts, version, &hop, &outbound.fallback, streamed);
    let sent = checkout.send(Request::from_parts(parts, body)).await;
    let response = sent.map_err(|failed| failed.reason)?;
    throw_away(response.into_body()).await;
    Ok(())
}

/// Reads an answer as far as it is worth it.
async fn throw_away(mut body: UpstreamBody) {
    let mut body = Pin::new(&mut body);
    let mut bytes = 0;
    while let Some(Ok(frame)) = body.frame().await {
        bytes += frame.data_ref().map_or(0, bytes::Bytes::len);
        if bytes > ANSWER {
            return;
        }
    }
}
