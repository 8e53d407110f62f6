//! What the kernel programs and the agent share: the key and the value of every BPF map, flag bits, the records of the
//! ring buffer.
//!
//! Every type is `repr(C)`, has no implicit padding (asserted below) and is plain old data. Addresses are 16 bytes in
//! network order; an IPv4 address is stored v4-mapped (`::ffff:a.b.c.d`), so one key serves both families. Ports are in
//! host order. Times are nanoseconds of `CLOCK_MONOTONIC` (`bpf_ktime_get_ns`).
//!
//! A change to any layout here must raise [`ABI_VERSION`]: it names the folder the maps are pinned in, so that an agent
//! never opens a map of another layout.
#![no_std]

mod addr;
mod conn;
mod maps;

pub use addr::{Addr, Tuple, is_v4};
#[cfg(feature = "user")]
pub use addr::{ip_from_key, ip_key};
pub use conn::{ConnRecord, Direction, Event, EventKind, KernelClose, Path};
pub use maps::*;

/// Version of all layouts in this crate; part of the pin path (`/sys/fs/bpf/mesh/NODE/v2`).
pub const ABI_VERSION: u32 = 2;
