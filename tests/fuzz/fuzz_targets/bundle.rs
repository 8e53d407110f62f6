//! Trust bundles, and certificates that a peer shows.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    mesh_agent::identity::fuzz::bundle(bytes);
});
