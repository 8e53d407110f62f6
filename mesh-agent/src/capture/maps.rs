//! The maps, opened by descriptor and typed; and the check that a reopened pin has our layout (aya does not look:
//! it opened one map's pin as another).

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use aya::Pod;
use mesh_common::{
    COUNTERS, Client, ConnRecord, Counter, ListenKey, ListenerKey, MAP_CLIENTS, MAP_CONNS,
    MAP_COUNTERS, MAP_EVENTS, MAP_EXCL_PORTS, MAP_EXCLUSIONS, MAP_LISTEN_PORTS, MAP_LISTENERS,
    MAP_MESH_ADDRS, MAP_ORIG_DST, MAP_POD_ADDRS, MAP_SK_STATE, MAP_TOTALS, MAP_USAGE, MAP_VOUCHED,
    MAP_WORKLOADS, OrigDst, PodAddr, SockState, Tuple, Usage, Vouched, Workload,
};

use super::{
    MapStat,
    error::CaptureError,
    sys::bpf::{self, MapInfo},
};

/// Key of `exclusions` as the kernel wants it: prefix length, then [`mesh_common::ExcludedCidr`], packed.
pub(super) type LpmKey = [u8; 28];

/// A BPF map by descriptor. Every call is one system call and may come from any thread.
pub(super) struct BpfMap<K, V> {
    fd: OwnedFd,
    _types: PhantomData<fn(K) -> V>,
}

impl<K: Pod, V: Pod> BpfMap<K, V> {
    fn open(dir: &Path, name: &'static str, kind: u32) -> Result<Self, CaptureError> {
        let path = dir.join(name);
        let fd = bpf::open_pin(&path)
            .map_err(CaptureError::io(format!("cannot open {}", path.display())))?;
        check_layout(&path, fd.as_fd(), kind, size_of::<K>(), size_of::<V>())?;
        Ok(Self {
            fd,
            _types: PhantomData,
        })
    }

    pub(super) fn get(&self, key: &K) -> io::Result<Option<V>> {
        bpf::map_lookup(self.fd.as_fd(), key)
    }

    pub(super) fn insert(&self, key: &K, value: &V) -> io::Result<()> {
        bpf::map_update(self.fd.as_fd(), key, value, bpf::ANY)
    }

    pub(super) fn insert_with(&self, key: &K, value: &V, flags: u64) -> io::Result<()> {
        bpf::map_update(self.fd.as_fd(), key, value, flags)
    }

    /// False if there was no such entry.
    pub(super) fn remove(&self, key: &K) -> io::Result<bool> {
        bpf::map_delete(self.fd.as_fd(), key)
    }

    /// Every key. Keys that come and go meanwhile may be missed or seen twice.
    pub(super) fn keys(&self) -> io::Result<Vec<K>> {
        let limit = bpf::map_info(self.fd.as_fd())?.max_entries as usize * 2;
        let mut keys = Vec::new();
        let mut last = None;
        while let Some(key) = bpf::map_next_key(self.fd.as_fd(), last.as_ref())? {
            keys.push(key);
            last = Some(key);
            // A deleted key makes the kernel begin again.
            if keys.len() > limit {
                break;
            }
        }
        Ok(keys)
    }

    /// Every entry of a hash map.
    pub(super) fn entries(&self) -> io::Result<Vec<(K, V)>> {
        bpf::map_entries(self.fd.as_fd())
    }

    /// Entries of a hash map.
    pub(super) fn count(&self) -> io::Result<u64> {
        Ok(self.entries()?.len() as u64)
    }

    pub(super) fn max_entries(&self) -> io::Result<u32> {
        bpf::map_info(self.fd.as_fd()).map(|i| i.max_entries)
    }
}

impl<K, V> AsFd for BpfMap<K, V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Kinds of maps: the kernel's `enum bpf_map_type`.
mod kind {
    pub(super) const HASH: u32 = 1;
    pub(super) const ARRAY: u32 = 2;
    pub(super) const PERCPU_ARRAY: u32 = 6;
    pub(super) const LPM_TRIE: u32 = 11;
    pub(super) const SOCKHASH: u32 = 18;
    pub(super) const SK_STORAGE: u32 = 24;
    pub(super) const RINGBUF: u32 = 27;
}

/// Every map that is pinned, by its name.
pub(super) const PINNED: [&str; 16] = [
    MAP_WORKLOADS,
    MAP_POD_ADDRS,
    MAP_EXCLUSIONS,
    MAP_EXCL_PORTS,
    MAP_MESH_ADDRS,
    MAP_LISTENERS,
    MAP_LISTEN_PORTS,
    MAP_ORIG_DST,
    MAP_CLIENTS,
    MAP_CONNS,
    MAP_USAGE,
    MAP_TOTALS,
    MAP_VOUCHED,
    MAP_SK_STATE,
    MAP_EVENTS,
    MAP_COUNTERS,
];

