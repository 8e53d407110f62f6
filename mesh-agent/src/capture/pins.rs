//! Where everything is pinned: the BPF filesystem, the node's folder in it, its lock, what is left of other versions.
//!
//! `BPFFS/mesh/NODE/v2/`: each map under its name, `link_PROGRAM` for the links at the cgroup root, `lookup_COOKIE` for
//! the link in each pod's namespace.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use mesh_common::ABI_VERSION;
use rustix::fs::{FlockOperation, flock};

use super::{error::CaptureError, sys::bpf};

const LOOKUP: &str = "lookup_";
const LINK: &str = "link_";

/// The pinned state of one node.
#[derive(Debug)]
pub(super) struct Pins {
    /// `BPFFS/mesh/NODE`
    node_dir: PathBuf,
    /// `BPFFS/mesh/NODE/v2`
    pub dir: PathBuf,
    /// Held as long as the agent lives; a second agent under the same name stops here.
    _lock: File,
}

impl Pins {
    /// Makes the node's folder and locks it.
    pub(super) fn open(bpffs: &Path, node: &str, mount: bool) -> Result<Self, CaptureError> {
        ensure_bpffs(bpffs, mount)?;
        let node_dir = node_dir(bpffs, node);
        let dir = node_dir.join(format!("v{ABI_VERSION}"));
        loop {
            fs::create_dir_all(&dir)
                .map_err(CaptureError::io(format!("cannot make {}", dir.display())))?;
            if let Some(lock) = lock(&node_dir, node)? {
                return Ok(Self {
                    node_dir,
                    dir,
                    _lock: lock,
                });
            }
        }
    }

    /// As [`Self::open`], for what may be there: `None` if nothing was ever pinned.
    pub(super) fn open_existing(bpffs: &Path, node: &str) -> Result<Option<Self>, CaptureError> {
        let node_dir = node_dir(bpffs, node);
        if !node_dir.exists() {
            return Ok(None);
        }
        let dir = node_dir.join(format!("v{ABI_VERSION}"));
        Ok(lock(&node_dir, node)?.map(|lock| Self {
            node_dir,
            dir,
            _lock: lock,
        }))
    }

    /// Path of the link of a program at the cgroup root.
    pub(super) fn link(&self, program: &str) -> PathBuf {
        self.dir.join(format!("{LINK}{program}"))
    }

    /// Path of the `sk_lookup` link of a namespace.
    pub(super) fn lookup(&self, cookie: u64) -> PathBuf {
        lookup_in(&self.dir, cookie)
    }

    /// Cookies of the namespaces with a pinned link.
    pub(super) fn lookups(&self) -> Vec<u64> {
        lookups_in(&self.dir)
    }

    /// Folders of other layout versions.
    pub(super) fn others(&self) -> Vec<PathBuf> {
        let dirs = names(&self.node_dir).into_iter();
        dirs.map(|name| self.node_dir.join(name))
            .filter(|dir| *dir != self.dir && dir.is_dir())
            .collect()
    }

    /// Removes everything of this node, links first so that nothing is captured any more. Says what it removed.
    pub(super) fn remove_all(&self) -> Vec<String> {
        let mut removed = Vec::new();
        for name in names(&self.node_dir) {
            removed.extend(remove_dir(&self.node_dir.join(name)));
        }
        if fs::remove_dir(&self.node_dir).is_ok() {
            removed.push(format!("folder {}", self.node_dir.display()));
        }
        // The folder of all nodes, if this was the last.
        if let Some(mesh) = self.node_dir.parent() {
            let _ = fs::remove_dir(mesh);
        }
        removed
    }
}

/// Path of the `sk_lookup` link of a namespace in the folder of one version.
pub(super) fn lookup_in(dir: &Path, cookie: u64) -> PathBuf {
    dir.join(format!("{LOOKUP}{cookie}"))
}

/// Cookies of the namespaces with a link in the folder of one version.
pub(super) fn lookups_in(dir: &Path) -> Vec<u64> {
    names(dir)
        .iter()
        .filter_map(|n| n.strip_prefix(LOOKUP)?.parse().ok())
        .collect()
}

