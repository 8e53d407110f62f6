//! Messages of the certificate service: what a node asks, and what an authority answers.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    mesh_agent::identity::server::fuzz::message(bytes);
});
