//! Doors to the private parsers for the fuzz targets in tests/fuzz; compiled for them only (`--cfg fuzzing`).

use std::path::PathBuf;

use super::{cgroup, diag, netlink, rtnl, sys};

/// One record of the ring buffer.
pub fn event(bytes: &[u8]) -> Option<mesh_common::Event> {
    sys::bpf::read_event(bytes)
}

/// A buffer of netlink messages; each body is read as every kind of answer.
pub fn netlink(bytes: &[u8]) {
    let mut rest = bytes;
    while let Some((_, body, next)) = netlink::split(rest) {
        assert!(next.len() < rest.len());
        if let Some(socket) = diag::parse(body)
            && let Some(info) = socket.info
        {
            diag::payload_bytes(info, socket.state, true);
        }
        let _ = rtnl::parse(body);
        rest = next;
    }
}

/// The root of cgroup2 in a mountinfo.
pub fn mountinfo(text: &str) -> Option<PathBuf> {
    cgroup::pick(text)
}
