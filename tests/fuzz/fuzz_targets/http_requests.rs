//! Requests of HTTP/1 as bytes: what is wrong with them does not depend on how they come in.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &[u8])| {
    mesh_agent::proxy::http_fuzz::requests(input.1, usize::from(input.0));
});
