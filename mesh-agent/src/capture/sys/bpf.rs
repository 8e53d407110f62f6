//! bpf(2), as far as aya does not offer it by shared reference: maps by descriptor (socket storage and SOCKHASH
//! included), pins, links (BPF_LINK_UPDATE), queries.

use std::{
    ffi::CString,
    io,
    mem::{MaybeUninit, size_of},
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use aya::Pod;

const MAP_LOOKUP_ELEM: libc::c_int = 1;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_DELETE_ELEM: libc::c_int = 3;
const MAP_GET_NEXT_KEY: libc::c_int = 4;
const OBJ_PIN: libc::c_int = 6;
const OBJ_GET: libc::c_int = 7;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const PROG_QUERY: libc::c_int = 16;
const MAP_LOOKUP_BATCH: libc::c_int = 24;
const LINK_CREATE: libc::c_int = 28;
const LINK_UPDATE: libc::c_int = 29;
const LINK_DETACH: libc::c_int = 34;

/// Insert or replace.
pub(in crate::capture) const ANY: u64 = 0;
/// Insert only.
pub(in crate::capture) const NOEXIST: u64 = 1;
/// Replace only.
pub(in crate::capture) const EXIST: u64 = 2;

/// Calls bpf(2) with an attribute block of one command.
///
/// # Safety
/// Pointers inside `attr` must be valid for what the command does with them, for the time of the call.
unsafe fn bpf<T>(cmd: libc::c_int, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is a live repr(C) block without padding whose size is passed along; the kernel takes a block
    // shorter than its own as if the rest were zero. The pointers inside are the caller's promise.
    let r = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            cmd,
            std::ptr::from_mut(attr),
            size_of::<T>() as libc::c_uint,
        )
    };
    if r < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(r)
    }
}

