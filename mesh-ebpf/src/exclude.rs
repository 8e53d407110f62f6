//! What a workload's policy leaves alone, by port and by range.

use aya_ebpf::btf_maps::lpm_trie::Key;
use mesh_common::{ExcludedCidr, ExcludedPort, WL_EXCL_CIDRS, WL_EXCL_PORTS, Workload};

use crate::maps::{excl_ports, exclusions};

/// True if the workload has this port or this range excluded. `port` is the one that was dialled; `ip` is the other
/// end, whoever dialled.
#[inline(always)]
pub fn is_excluded(netns: u64, workload: &Workload, ip: &[u8; 16], port: u16) -> bool {
    if workload.flags & WL_EXCL_PORTS != 0 {
        let key = ExcludedPort {
            netns,
            port,
            pad: [0; 6],
        };
        // SAFETY: only its presence is looked at.
        if unsafe { excl_ports.get(key) }.is_some() {
            return true;
        }
    }
    if workload.flags & WL_EXCL_CIDRS != 0 {
        // 64 bits of cookie, 128 of address.
        let key = Key::new(192, ExcludedCidr { netns, ip: *ip });
        return exclusions.get(&key).is_some();
    }
    false
}
