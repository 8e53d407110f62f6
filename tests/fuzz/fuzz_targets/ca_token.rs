//! The credential of a node, and the claims in one.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    mesh_agent::identity::server::fuzz::token(text);
});