/// Like [`bpf`], for commands that return a new descriptor.
///
/// # Safety
/// As [`bpf`]; `cmd` must be one that returns a descriptor.
unsafe fn bpf_fd<T>(cmd: libc::c_int, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let fd = unsafe { bpf(cmd, attr) }?;
    // SAFETY: the kernel just made this descriptor for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

#[repr(C)]
struct Elem {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

fn addr<T: ?Sized>(x: &T) -> u64 {
    std::ptr::from_ref(x).cast::<u8>() as u64
}

fn elem<K: Pod>(map: BorrowedFd<'_>, key: &K, value: u64, flags: u64) -> Elem {
    Elem {
        map: map.as_raw_fd() as u32,
        pad: 0,
        key: addr(key),
        value,
        flags,
    }
}

/// Reads one entry. The caller vouches that the map has the sizes of `K` and `V`; [`map_info`] tells.
pub(in crate::capture) fn map_lookup<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    key: &K,
) -> io::Result<Option<V>> {
    let mut value = MaybeUninit::<V>::zeroed();
    let mut attr = elem(map, key, value.as_mut_ptr() as u64, 0);
    // SAFETY: key and value live through the call and have the map's sizes (the maps were checked when opened).
    match unsafe { bpf(MAP_LOOKUP_ELEM, &mut attr) } {
        // SAFETY: V is plain old data, zeroed before and filled by the kernel.
        Ok(_) => Ok(Some(unsafe { value.assume_init() })),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Reads one entry whose value is `n` values (a per-CPU map: one per possible CPU, u64 each).
pub(in crate::capture) fn map_lookup_per_cpu(
    map: BorrowedFd<'_>,
    key: u32,
    cpus: usize,
) -> io::Result<Vec<u64>> {
    let mut values = vec![0u64; cpus];
    let mut attr = elem(map, &key, values.as_mut_ptr() as u64, 0);
    // SAFETY: the kernel writes 8 bytes for each possible CPU; `values` has that many.
    unsafe { bpf(MAP_LOOKUP_ELEM, &mut attr) }?;
    Ok(values)
}

/// Writes one entry.
pub(in crate::capture) fn map_update<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    key: &K,
    value: &V,
    flags: u64,
) -> io::Result<()> {
    let mut attr = elem(map, key, addr(value), flags);
    // SAFETY: key and value live through the call, the kernel only reads them.
    unsafe { bpf(MAP_UPDATE_ELEM, &mut attr) }.map(drop)
}

/// Deletes one entry; false if there was none.
pub(in crate::capture) fn map_delete<K: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<bool> {
    let mut attr = elem(map, key, 0, 0);
    // SAFETY: the key lives through the call, the kernel only reads it.
    match unsafe { bpf(MAP_DELETE_ELEM, &mut attr) } {
        Ok(_) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

/// The key after `key`, or the first one.
pub(in crate::capture) fn map_next_key<K: Pod>(
    map: BorrowedFd<'_>,
    key: Option<&K>,
) -> io::Result<Option<K>> {
    let mut next = MaybeUninit::<K>::zeroed();
    let mut attr = Elem {
        map: map.as_raw_fd() as u32,
        pad: 0,
        key: key.map_or(0, addr),
        value: next.as_mut_ptr() as u64,
        flags: 0,
    };
    // SAFETY: both keys live through the call; a null key asks for the first.
    match unsafe { bpf(MAP_GET_NEXT_KEY, &mut attr) } {
        // SAFETY: K is plain old data, zeroed before and filled by the kernel.
        Ok(_) => Ok(Some(unsafe { next.assume_init() })),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    elem_flags: u64,
    flags: u64,
}

/// All entries of a hash map, in few calls (kernel 5.6).
pub(in crate::capture) fn map_entries<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
) -> io::Result<Vec<(K, V)>> {
    let mut out = Vec::new();
    let mut capacity = 1024usize;
    // The token is the kernel's own; 4 bytes for hash maps.
    let (mut token_in, mut token_out) = (0u64, 0u64);
    let mut first = true;
    loop {
        let mut keys = Vec::<K>::with_capacity(capacity);
        let mut values = Vec::<V>::with_capacity(capacity);
        let mut attr = Batch {
            in_batch: if first { 0 } else { addr(&token_in) },
            out_batch: std::ptr::from_mut(&mut token_out) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: capacity as u32,
            map: map.as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: both buffers have room for `count` items; the tokens live through the call.
        let end = match unsafe { bpf(MAP_LOOKUP_BATCH, &mut attr) } {
            Ok(_) => false,
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => true,
            // One bucket holds more than there is room for.
            Err(e) if e.raw_os_error() == Some(libc::ENOSPC) && capacity < 1 << 20 => {
                capacity *= 4;
                continue;
            }
            Err(e) => return Err(e),
        };
        let n = (attr.count as usize).min(capacity);
        // SAFETY: the kernel filled the first `n` items of both; K and V are plain old data.
        unsafe {
            keys.set_len(n);
            values.set_len(n);
        }
        out.extend(keys.into_iter().zip(values));
        if end {
            return Ok(out);
        }
        token_in = token_out;
        first = false;
    }
}

#[repr(C)]
struct Obj {
    path: u64,
    fd: u32,
    flags: u32,
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Pins a map, program or link.
pub(in crate::capture) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = Obj {
        path: path.as_ptr() as u64,
        fd: object.as_raw_fd() as u32,
        flags: 0,
    };
    // SAFETY: the path is a C string that lives through the call.
    unsafe { bpf(OBJ_PIN, &mut attr) }.map(drop)
}

/// Opens a pinned map, program or link.
pub(in crate::capture) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = Obj {
        path: path.as_ptr() as u64,
        fd: 0,
        flags: 0,
    };
    // SAFETY: the path is a C string that lives through the call; the command returns a descriptor.
    unsafe { bpf_fd(OBJ_GET, &mut attr) }
}

#[repr(C)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

/// What the kernel says a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::capture) struct MapInfo {
    pub kind: u32,
    pub id: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
}

/// Asks the kernel about an object; 32 words hold the head of every info structure.
fn info(object: BorrowedFd<'_>) -> io::Result<[u32; 64]> {
    let mut words = [0u32; 64];
    let mut attr = InfoAttr {
        fd: object.as_raw_fd() as u32,
        len: size_of_val(&words) as u32,
        info: words.as_mut_ptr() as u64,
    };
    // SAFETY: the kernel writes at most `len` bytes to `words`. All pointers in it are zero, so nothing else is
    // written.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(words)
}

/// Type, sizes and id of a map.
pub(in crate::capture) fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let w = info(map)?;
    Ok(MapInfo {
        kind: w[0],
        id: w[1],
        key_size: w[2],
        value_size: w[3],
        max_entries: w[4],
    })
}

/// Id of the program that a link runs.
pub(in crate::capture) fn link_program(link: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(info(link)?[2])
}

/// Id and name of a program.
pub(in crate::capture) fn program_info(program: BorrowedFd<'_>) -> io::Result<(u32, String)> {
    let w = info(program)?;
    // struct bpf_prog_info: type, id, tag[8], jited_len, xlated_len, two pointers, load_time, uid, nr_map_ids,
    // map_ids, name[16]: the name stands at byte 64.
    let name: Vec<u8> = w[16..20]
        .iter()
        .flat_map(|x| x.to_ne_bytes())
        .take_while(|b| *b != 0)
        .collect();
    Ok((w[1], String::from_utf8_lossy(&name).into_owned()))
}

#[repr(C)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

/// Opens a loaded program by its id.
pub(in crate::capture) fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr = ById {
        id,
        next: 0,
        flags: 0,
    };
    // SAFETY: no pointers; the command returns a descriptor.
    unsafe { bpf_fd(PROG_GET_FD_BY_ID, &mut attr) }
}

/// Where a program can be attached; the kernel's `enum bpf_attach_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(in crate::capture) enum AttachType {
    SockOps = 3,
    Connect4 = 10,
    Connect6 = 11,
    GetPeerName4 = 29,
    GetPeerName6 = 30,
    SkLookup = 36,
}

