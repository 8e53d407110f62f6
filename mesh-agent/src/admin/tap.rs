//! `GET /v1/tap`: finished requests, one JSON document a line, until a limit, the time is over or the client goes.

use std::time::Duration;

use futures::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    Response, StatusCode,
    body::{Bytes, Frame},
    header::{CONTENT_TYPE, HeaderValue},
};
use tokio::time::{Instant, timeout_at};

use super::{
    AdminState,
    api::TapLine,
    http::{self, Answer},
    query,
};
use crate::telemetry::{Tap, TapFilter};

/// The most that one tap shows, and for how long: a forgotten one must not cost for ever.
pub(crate) const MOST: u64 = 100_000;
pub(crate) const LONGEST: Duration = Duration::from_secs(24 * 3600);
const DEFAULT_LIMIT: u64 = 1_000;
const DEFAULT_DURATION: Duration = Duration::from_secs(3600);

/// What a tap asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapQuery {
    pub filter: TapFilter,
    /// Requests, after which it ends.
    pub limit: u64,
    /// Whole seconds, after which it ends.
    pub duration: Duration,
}

impl Default for TapQuery {
    fn default() -> Self {
        Self {
            filter: TapFilter::default(),
            limit: DEFAULT_LIMIT,
            duration: DEFAULT_DURATION,
        }
    }
}

impl TapQuery {
    /// # Errors
    /// A sentence for whoever wrote the query.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parsed = Self::default();
        let filter = &mut parsed.filter;
        for (key, value) in query::parse(text) {
            match key.as_str() {
                "namespace" => filter.namespace = Some(value),
                "source" => filter.source = Some(value),
                "destination" => filter.destination = Some(value),
                "method" => filter.method = Some(value),
                "path" => filter.path = Some(value),
                "status" => filter.status = Some(value.parse()?),
                "reason" => filter.reason = Some(value.parse()?),
                "limit" => parsed.limit = within(&key, &value, MOST)?,
                "seconds" => {
                    let seconds = within(&key, &value, LONGEST.as_secs())?;
                    parsed.duration = Duration::from_secs(seconds);
                }
                _ => {
                    return Err(format!(
                        "unknown parameter {key:?}; known are namespace, source, destination, method, path, status, reason, limit, seconds"
                    ));
                }
            }
        }
        Ok(parsed)
    }

    pub fn to_query(&self) -> String {
        let filter = &self.filter;
        let status = filter.status.map(|s| s.to_string());
        let (limit, seconds) = (self.limit.to_string(), self.duration.as_secs().to_string());
        let pairs = [
            ("namespace", filter.namespace.as_deref()),
            ("source", filter.source.as_deref()),
            ("destination", filter.destination.as_deref()),
            ("method", filter.method.as_deref()),
            ("path", filter.path.as_deref()),
            ("status", status.as_deref()),
            ("reason", filter.reason.map(|r| r.as_str())),
            ("limit", Some(limit.as_str())),
            ("seconds", Some(seconds.as_str())),
        ];
        query::build(pairs.into_iter().filter_map(|(k, v)| Some((k, v?))))
    }
}

fn within(key: &str, value: &str, most: u64) -> Result<u64, String> {
    value
        .parse()
        .ok()
        .filter(|n| (1..=most).contains(n))
        .ok_or_else(|| format!("{key} must be a number from 1 to {most}, got {value:?}"))
}

pub(super) fn answer(text: &str, state: &AdminState) -> Answer {
    let query = match TapQuery::parse(text) {
        Ok(query) => query,
        Err(error) => return http::refuse(StatusCode::BAD_REQUEST, &error),
    };
    let (limit, until) = (query.limit, Instant::now() + query.duration);
    let tap = match state.telemetry.tap(query.filter) {
        Ok(tap) => tap,
        Err(error) => return http::refuse(StatusCode::TOO_MANY_REQUESTS, &error.to_string()),
    };
    // The tap lives in the body: it ends with the client's connection.
    let lines = stream::unfold(Some((tap, limit)), move |open| async move {
        let (mut tap, left) = open?;
        let (line, next) = next_line(&mut tap, left, until).await;
        let text = serde_json::to_string(&line).unwrap_or_default() + "\n";
        let rest = next.map(|left| (tap, left));
        Some((Ok(Frame::data(Bytes::from(text))), rest))
    });
    let mut answer = Response::new(StreamBody::new(lines).boxed_unsync());
    answer.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/x-ndjson"),
    );
    answer
}

/// A line, and how many requests may follow; `None`: it is the last line.
async fn next_line(tap: &mut Tap, left: u64, until: Instant) -> (TapLine, Option<u64>) {
    let end = |tap: &Tap, why: &str| TapLine {
        request: None,
        dropped: tap.dropped(),
        end: Some(why.into()),
    };
    if left == 0 {
        return (end(tap, "limit"), None);
    }
    match timeout_at(until, tap.next()).await {
        Ok(Some(request)) => {
            let line = TapLine {
                request: Some(request),
                dropped: tap.dropped(),
                end: None,
            };
            (line, Some(left - 1))
        }
        Ok(None) => (end(tap, "agent stopped"), None),
        Err(_) => (end(tap, "duration"), None),
    }
}
