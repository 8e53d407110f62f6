//! The list of revoked credentials.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    mesh_agent::identity::server::fuzz::revoked(text);
});
