//! What an agent of another layout version left pinned. Its programs stay until each workload was taken over: they know
//! no listener any more, so its fail policy holds, and no workload is open in between.

use std::{
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use mesh_common::{MAP_WORKLOADS, WL_INBOUND, WL_OUTBOUND, Workload};

use super::{
    pins::{self, Pins},
    sys::bpf,
};

/// Which directions of a namespace are captured by programs of another version: `WL_OUTBOUND | WL_INBOUND`.
pub(super) fn captured(pins: &Pins, netns: u64) -> u32 {
    const BOTH: u32 = WL_INBOUND | WL_OUTBOUND;
    let of = |dir: &PathBuf| {
        if !pins::lookup_in(dir, netns).exists() {
            return 0;
        }
        row(dir, netns).map_or(BOTH, |row| row.flags & BOTH)
    };
    pins.others().iter().map(of).fold(0, |a, b| a | b)
}

/// The row of a namespace, where the layout is the one that we know.
fn row(dir: &Path, netns: u64) -> Option<Workload> {
    let map = bpf::open_pin(&dir.join(MAP_WORKLOADS)).ok()?;
    let info = bpf::map_info(map.as_fd()).ok()?;
    let known = (size_of::<u64>() as u32, size_of::<Workload>() as u32);
    if (info.key_size, info.value_size) != known {
        return None;
    }
    bpf::map_lookup(map.as_fd(), &netns).ok().flatten()
}

/// The `sk_lookup` programs of other versions in a namespace.
pub(super) fn lookup_programs(pins: &Pins, netns: u64) -> Vec<u32> {
    let of = |dir: PathBuf| {
        let link = bpf::open_pin(&pins::lookup_in(&dir, netns)).ok()?;
        bpf::link_program(link.as_fd()).ok()
    };
    pins.others().into_iter().filter_map(of).collect()
}

/// Ends the capture of a namespace by other versions, whose own has begun.
pub(super) fn take_over(pins: &Pins, netns: u64) {
    for dir in pins.others() {
        let lookup = pins::lookup_in(&dir, netns);
        if !lookup.exists() {
            continue;
        }
        // The row first. Until it is gone both versions redirect what the workload dials, and the later one takes the
        // earlier one's capture port for the destination: such a connection fails, which is better than to pass.
        let forgotten = bpf::open_pin(&dir.join(MAP_WORKLOADS))
            .and_then(|map| bpf::map_delete(map.as_fd(), &netns))
            .and_then(|_| pins::remove_link(&lookup));
        if let Err(error) = forgotten {
            tracing::warn!(netns, dir = %dir.display(), %error, "cannot end the capture of another version of the agent");
        }
    }
}

/// Removes what other versions left, but for namespaces that are `wanted` and not taken over yet. True when nothing is
/// left.
pub(super) fn sweep(pins: &Pins, wanted: &[u64]) -> bool {
    let mut done = true;
    for dir in pins.others() {
        let captured = pins::lookups_in(&dir);
        if captured.iter().any(|netns| wanted.contains(netns)) {
            for netns in captured.iter().filter(|n| !wanted.contains(n)) {
                take_over(pins, *netns);
            }
            done = false;
            continue;
        }
        for what in pins::remove_dir(&dir) {
            tracing::info!("removed {what} of another version of the agent");
        }
    }
    done
}
