//! What a client writes into the headers of its trace, in Zipkin's forms. What is understood survives being written again.
#![no_main]

use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;
use mesh_agent::telemetry::{B3, TraceContext};

/// In the order of the lines of the input.
const HEADERS: [&str; 6] = [
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
];

fuzz_target!(|value: &[u8]| {
    if let Some(parsed) = B3::parse(value) {
        assert_eq!(B3::parse(parsed.format().as_bytes()), Some(parsed));
    }
    let mut headers = HeaderMap::new();
    for (name, value) in HEADERS.iter().zip(value.split(|b| *b == b'\n')) {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(*name, value);
        }
    }
    let context = TraceContext::extract(&headers);
    context.inject(&mut headers);
    let again = TraceContext::extract(&headers);
    assert_eq!(again.trace_id(), context.trace_id());
});
