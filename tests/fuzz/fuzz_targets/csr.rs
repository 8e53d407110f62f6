//! Certificate requests that a node sends to the authority.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    mesh_agent::identity::fuzz::request(text);
});
