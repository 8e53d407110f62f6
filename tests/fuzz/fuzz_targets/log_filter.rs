//! Log filters that the command line sends.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Err(error) = mesh_agent::telemetry::logging::check_filter(text) {
        assert!(!error.to_string().is_empty());
    }
});
