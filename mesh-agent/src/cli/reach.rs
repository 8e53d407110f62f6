//! Finding the agent that is meant.

use std::{
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use super::{Global, failure::Failure};
use crate::admin::client::Client;

/// Folder of the admin sockets.
pub(super) const RUN_DIR: &str = "/run/mesh-agent";
/// A path of a Unix socket has at most 107 bytes.
const MAX_NODE: usize = 63;

/// A node's name: part of paths, so no more than a DNS label with dots would have.
pub(super) fn node_name(text: &str) -> Result<String, String> {
    let good = !text.is_empty()
        && text.len() <= MAX_NODE
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
    if good {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "a node name is 1 to {MAX_NODE} letters, digits, dots, dashes and underscores"
        ))
    }
}

/// The host's name.
pub(super) fn host_name() -> Result<String, Failure> {
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    node_name(&name).map_err(|why| {
        Failure::usage(format!("the host's name {name:?} is no node name: {why}"))
            .next("Name the node with --node.")
    })
}

pub(super) fn default_socket(node: &str) -> PathBuf {
    Path::new(RUN_DIR).join(format!("{node}.sock"))
}

/// The agent that the options mean.
pub(super) fn client(global: &Global) -> Result<Client, Failure> {
    socket(global, Path::new(RUN_DIR)).map(Client::new)
}

pub(super) fn socket(global: &Global, run_dir: &Path) -> Result<PathBuf, Failure> {
    if let Some(socket) = &global.socket {
        return Ok(socket.clone());
    }
    if let Some(node) = &global.node {
        return Ok(run_dir.join(format!("{node}.sock")));
    }
    let all = sockets(run_dir)?;
    // Sockets of agents that were killed stay behind; they count only when nothing else is there.
    let living: Vec<_> = all
        .iter()
        .filter(|path| UnixStream::connect(path).is_ok())
        .collect();
    match (living.as_slice(), all.as_slice()) {
        ([only], _) => Ok((*only).clone()),
        ([], [only]) => Ok(only.clone()),
        ([], []) => Err(Failure::unreachable(format!(
            "no agent runs on this machine: {} has no socket",
            run_dir.display()
        ))
        .next("Start one with: mesh-agent run --config DIR. In a container, use kubectl exec into the agent's pod.")),
        ([], dead) => Err(Failure::unreachable(
            "no agent runs on this machine, but several have left their sockets",
        )
        .next(format!("Choose one with --node: {}", names(dead.iter())))),
        (living, _) => Err(Failure::usage(format!(
            "{} agents run on this machine",
            living.len()
        ))
        .next(format!(
            "Choose one with --node: {}",
            names(living.iter().copied())
        ))),
    }
}

fn sockets(run_dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let entries = match std::fs::read_dir(run_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            return Err(Failure::unreachable(format!(
                "{} may be read by root only",
                run_dir.display()
            ))
            .next("Try again with sudo."));
        }
        Err(error) => return Err(error.into()),
    };
    let mut sockets: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "sock"))
        .collect();
    sockets.sort();
    Ok(sockets)
}

fn names<'a>(sockets: impl Iterator<Item = &'a PathBuf>) -> String {
    let names: Vec<_> = sockets
        .filter_map(|path| Some(path.file_stem()?.to_string_lossy().into_owned()))
        .collect();
    names.join(", ")
}
