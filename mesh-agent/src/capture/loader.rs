//! Loading the kernel programs, reusing pinned maps, and putting the programs where the links of an earlier agent
//! stand: new connections never see a moment without a program.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, RingBuf},
    programs::Program,
};
use mesh_common::MAP_EVENTS;

use super::{
    error::CaptureError,
    maps::{Maps, PINNED},
    pins::{self, Pins},
    sys::bpf::{self, AttachType},
};

/// The compiled kernel programs (`mesh-ebpf`).
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../mesh-ebpf/prebuilt/mesh-ebpf.o");

/// Programs attached at the cgroup root.
const AT_CGROUP: [(&str, AttachType); 5] = [
    // What shows and records comes before what captures.
    ("peer4", AttachType::GetPeerName4),
    ("peer6", AttachType::GetPeerName6),
    ("sockets", AttachType::SockOps),
    ("connect4", AttachType::Connect4),
    ("connect6", AttachType::Connect6),
];
/// The program attached in each pod's namespace.
pub(super) const LOOKUP: &str = "inbound";

/// Programs and maps, loaded and attached.
pub(super) struct Loaded {
    pub maps: Arc<Maps>,
    pub events: RingBuf<MapData>,
    /// The `sk_lookup` program.
    pub lookup: OwnedFd,
    /// True if links of an earlier agent were found and taken over.
    pub adopted: bool,
    /// Owns the programs' descriptors and the log's ring buffer.
    pub ebpf: Ebpf,
}

/// Loads everything, opening what an earlier agent pinned, and attaches at `cgroup`.
pub(super) fn load(pins: &Pins, cgroup: &Path) -> Result<Loaded, CaptureError> {
    let mut ebpf = open_object(Some(&pins.dir))?;
    // Before a program meets a map of another layout.
    let maps = Arc::new(Maps::open(&pins.dir)?);
    let programs = load_programs(&mut ebpf)?;
    let root = File::open(cgroup).map_err(CaptureError::io(format!(
        "cannot open the cgroup {}",
        cgroup.display()
    )))?;
    let mut adopted = false;
    for (name, attach_type) in AT_CGROUP {
        let program = find(&programs, name)?;
        adopted |= attach(&pins.link(name), program, &root, attach_type).map_err(|source| {
            CaptureError::Attach {
                name,
                path: cgroup.into(),
                source,
            }
        })?;
    }
    let lookup = find(&programs, LOOKUP)?
        .try_clone()
        .map_err(CaptureError::io("cannot duplicate a descriptor"))?;
    let events = ebpf
        .take_map(MAP_EVENTS)
        .ok_or(CaptureError::Missing("map events"))?;
    let events = RingBuf::try_from(events).map_err(|e| CaptureError::Load(e.into()))?;
    Ok(Loaded {
        maps,
        events,
        lookup,
        adopted,
        ebpf,
    })
}

/// Loads every program once without pinning or attaching anything: does this kernel take them?
pub(super) fn probe() -> Result<(), CaptureError> {
    let mut ebpf = open_object(None)?;
    load_programs(&mut ebpf).map(drop)
}

fn open_object(pin_dir: Option<&Path>) -> Result<Ebpf, CaptureError> {
    let mut loader = EbpfLoader::new();
    let paths: Vec<(&str, PathBuf)> = pin_dir
        .map(|dir| PINNED.iter().map(|name| (*name, dir.join(name))).collect())
        .unwrap_or_default();
    for (name, path) in &paths {
        loader.map_pin_path(name, path.as_path());
    }
    Ok(loader.load(OBJECT)?)
}

type Programs = Vec<(&'static str, OwnedFd)>;

fn load_programs(ebpf: &mut Ebpf) -> Result<Programs, CaptureError> {
    let names = AT_CGROUP.iter().map(|(name, _)| *name).chain([LOOKUP]);
    names
        .map(|name| {
            let program = ebpf.program_mut(name).ok_or(CaptureError::Missing(name))?;
            let refused = |e| CaptureError::Program {
                name,
                source: Box::new(e),
            };
            match program {
                Program::CgroupSockAddr(p) => p.load(),
                Program::SockOps(p) => p.load(),
                Program::SkLookup(p) => p.load(),
                _ => return Err(CaptureError::Missing(name)),
            }
            .map_err(refused)?;
            let fd = program.fd().map_err(refused)?.as_fd().try_clone_to_owned();
            Ok((
                name,
                fd.map_err(CaptureError::io("cannot duplicate a descriptor"))?,
            ))
        })
        .collect()
}

fn find<'a>(programs: &'a Programs, name: &'static str) -> Result<&'a OwnedFd, CaptureError> {
    programs
        .iter()
        .find(|(n, _)| *n == name)
        .map(|(_, fd)| fd)
        .ok_or(CaptureError::Missing(name))
}

/// Puts `program` behind the pinned link, or makes and pins one. True if there was one.
pub(super) fn attach(
    pin: &Path,
    program: &impl AsFd,
    target: &impl AsFd,
    attach_type: AttachType,
) -> io::Result<bool> {
    match bpf::open_pin(pin) {
        Ok(link) => match bpf::link_update(link.as_fd(), program.as_fd()) {
            Ok(()) => return Ok(true),
            // What it was attached to is gone, or it is no link at all: make a new one.
            Err(error) => {
                tracing::warn!(pin = %pin.display(), %error, "a pinned link cannot be taken over; attaching anew");
                if pins::remove_link(pin).is_err() {
                    std::fs::remove_file(pin)?;
                }
            }
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let link = bpf::link_create(program.as_fd(), target.as_fd(), attach_type)?;
    bpf::pin(link.as_fd(), pin)?;
    Ok(false)
}
