//! The Unix socket of the admin interface: only root opens it, and an agent never takes over a living one.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

use super::AdminError;

/// A bound socket; its file goes when this is dropped, if it is still ours.
#[derive(Debug)]
pub struct LocalSocket {
    listener: tokio::net::UnixListener,
    path: PathBuf,
    inode: u64,
}

impl LocalSocket {
    /// Binds, with the rights set before the name appears. A socket that a dead agent left is replaced. Folders that
    /// are missing are made for root only; those that exist stay as they are. Needs a tokio runtime.
    pub fn bind(path: &Path) -> Result<Self, AdminError> {
        let failed = |source| AdminError::Socket {
            path: path.to_owned(),
            source,
        };
        if let Some(parent) = path.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(parent)
                .map_err(failed)?;
        }
        refuse_living(path)?;
        let new = path.with_extension(format!("new-{}", std::process::id()));
        let _ = fs::remove_file(&new);
        let bound = bind_private(&new).and_then(|(listener, inode)| {
            fs::rename(&new, path)?;
            listener.set_nonblocking(true)?;
            Ok((tokio::net::UnixListener::from_std(listener)?, inode))
        });
        match bound {
            Ok((listener, inode)) => Ok(Self {
                listener,
                path: path.to_owned(),
                inode,
            }),
            Err(source) => {
                let _ = fs::remove_file(&new);
                Err(failed(source))
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next connection of a user that may: root, or the agent's own.
    pub(super) async fn accept(&self) -> io::Result<tokio::net::UnixStream> {
        let own = rustix::process::geteuid().as_raw();
        loop {
            let (stream, _) = self.listener.accept().await?;
            let uid = stream.peer_cred()?.uid();
            if uid == 0 || uid == own {
                return Ok(stream);
            }
            tracing::warn!(uid, "refused a connection to the admin socket");
        }
    }
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|m| m.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn bind_private(path: &Path) -> io::Result<(UnixListener, u64)> {
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok((listener, fs::symlink_metadata(path)?.ino()))
}

fn refuse_living(path: &Path) -> Result<(), AdminError> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !metadata.file_type().is_socket() {
        return Err(AdminError::NotASocket {
            path: path.to_owned(),
        });
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(AdminError::AlreadyRunning {
            path: path.to_owned(),
        }),
        Err(_) => Ok(()),
    }
}