/// All maps of one node.
pub(super) struct Maps {
    /// Netns cookie -> workload.
    pub workloads: BpfMap<u64, Workload>,
    pub pod_addrs: BpfMap<[u8; 16], PodAddr>,
    pub exclusions: BpfMap<LpmKey, u32>,
    pub excl_ports: BpfMap<mesh_common::ExcludedPort, u32>,
    pub mesh_addrs: BpfMap<[u8; 16], u32>,
    /// The value is the listener's descriptor when written.
    pub listeners: BpfMap<ListenerKey, u32>,
    pub listen_ports: BpfMap<ListenKey, u32>,
    pub orig_dst: BpfMap<Tuple, OrigDst>,
    pub clients: BpfMap<Tuple, Client>,
    /// Socket cookie -> record.
    pub conns: BpfMap<u64, ConnRecord>,
    /// Netns cookie -> share of the four maps above.
    pub usage: BpfMap<u64, Usage>,
    pub totals: BpfMap<u32, i64>,
    /// As the destination sees it.
    pub vouched: BpfMap<Tuple, Vouched>,
    /// Socket's descriptor -> its storage.
    pub sk_state: BpfMap<i32, SockState>,
    counters: OwnedFd,
    cpus: usize,
}

impl Maps {
    /// Opens every map pinned in `dir` and checks its layout.
    pub(super) fn open(dir: &Path) -> Result<Self, CaptureError> {
        let counters_path = dir.join(MAP_COUNTERS);
        let counters = bpf::open_pin(&counters_path).map_err(CaptureError::io(format!(
            "cannot open {}",
            counters_path.display()
        )))?;
        check_layout(&counters_path, counters.as_fd(), kind::PERCPU_ARRAY, 4, 8)?;
        let events_path = dir.join(MAP_EVENTS);
        let events = bpf::open_pin(&events_path).map_err(CaptureError::io(format!(
            "cannot open {}",
            events_path.display()
        )))?;
        check_layout(&events_path, events.as_fd(), kind::RINGBUF, 0, 0)?;
        Ok(Self {
            workloads: BpfMap::open(dir, MAP_WORKLOADS, kind::HASH)?,
            pod_addrs: BpfMap::open(dir, MAP_POD_ADDRS, kind::HASH)?,
            exclusions: BpfMap::open(dir, MAP_EXCLUSIONS, kind::LPM_TRIE)?,
            excl_ports: BpfMap::open(dir, MAP_EXCL_PORTS, kind::HASH)?,
            mesh_addrs: BpfMap::open(dir, MAP_MESH_ADDRS, kind::HASH)?,
            listeners: BpfMap::open(dir, MAP_LISTENERS, kind::SOCKHASH)?,
            listen_ports: BpfMap::open(dir, MAP_LISTEN_PORTS, kind::HASH)?,
            orig_dst: BpfMap::open(dir, MAP_ORIG_DST, kind::HASH)?,
            clients: BpfMap::open(dir, MAP_CLIENTS, kind::HASH)?,
            conns: BpfMap::open(dir, MAP_CONNS, kind::HASH)?,
            usage: BpfMap::open(dir, MAP_USAGE, kind::HASH)?,
            totals: BpfMap::open(dir, MAP_TOTALS, kind::ARRAY)?,
            vouched: BpfMap::open(dir, MAP_VOUCHED, kind::HASH)?,
            sk_state: BpfMap::open(dir, MAP_SK_STATE, kind::SK_STORAGE)?,
            counters,
            cpus: possible_cpus()?,
        })
    }

    /// Entries and room of the maps that can fill up.
    pub(super) fn stats(&self) -> Vec<MapStat> {
        fn stat<K: Pod, V: Pod>(name: &'static str, map: &BpfMap<K, V>) -> Option<MapStat> {
            Some(MapStat {
                name,
                entries: map.count().ok()?,
                max_entries: map.max_entries().ok()?.into(),
            })
        }
        [
            stat(MAP_WORKLOADS, &self.workloads),
            stat(MAP_POD_ADDRS, &self.pod_addrs),
            stat(MAP_EXCL_PORTS, &self.excl_ports),
            stat(MAP_MESH_ADDRS, &self.mesh_addrs),
            stat(MAP_LISTEN_PORTS, &self.listen_ports),
            stat(MAP_ORIG_DST, &self.orig_dst),
            stat(MAP_CLIENTS, &self.clients),
            stat(MAP_CONNS, &self.conns),
            stat(MAP_VOUCHED, &self.vouched),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// Sums of the per-CPU counters, with their labels.
    pub(super) fn counters(&self) -> Vec<(Counter, &'static str, u64)> {
        Counter::ALL
            .iter()
            .take(COUNTERS as usize)
            .map(|(counter, label)| {
                let sum =
                    bpf::map_lookup_per_cpu(self.counters.as_fd(), *counter as u32, self.cpus)
                        .map(|v| v.iter().sum())
                        .unwrap_or(0);
                (*counter, *label, sum)
            })
            .collect()
    }
}

fn possible_cpus() -> Result<usize, CaptureError> {
    aya::util::nr_cpus().map_err(|(what, source)| CaptureError::Io {
        what: what.into(),
        source,
    })
}

fn check_layout(
    path: &Path,
    map: BorrowedFd<'_>,
    kind: u32,
    key_size: usize,
    value_size: usize,
) -> Result<(), CaptureError> {
    let found = bpf::map_info(map).map_err(CaptureError::io(format!(
        "cannot ask about {}",
        path.display()
    )))?;
    let wanted = MapInfo {
        kind,
        key_size: key_size as u32,
        value_size: value_size as u32,
        ..found
    };
    if found == wanted {
        return Ok(());
    }
    let words = |i: MapInfo| {
        format!(
            "type {}, key {}, value {}",
            i.kind, i.key_size, i.value_size
        )
    };
    Err(CaptureError::Layout {
        path: path.into(),
        found: words(found),
        wanted: words(wanted),
    })
}
