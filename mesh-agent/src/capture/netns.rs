//! Network namespaces: opening and checking one, and the thread that steps into them.
//!
//! Only that thread calls setns, so no runtime thread ever stands in a pod. It steps back after each request: a thread
//! inside keeps a deleted namespace alive.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::oneshot;

use super::error::{CaptureError, EnrolError};

/// An open network namespace. Keeps it alive.
#[derive(Debug)]
pub(super) struct Netns {
    file: File,
    /// The path by which it was opened.
    pub path: PathBuf,
    pub id: NetnsId,
}

/// What tells namespaces apart: device and inode in nsfs. May be reused after the namespace died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct NetnsId(u64, u64);

impl Netns {
    /// Opens `path` and checks that it is a network namespace and not this agent's or the machine's own.
    pub(super) fn open(path: &Path) -> Result<Self, EnrolError> {
        let open_error = |source| EnrolError::OpenNetns {
            path: path.into(),
            source,
        };
        let file = File::open(path).map_err(open_error)?;
        // `ip netns add` makes the file first and mounts the namespace over it a moment later.
        const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;
        let fs = rustix::fs::fstatfs(&file).map_err(|e| open_error(e.into()))?;
        if fs.f_type != NSFS_MAGIC {
            return Err(EnrolError::NotNetns { path: path.into() });
        }
        let id = id_of(&file.metadata().map_err(open_error)?);
        for own in ["/proc/self/ns/net", "/proc/1/ns/net"] {
            if NetnsId::of(Path::new(own)) == Some(id) {
                return Err(EnrolError::HostNetns { path: path.into() });
            }
        }
        Ok(Self {
            file,
            path: path.into(),
            id,
        })
    }
}

impl NetnsId {
    /// What `path` leads to now.
    pub(super) fn of(path: &Path) -> Option<Self> {
        std::fs::metadata(path).ok().as_ref().map(id_of)
    }
}

fn id_of(metadata: &std::fs::Metadata) -> NetnsId {
    NetnsId(metadata.dev(), metadata.ino())
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

type Job = Box<dyn FnOnce() + Send>;

struct Request {
    netns: Arc<Netns>,
    job: Job,
}

/// Handle of the namespace thread. The thread ends when the last handle is gone.
#[derive(Clone)]
pub(super) struct NetnsThread {
    requests: mpsc::SyncSender<Request>,
}

impl NetnsThread {
    /// Starts the thread.
    pub(super) fn start() -> Result<Self, CaptureError> {
        // Senders wait when more are queued; each takes microseconds.
        let (requests, queue) = mpsc::sync_channel::<Request>(256);
        let home = File::open("/proc/self/ns/net").map_err(CaptureError::io(
            "cannot open the agent's own network namespace",
        ))?;
        std::thread::Builder::new()
            .name("netns".into())
            .spawn(move || serve(&queue, &home))
            .map_err(CaptureError::io("cannot start the namespace thread"))?;
        Ok(Self { requests })
    }

    /// Runs `job` inside `netns` and returns what it returns. `job` must be short: all pods share the thread.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        netns: Arc<Netns>,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, EnrolError> {
        let (answer, wait) = oneshot::channel();
        let request = Request {
            netns,
            job: Box::new(move || {
                // The asker may be gone; what was made is dropped then.
                let _ = answer.send(job());
            }),
        };
        let mut request = Some(request);
        while let Some(r) = request.take() {
            match self.requests.try_send(r) {
                Ok(()) => {}
                Err(mpsc::TrySendError::Full(r)) => {
                    request = Some(r);
                    tokio::task::yield_now().await;
                }
                Err(mpsc::TrySendError::Disconnected(_)) => return Err(EnrolError::ThreadGone),
            }
        }
        // No answer: setns failed and the job was dropped.
        wait.await.map_err(|_| EnrolError::Io {
            what: "cannot step into the network namespace (needs CAP_SYS_ADMIN)",
            source: io::Error::from_raw_os_error(libc::EPERM),
        })
    }
}

fn serve(queue: &mpsc::Receiver<Request>, home: &File) {
    let step = |to: BorrowedFd<'_>| move_into_link_name_space(to, Some(LinkNameSpaceType::Network));
    while let Ok(Request { netns, job }) = queue.recv() {
        if let Err(error) = step(netns.as_fd()) {
            tracing::warn!(path = %netns.path.display(), %error, "cannot step into a network namespace");
            continue;
        }
        job();
        if let Err(error) = step(home.as_fd()) {
            // Going on would make sockets in the wrong place.
            tracing::error!(%error, "cannot step back out of a pod's network namespace; capture stops making sockets");
            return;
        }
    }
}
