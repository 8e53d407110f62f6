//! Finished requests for whoever watches them live: bounded, and free of cost while nobody does.

use std::sync::{
    Arc, PoisonError, RwLock,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::{Reason, access, conn::direction_name, request::Finished, security};

/// Taps at once.
const MAX_TAPS: usize = 8;
/// Requests that wait for a tap's reader; what is above is dropped and counted.
const QUEUE: usize = 1_024;
/// Characters of a path that are shown.
const MAX_PATH: usize = 1_024;

/// One finished request as a tap shows it. There are no bodies in it, no headers, and no values of queries.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TappedRequest {
    /// Milliseconds since the epoch, of its end.
    pub time_unix_ms: u64,
    /// `outbound` or `inbound`.
    pub direction: String,
    /// `http` or `grpc`.
    pub protocol: String,
    /// `1.1`, `2` ...
    pub http_version: String,
    pub method: String,
    pub authority: Option<String>,
    /// With the names of its query, and `*` for their values.
    pub path: String,
    /// `None`: it was not answered.
    pub status: Option<u16>,
    pub grpc_status: Option<u32>,
    pub duration_ms: f64,
    pub reason: String,
    pub response_flags: String,
    /// Address and port of who asked.
    pub source: String,
    /// `namespace/name`
    pub source_workload: Option<String>,
    pub service: Option<String>,
    /// Address and port that the last attempt went to.
    pub endpoint: Option<String>,
    pub destination_workload: Option<String>,
    pub route: Option<String>,
    pub attempts: u32,
    /// `mutual_tls` or `none`.
    pub security: String,
    pub request_bytes: u64,
    pub response_bytes: u64,
    pub request_id: Option<String>,
    pub trace_id: Option<String>,
}

/// Which requests a tap shows; all must match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TapFilter {
    /// Of either end.
    pub namespace: Option<String>,
    /// `name` or `namespace/name`.
    pub source: Option<String>,
    /// Service or workload.
    pub destination: Option<String>,
    pub method: Option<String>,
    /// Prefix.
    pub path: Option<String>,
    pub status: Option<StatusFilter>,
    pub reason: Option<Reason>,
}

/// `503` or `5xx`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusFilter {
    Code(u16),
    /// First digit.
    Class(u16),
}

impl std::str::FromStr for StatusFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let class = text.strip_suffix("xx").and_then(|c| c.parse().ok());
        match (class, text.parse()) {
            (Some(class @ 1..=9), _) => Ok(Self::Class(class)),
            (None, Ok(code @ 100..=999)) => Ok(Self::Code(code)),
            _ => Err(format!("status must be like 503 or 5xx, got {text:?}")),
        }
    }
}

impl std::fmt::Display for StatusFilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "{code}"),
            Self::Class(class) => write!(f, "{class}xx"),
        }
    }
}

impl TapFilter {
    pub fn matches(&self, r: &TappedRequest) -> bool {
        let named = |wanted: &str, names: &[&Option<String>]| {
            let mut names = names.iter().filter_map(|n| n.as_deref());
            names.any(|name| crate::admin::named(wanted, name))
        };
        self.namespace.as_ref().is_none_or(|wanted| {
            [&r.source_workload, &r.destination_workload, &r.service]
                .into_iter()
                .flatten()
                .any(|name| name.split_once('/').is_some_and(|(have, _)| have == wanted))
        }) && self
            .source
            .as_ref()
            .is_none_or(|s| named(s, &[&r.source_workload]))
            && self
                .destination
                .as_ref()
                .is_none_or(|d| named(d, &[&r.service, &r.destination_workload]))
            && self
                .method
                .as_ref()
                .is_none_or(|m| m.eq_ignore_ascii_case(&r.method))
            && self
                .path
                .as_ref()
                .is_none_or(|p| r.path.starts_with(p.as_str()))
            && self.status.is_none_or(|wanted| match (wanted, r.status) {
                (StatusFilter::Code(code), have) => have == Some(code),
                (StatusFilter::Class(class), have) => have.is_some_and(|s| s / 100 == class),
            })
            && self.reason.is_none_or(|wanted| wanted.as_str() == r.reason)
    }
}

/// No more taps can be opened.
#[derive(Debug, thiserror::Error)]
#[error("{MAX_TAPS} taps are open already; end one of them")]
pub struct TapRefused;

