//! Netlink answers: messages, attributes, sockets of sock_diag, addresses of rtnetlink.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    mesh_agent::capture::fuzz::netlink(bytes);
});
