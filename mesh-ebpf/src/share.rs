//! Each workload's share of the maps that it fills by what it does: above it the map is full for that workload alone.

use core::{
    arch::asm,
    ptr::{addr_of_mut, read_volatile},
};

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_EXIST, BPF_NOEXIST},
    btf_maps::HashMap,
};
use mesh_common::{CLIENTS_ENTRIES, CLIENTS_MARGIN, Share, Usage};

use crate::maps::{LAZY, count, totals, usage};

const EEXIST: i32 = 17;

/// The entry was not made; why is counted.
pub struct Full;

/// Inserts or replaces an entry of the workload.
#[inline(always)]
pub fn insert<K, V, const N: usize>(
    map: &HashMap<K, V, N, LAZY>,
    share: Share,
    netns: u64,
    key: &K,
    value: &V,
) -> Result<(), Full> {
    if !has_room(share, netns) {
        // One that stands may be replaced.
        if map.insert(key, value, u64::from(BPF_EXIST)).is_ok() {
            return Ok(());
        }
        count(share.share_full());
        return Err(Full);
    }
    match map.insert(key, value, u64::from(BPF_NOEXIST)) {
        Ok(()) => {
            add(share, netns, 1);
            Ok(())
        }
        // Left by a connection that had the same tuple.
        Err(e) if e == -EEXIST && map.insert(key, value, u64::from(BPF_ANY)).is_ok() => Ok(()),
        Err(_) => {
            count(share.map_full());
            Err(Full)
        }
    }
}

/// Deletes an entry of the workload; false if there was none.
#[inline(always)]
pub fn remove<K, V, const N: usize>(
    map: &HashMap<K, V, N, LAZY>,
    share: Share,
    netns: u64,
    key: &K,
) -> bool {
    let removed = map.remove(key).is_ok();
    if removed {
        add(share, netns, -1);
    }
    removed
}

/// True while the workload may have one more. A workload without a row (which none is) has no share to keep to.
#[inline(always)]
pub fn has_room(share: Share, netns: u64) -> bool {
    let Some(row) = usage.get_ptr_mut(netns) else {
        return true;
    };
    // SAFETY: a live value of the map, the index is a constant within it.
    unsafe { read_volatile(held(row, share)) < (*row).limit[share as usize] }
}

/// True while all workloads together leave room in `clients`.
#[inline(always)]
pub fn clients_has_room() -> bool {
    let Some(cell) = totals.get_ptr_mut(Share::Clients as u32) else {
        return true;
    };
    // SAFETY: a live value of the map.
    unsafe { read_volatile(cell) < (CLIENTS_ENTRIES - CLIENTS_MARGIN) as i64 }
}

#[inline(always)]
fn add(share: Share, netns: u64, n: i64) {
    if let Some(row) = usage.get_ptr_mut(netns) {
        // SAFETY: a live value of the map.
        unsafe { atomic_add(held(row, share), n) };
    }
    // One cell for all CPUs: only where its value is asked for.
    if share as u32 == Share::Clients as u32
        && let Some(cell) = totals.get_ptr_mut(share as u32)
    {
        // SAFETY: a live value of the map.
        unsafe { atomic_add(cell, n) };
    }
}

/// The counter of one share in a row of `usage`.
///
/// # Safety
/// `row` is a live value of the map.
#[inline(always)]
unsafe fn held(row: *mut Usage, share: Share) -> *mut i64 {
    // SAFETY: said above; the index is a constant within the array.
    unsafe { addr_of_mut!((*row).held).cast::<i64>().add(share as usize) }
}

/// Written as the instruction, because the compiler has no atomic types for this target.
///
/// # Safety
/// `cell` is inside a live value of a map.
#[inline(always)]
unsafe fn atomic_add(cell: *mut i64, n: i64) {
    // SAFETY: said above.
    unsafe {
        asm!("lock *(u64 *)({cell} + 0) += {n}", cell = in(reg) cell, n = in(reg) n, options(nostack));
    }
}