#[derive(Debug)]
struct Open {
    id: u64,
    filter: TapFilter,
    queue: mpsc::Sender<TappedRequest>,
    dropped: Arc<AtomicU64>,
}

/// The taps that are open.
#[derive(Debug, Default)]
pub(super) struct Taps {
    /// Looked at for each request, so not behind the lock.
    number: AtomicUsize,
    next: AtomicU64,
    open: RwLock<Vec<Open>>,
}

impl Taps {
    pub(super) fn open(self: &Arc<Self>, filter: TapFilter) -> Result<Tap, TapRefused> {
        let (queue, requests) = mpsc::channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= MAX_TAPS {
            return Err(TapRefused);
        }
        open.push(Open {
            id,
            filter,
            queue,
            dropped: dropped.clone(),
        });
        self.number.store(open.len(), Ordering::Relaxed);
        Ok(Tap {
            taps: self.clone(),
            id,
            requests,
            dropped,
        })
    }

    fn close(&self, id: u64) {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        open.retain(|tap| tap.id != id);
        self.number.store(open.len(), Ordering::Relaxed);
    }

    /// A request has ended.
    pub(super) fn offer(&self, request: &Finished<'_>) {
        if self.number.load(Ordering::Relaxed) == 0 {
            return;
        }
        let shown = shown(request);
        for tap in self
            .open
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
        {
            if tap.filter.matches(&shown) && tap.queue.try_send(shown.clone()).is_err() {
                tap.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Finished requests as they come, until it is dropped.
#[derive(Debug)]
pub struct Tap {
    taps: Arc<Taps>,
    id: u64,
    requests: mpsc::Receiver<TappedRequest>,
    dropped: Arc<AtomicU64>,
}

impl Tap {
    pub async fn next(&mut self) -> Option<TappedRequest> {
        self.requests.recv().await
    }

    /// One that has come already.
    #[cfg(test)]
    pub(super) fn try_next(&mut self) -> Option<TappedRequest> {
        self.requests.try_recv().ok()
    }

    /// Requests that matched and were not shown, because the reader is slow.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.taps.close(self.id);
    }
}

fn shown(request: &Finished<'_>) -> TappedRequest {
    let start = request.start;
    let text = |value: &http::HeaderValue| {
        String::from_utf8_lossy(access::bare(value.as_bytes())).into_owned()
    };
    let time = request
        .ended_at
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    TappedRequest {
        time_unix_ms: u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
        direction: direction_name(request.conn.meta.direction).into(),
        protocol: if start.grpc { "grpc" } else { "http" }.into(),
        http_version: access::version_name(start.version).into(),
        method: start.method.to_string(),
        authority: start.authority.as_ref().map(text),
        path: redacted(&start.uri),
        status: request.status.map(|s| s.as_u16()),
        grpc_status: request.grpc_status,
        duration_ms: request.duration.as_micros() as f64 / 1_000.0,
        reason: request.reason.as_str().into(),
        response_flags: request.reason.flag().into(),
        source: request.conn.meta.source.addr.to_string(),
        source_workload: request.source_workload.map(ToString::to_string),
        service: request.service.map(ToString::to_string),
        endpoint: request.upstream.map(|u| u.addr.to_string()),
        destination_workload: request.destination_workload().map(ToString::to_string),
        route: request.route.map(ToString::to_string),
        attempts: request.attempts,
        security: security::policy_name(request.security).into(),
        request_bytes: request.request_bytes,
        response_bytes: request.response_bytes,
        request_id: start.request_id.as_ref().map(text),
        trace_id: start.trace.trace_id().map(|id| format!("{id:032x}")),
    }
}

/// Path and query, with `*` for every value of the query.
fn redacted(uri: &http::Uri) -> String {
    let mut text = String::from(uri.path());
    for (at, pair) in uri
        .query()
        .into_iter()
        .flat_map(|q| q.split('&'))
        .enumerate()
    {
        text.push(if at == 0 { '?' } else { '&' });
        match pair.split_once('=') {
            Some((name, _)) => {
                text.push_str(name);
                text.push_str("=*");
            }
            // Without a name it may be a value.
            None => text.push('*'),
        }
    }
    if let Some((cut, _)) = text.char_indices().nth(MAX_PATH) {
        text.truncate(cut);
    }
    text
}
