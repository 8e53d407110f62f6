//! Sends spans to a collector (OTLP over gRPC): in batches, repeated with growing pauses while it is away, never in the
//! way of requests.

use std::{
    future::Future,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, trace_service_client::TraceServiceClient,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout, timeout_at},
};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use super::{
    otlp,
    span::{Trace, Tracing},
};
use crate::telemetry::{Telemetry, shared::Shared};

/// Requests that wait for the export; above this their spans are dropped and counted.
const QUEUE: usize = 2_048;
/// Requests of one batch.
const BATCH: usize = 256;
/// How long a batch gathers.
const GATHER: Duration = Duration::from_secs(1);
/// For one attempt to send a batch.
const DEADLINE: Duration = Duration::from_secs(10);
/// For all attempts; then the batch is dropped and counted.
const GIVE_UP: Duration = Duration::from_secs(60);
/// Pauses between attempts: doubled from the first to the last, each shortened at random by up to a half.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// For all that is queued when the agent ends.
pub(crate) const LAST: Duration = Duration::from_secs(5);

/// Where spans go, and which.
#[derive(Clone, Debug, PartialEq)]
pub struct TracingOptions {
    /// `http://HOST:PORT`
    pub endpoint: String,
    /// Share of the requests that begin a trace at this agent which are sampled, 0 to 1.
    pub ratio: f64,
}

#[derive(Debug, thiserror::Error)]
pub enum TracingError {
    #[error(
        "the collector's address {0:?} is not http://HOST:PORT; TLS is not spoken to collectors, so use one on this node or network"
    )]
    Endpoint(String),
    #[error("spans already go to a collector")]
    AlreadyStarted,
}

impl TracingOptions {
    /// Says whether the address can be used.
    ///
    /// # Errors
    /// What is expected of it.
    pub fn check(endpoint: &str) -> Result<Endpoint, TracingError> {
        let wrong = || TracingError::Endpoint(endpoint.to_owned());
        let uri: http::Uri = endpoint.parse().map_err(|_| wrong())?;
        let plain = uri.scheme_str() == Some("http")
            && matches!(uri.path(), "" | "/")
            && uri.query().is_none()
            && uri.authority().is_some_and(|a| !a.as_str().contains('@'));
        if !plain {
            return Err(wrong());
        }
        Ok(Endpoint::from(uri).connect_timeout(DEADLINE))
    }
}

impl Telemetry {
    /// From now on sampled requests have spans. [`Exporter::run`] sends them. Needs a tokio runtime.
    ///
    /// # Errors
    /// The address cannot be used, or this was called before.
    pub fn start_tracing(&self, options: &TracingOptions) -> Result<Exporter, TracingError> {
        let channel = TracingOptions::check(&options.endpoint)?.connect_lazy();
        let (queue, traces) = mpsc::channel(QUEUE);
        let tracing = Tracing {
            ratio: options.ratio,
            queue,
            counts: self.counts(),
        };
        self.shared
            .tracing
            .set(tracing)
            .map_err(|_| TracingError::AlreadyStarted)?;
        Ok(Exporter {
            shared: self.shared.clone(),
            endpoint: options.endpoint.clone(),
            client: TraceServiceClient::new(channel),
            traces,
            failing: false,
        })
    }
}

/// Sends spans until it is told to stop.
#[derive(Debug)]
pub struct Exporter {
    shared: Arc<Shared>,
    endpoint: String,
    client: TraceServiceClient<Channel>,
    traces: mpsc::Receiver<Box<Trace>>,
    /// The last attempt failed, and the log says so.
    failing: bool,
}

/// What one attempt came to.
enum Sent {
    Done,
    /// Worth another attempt.
    Later,
    Never,
}

impl Exporter {
    /// Until `stop`; then what is queued is sent, for as long as [`LAST`] allows.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                biased;
                () = &mut stop => break,
                () = gather(&mut self.traces, &mut batch) => {}
            }
            let request = self.encode(&batch);
            tokio::select! {
                biased;
                () = &mut stop => break,
                () = self.deliver(&request, batch.len(), spans(&batch)) => batch.clear(),
            }
        }
        self.traces.close();
        while let Ok(trace) = self.traces.try_recv() {
            batch.push(trace);
        }
        let last = Instant::now() + LAST;
        for batch in batch.chunks(BATCH) {
            let request = self.encode(batch);
            let sent = timeout_at(last, self.send(&request, spans(batch))).await;
            if !matches!(sent, Ok(Sent::Done)) {
                self.drop_spans(spans(batch));
            }
        }
    }

    fn encode(&self, batch: &[Box<Trace>]) -> ExportTraceServiceRequest {
        otlp::request(batch, &self.shared.options.node, self.shared.directory())
    }

    /// Repeats until the batch is taken or given up.
    async fn deliver(&mut self, request: &ExportTraceServiceRequest, requests: usize, spans: u64) {
        let give_up = Instant::now() + GIVE_UP;
        let mut pause = PAUSE;
        loop {
            match self.send(request, spans).await {
                Sent::Done => return,
                Sent::Later if Instant::now() + pause < give_up => {
                    sleep(pause.mul_f64(rand::random_range(0.5..=1.0))).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Sent::Later | Sent::Never => {
                    tracing::debug!(requests, spans, "spans given up");
                    return self.drop_spans(spans);
                }
            }
        }
    }

    async fn send(&mut self, request: &ExportTraceServiceRequest, spans: u64) -> Sent {
        let answer = timeout(DEADLINE, self.client.export(request.clone()))
            .await
            .unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer")));
        let traffic = &self.shared.counts.traffic;
        match answer {
            Ok(answer) => {
                let refused = answer.into_inner().partial_success;
                let refused = refused.map_or(0, |p| u64::try_from(p.rejected_spans).unwrap_or(0));
                let refused = refused.min(spans);
                traffic
                    .spans_exported
                    .fetch_add(spans - refused, Ordering::Relaxed);
                self.drop_spans(refused);
                if std::mem::take(&mut self.failing) {
                    tracing::info!(collector = self.endpoint, "the collector takes spans again");
                }
                Sent::Done
            }
            Err(status) => {
                traffic.span_exports_failed.fetch_add(1, Ordering::Relaxed);
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(
                        collector = self.endpoint, code = ?status.code(), error = status.message(),
                        "the collector does not take spans; they are kept for a while, then dropped and counted"
                    );
                }
                if worth_repeating(status.code()) {
                    Sent::Later
                } else {
                    Sent::Never
                }
            }
        }
    }

    fn drop_spans(&self, spans: u64) {
        let dropped = &self.shared.counts.traffic.spans_dropped;
        dropped.fetch_add(spans, Ordering::Relaxed);
    }
}

/// Waits for the first, then takes what comes until the batch is full or has gathered for long enough.
#[allow(clippy::vec_box)] // they come boxed, and are handed on as they are
async fn gather(traces: &mut mpsc::Receiver<Box<Trace>>, batch: &mut Vec<Box<Trace>>) {
    match traces.recv().await {
        Some(first) => batch.push(first),
        // Telemetry is gone; the end is near.
        None => std::future::pending().await,
    }
    let until = Instant::now() + GATHER;
    while batch.len() < BATCH {
        let room = BATCH - batch.len();
        match timeout_at(until, traces.recv_many(batch, room)).await {
            Ok(n) if n > 0 => {}
            _ => return,
        }
    }
}

fn spans(batch: &[Box<Trace>]) -> u64 {
    batch.iter().map(|trace| trace.spans()).sum()
}

/// By the specification of OTLP/gRPC.
fn worth_repeating(code: Code) -> bool {
    matches!(
        code,
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss
    )
}
