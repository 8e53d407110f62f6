//! What a client writes into the headers of its trace, in W3C's form. What is understood survives being written again.
#![no_main]

use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;
use mesh_agent::telemetry::{TraceContext, TraceParent};

fuzz_target!(|value: &[u8]| {
    if let Some(parsed) = TraceParent::parse(value) {
        let again = TraceParent::parse(parsed.format().as_bytes());
        assert_eq!(again, Some(parsed));
    }
    // Two lines: the parent and the state.
    let (parent, state) = value
        .iter()
        .position(|b| *b == b'\n')
        .map_or((value, &[][..]), |at| (&value[..at], &value[at + 1..]));
    let mut headers = HeaderMap::new();
    for (name, value) in [("traceparent", parent), ("tracestate", state)] {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(name, value);
        }
    }
    let context = TraceContext::extract(&headers);
    context.inject(&mut headers);
    let sent = headers
        .get("traceparent")
        .map(|v| TraceParent::parse(v.as_bytes()));
    assert_eq!(sent.flatten().map(|p| p.trace), context.trace_id());
});