/// Detaches and unpins a link; false if there was none.
pub(super) fn remove_link(path: &Path) -> io::Result<bool> {
    match bpf::open_pin(path) {
        Ok(link) => detach(&link)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e),
    }
    fs::remove_file(path)?;
    Ok(true)
}

fn detach(link: &OwnedFd) -> io::Result<()> {
    match bpf::link_detach(link.as_fd()) {
        // Its cgroup or namespace is gone, so it is detached already.
        Err(e) if e.raw_os_error() == Some(libc::ENOLINK) => Ok(()),
        other => other,
    }
}

/// Removes the folder of one version, links first. Says what it removed.
pub(super) fn remove_dir(dir: &Path) -> Vec<String> {
    let mut removed = Vec::new();
    let (links, others): (Vec<_>, Vec<_>) = names(dir)
        .into_iter()
        .partition(|n| n.starts_with(LINK) || n.starts_with(LOOKUP));
    for name in links {
        match remove_link(&dir.join(&name)) {
            Ok(_) => removed.push(match name.strip_prefix(LOOKUP) {
                Some(cookie) => format!("sk_lookup program of network namespace {cookie}"),
                None => format!(
                    "program {} at the cgroup root",
                    name.trim_start_matches(LINK)
                ),
            }),
            Err(error) => tracing::warn!(%name, %error, "cannot remove a pinned link"),
        }
    }
    for name in others {
        match fs::remove_file(dir.join(&name)) {
            Ok(()) => removed.push(format!("map {name}")),
            Err(error) => tracing::warn!(%name, %error, "cannot remove a pin"),
        }
    }
    if let Err(error) = fs::remove_dir(dir) {
        tracing::warn!(dir = %dir.display(), %error, "cannot remove a pin folder");
    }
    removed
}

fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .collect()
}

/// bpffs refuses dots in names; node names have no underscore where they are DNS names, so this does not collide.
fn node_dir(bpffs: &Path, node: &str) -> PathBuf {
    bpffs.join("mesh").join(node.replace(['.', '/'], "_"))
}

/// `Ok(None)`: the folder was removed between opening and locking it; try again.
fn lock(dir: &Path, node: &str) -> Result<Option<File>, CaptureError> {
    let file = match File::open(dir) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => {
            return Err(CaptureError::io(format!("cannot open {}", dir.display()))(
                e,
            ));
        }
    };
    // A process that the dead agent had just forked holds its lock until it execs.
    let patience = Instant::now() + Duration::from_millis(500);
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < patience => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(CaptureError::Locked {
                    node: node.into(),
                    path: dir.into(),
                });
            }
            Err(e) => {
                return Err(CaptureError::io(format!("cannot lock {}", dir.display()))(
                    e.into(),
                ));
            }
        }
    }
    use std::os::unix::fs::MetadataExt;
    let same = match (file.metadata(), fs::metadata(dir)) {
        (Ok(a), Ok(b)) => a.ino() == b.ino() && a.dev() == b.dev(),
        _ => false,
    };
    Ok(same.then_some(file))
}

/// True if `path` is on a BPF filesystem.
pub(super) fn is_bpffs(path: &Path) -> bool {
    const BPF_FS_MAGIC: rustix::fs::FsWord = 0xcafe_4a11;
    rustix::fs::statfs(path).is_ok_and(|s| s.f_type == BPF_FS_MAGIC)
}

fn ensure_bpffs(path: &Path, mount: bool) -> Result<(), CaptureError> {
    if is_bpffs(path) {
        return Ok(());
    }
    if !mount || !path.is_dir() {
        return Err(CaptureError::NoBpffs { path: path.into() });
    }
    rustix::mount::mount("bpf", path, "bpf", rustix::mount::MountFlags::empty(), None).map_err(
        |e| CaptureError::MountBpffs {
            path: path.into(),
            source: e.into(),
        },
    )?;
    tracing::info!(path = %path.display(), "mounted a BPF filesystem");
    Ok(())
}
