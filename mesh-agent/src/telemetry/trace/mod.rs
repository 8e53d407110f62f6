//! Where a request is in a trace: read from its headers, written to those of each attempt; its spans, and their export.

mod b3;
mod export;
mod otlp;
mod span;
#[cfg(test)]
mod tests;
mod w3c;

use http::{HeaderMap, HeaderValue};

pub use b3::B3;
pub use export::{Exporter, TracingError, TracingOptions};
pub(super) use span::{Spans, Tracing};
pub use w3c::TraceParent;

/// Where a request is in a trace (W3C Trace Context, B3).
#[derive(Clone, Debug, Default)]
pub struct TraceContext {
    /// 0: nothing is known.
    trace: u128,
    /// Of who sent the request; in what an attempt sends along, the attempt's.
    span: u64,
    /// The IDs are the client's.
    remote: bool,
    flags: u8,
    /// `None`: nobody has decided yet.
    sampled: Option<bool>,
    debug: bool,
    /// The forms in which it came.
    w3c: bool,
    single: bool,
    multi: bool,
    /// A trace ID of B3 with 16 digits.
    short: bool,
    /// The headers of the request do not say this already.
    changed: bool,
    /// The request's `tracestate` is not to be passed on: it is malformed, or of no trace.
    drop_state: bool,
    state: Option<HeaderValue>,
}

impl TraceContext {
    /// Reads `traceparent` and `tracestate`, or else B3 in either form; starts a trace where there is none. What is
    /// malformed counts as not there.
    pub fn extract(headers: &HeaderMap) -> Self {
        let (parent, single, multi) = (
            w3c::parent(headers),
            b3::single(headers),
            b3::multi(headers),
        );
        let forms = Self {
            w3c: parent.is_some(),
            single: single.is_some(),
            multi: multi.is_some(),
            ..Self::default()
        };
        let state_is_good = w3c::state_is_good(headers);
        if let Some(parent) = parent {
            let others = single.is_some() || multi.is_some();
            return Self {
                trace: parent.trace,
                span: parent.parent,
                remote: true,
                flags: parent.flags,
                sampled: Some(parent.flags & w3c::SAMPLED != 0),
                // The other forms may name another trace.
                changed: others,
                drop_state: !state_is_good,
                state: state_is_good
                    .then(|| headers.get(w3c::TRACESTATE).cloned())
                    .flatten(),
                ..forms
            };
        }
        // One of the two may be a decision alone.
        let b3 = single
            .filter(|b3| b3.ids.is_some())
            .or(multi.filter(|b3| b3.ids.is_some()))
            .or(single)
            .or(multi)
            .unwrap_or_default();
        let (trace, span) = b3
            .ids
            .unwrap_or_else(|| (w3c::random_trace(), w3c::random_span()));
        Self {
            trace,
            span,
            remote: b3.ids.is_some(),
            sampled: b3.sampled,
            debug: b3.debug,
            short: b3.short,
            changed: b3.ids.is_none() || (single.is_some() && multi.is_some()),
            drop_state: true,
            ..forms
        }
    }

    /// Writes it in the form, or forms, in which it came; as `traceparent` where it began here.
    pub fn inject(&self, headers: &mut HeaderMap) {
        if self.trace == 0 {
            return;
        }
        if self.drop_state {
            headers.remove(w3c::TRACESTATE);
        }
        if !self.changed {
            return;
        }
        if self.w3c || !(self.single || self.multi) {
            let sampled = if self.sampled == Some(true) {
                w3c::SAMPLED
            } else {
                0
            };
            TraceParent {
                trace: self.trace,
                parent: self.span,
                flags: self.flags & !w3c::SAMPLED | sampled,
            }
            .write(headers);
        } else {
            // Malformed, or there would be the form.
            headers.remove(w3c::TRACEPARENT);
        }
        let b3 = B3 {
            ids: Some((self.trace, self.span)),
            short: self.short,
            sampled: self.sampled,
            debug: self.debug,
        };
        if self.single {
            b3::write_single(b3, headers);
        }
        if self.multi {
            b3::write_multi(b3, headers);
        }
    }

    /// The trace's ID; `None`: nothing was read from the request.
    pub fn trace_id(&self) -> Option<u128> {
        (self.trace != 0).then_some(self.trace)
    }
}
