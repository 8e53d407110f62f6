//! What clients sent, in answers of the agent: escaped wherever it stands.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (bool, &str)| mesh_agent::proxy::http_fuzz::detail(input.1, input.0));
