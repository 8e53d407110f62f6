//! Values of header fields: deadlines, times to come again, cookies, hosts, ids and what belongs to one connection.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|value: &[u8]| mesh_agent::proxy::http_fuzz::field(value));
