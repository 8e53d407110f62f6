//! The first bytes of a connection: once known, what they are never changes.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| mesh_agent::proxy::http_fuzz::detect(bytes));