#[repr(C)]
struct LinkCreateAttr {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// Attaches a program to a cgroup or a network namespace. Flags are 0: for links the kernel allows several by itself
/// and refuses BPF_F_ALLOW_MULTI.
pub(in crate::capture) fn link_create(
    program: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    attach_type: AttachType,
) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateAttr {
        program: program.as_raw_fd() as u32,
        target: target.as_raw_fd() as u32,
        attach_type: attach_type as u32,
        flags: 0,
    };
    // SAFETY: no pointers; the command returns a descriptor.
    unsafe { bpf_fd(LINK_CREATE, &mut attr) }
}

#[repr(C)]
struct LinkUpdateAttr {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// Makes a link run another program, atomically.
pub(in crate::capture) fn link_update(
    link: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
) -> io::Result<()> {
    let mut attr = LinkUpdateAttr {
        link: link.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        flags: 0,
        old_program: 0,
    };
    // SAFETY: no pointers.
    unsafe { bpf(LINK_UPDATE, &mut attr) }.map(drop)
}

/// Detaches a link, whoever else holds it.
pub(in crate::capture) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = link.as_raw_fd() as u32;
    // SAFETY: no pointers.
    unsafe { bpf(LINK_DETACH, &mut attr) }.map(drop)
}

#[repr(C)]
struct QueryAttr {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    pad: u32,
}

/// Ids of the programs attached to a cgroup or namespace.
pub(in crate::capture) fn attached_programs(
    target: BorrowedFd<'_>,
    attach_type: AttachType,
) -> io::Result<Vec<u32>> {
    let mut ids = [0u32; 128];
    let mut attr = QueryAttr {
        target: target.as_raw_fd() as u32,
        attach_type: attach_type as u32,
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
        pad: 0,
    };
    // SAFETY: the kernel writes at most `count` ids.
    unsafe { bpf(PROG_QUERY, &mut attr) }?;
    Ok(ids[..(attr.count as usize).min(ids.len())].to_vec())
}

/// A record of the ring buffer; `None` if it is none of ours (too short).
pub(in crate::capture) fn read_event(item: &[u8]) -> Option<mesh_common::Event> {
    (item.len() >= size_of::<mesh_common::Event>()).then(|| {
        // SAFETY: long enough, and Event is plain old data; the read is allowed to be unaligned.
        unsafe { std::ptr::read_unaligned(item.as_ptr().cast::<mesh_common::Event>()) }
    })
}
