//! Letting a workload go without losing one of its connections, in the order of architecture.md section 3.

use std::{io, path::Path, sync::Arc, time::Duration};

use super::{
    diag,
    enrol::Shared,
    enrolled::Enrolled,
    error::CaptureError,
    pins::{self, Pins},
    policy::Exclusions,
};

/// For so long nothing may arrive before the listeners go: closing one resets what is queued on it.
const QUIET: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A peer that never finishes its handshake is not waited for longer.
const DEADLINE: Duration = Duration::from_secs(15);

/// Stops capturing, waits until everything that was captured has been accepted, then removes what was made for the
/// workload. The caller tells the proxy afterwards, then calls [`Enrolled::let_go`] itself.
pub(super) async fn release(shared: &Shared, enrolled: &Enrolled) -> Vec<String> {
    let cookie = enrolled.cookie();
    if !enrolled.is_gone() {
        if let Some(inner) = enrolled.lock().as_mut()
            && let Err(error) = inner.set_capture(&shared.maps, cookie, 0)
        {
            tracing::warn!(workload = %enrolled.pod.name, %error, "cannot clear the capture flags");
        }
        wait_until_quiet(shared, enrolled).await;
    }
    forget(shared, cookie)
}

async fn wait_until_quiet(shared: &Shared, enrolled: &Enrolled) {
    let begun = tokio::time::Instant::now();
    let mut busy = begun;
    while busy.elapsed() < QUIET {
        if begun.elapsed() > DEADLINE {
            tracing::warn!(
                workload = %enrolled.pod.name,
                "released while a connection was still being made: a peer does not finish its handshake"
            );
            return;
        }
        if enrolled.is_gone() {
            return;
        }
        match is_quiet(shared, enrolled) {
            Ok(true) => {}
            Ok(false) => busy = tokio::time::Instant::now(),
            Err(error) => {
                tracing::warn!(workload = %enrolled.pod.name, %error, "cannot see whether connections are pending");
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// No connection is on its way to a listener of ours.
pub(super) fn is_quiet(shared: &Shared, enrolled: &Enrolled) -> io::Result<bool> {
    let cookie = enrolled.cookie();
    if shared
        .maps
        .orig_dst
        .entries()?
        .iter()
        .any(|(k, _)| k.netns == cookie)
    {
        return Ok(false);
    }
    let mut inner = enrolled.lock();
    let Some(inner) = inner.as_mut() else {
        return Ok(true);
    };
    let mut pending = false;
    let own: Vec<u64> = inner.listeners.iter().map(|l| l.cookie).collect();
    diag::dump(
        &mut inner.diag,
        diag::LISTENING | diag::HALF_OPEN,
        false,
        |socket| {
            pending |= if socket.state == diag::state::LISTEN {
                own.contains(&socket.cookie) && socket.receive_queue > 0
            } else {
                true
            };
        },
    )?;
    Ok(!pending)
}

/// Removes everything in maps and bpffs that stands for a namespace. Says what that was.
pub(super) fn forget(shared: &Shared, cookie: u64) -> Vec<String> {
    let maps = &shared.maps;
    let mut removed = Vec::new();
    let mut note = |what: &str, result: io::Result<usize>| match result {
        Ok(0) => {}
        Ok(n) => removed.push(format!("{n} {what}")),
        Err(error) => tracing::warn!(%error, netns = cookie, "cannot remove {what}"),
    };
    note(
        "sk_lookup program",
        pins::remove_link(&shared.pins.lookup(cookie)).map(usize::from),
    );
    note("addresses", forget_addresses(shared, cookie));
    note(
        "listening ports",
        maps.listen_ports.entries().and_then(|all| {
            let keys = all.iter().map(|(k, _)| k).filter(|k| k.netns == cookie);
            count(keys, |k| maps.listen_ports.remove(k))
        }),
    );
    note(
        "exclusions",
        Exclusions::found(maps, cookie).and_then(|mut e| {
            let n = e.len();
            e.sync(maps, cookie, &crate::model::EffectivePolicy::default())
                .map(|()| n)
        }),
    );
    note(
        "connections in flight",
        maps.orig_dst.entries().and_then(|all| {
            let keys = all.iter().map(|(k, _)| k).filter(|k| k.netns == cookie);
            count(keys, |k| maps.orig_dst.remove(k))
        }),
    );
    note(
        "clients",
        maps.clients.entries().and_then(|all| {
            let keys = all.iter().map(|(k, _)| k).filter(|k| k.netns == cookie);
            count(keys, |k| maps.clients.remove(k))
        }),
    );
    // Last: with its row gone the kernel programs no longer know the namespace, and clean nothing up.
    note(
        "workload row",
        maps.workloads.remove(&cookie).map(usize::from),
    );
    note(
        "connection records",
        maps.conns.entries().and_then(|all| {
            let keys = all
                .iter()
                .filter(|(_, r)| r.netns == cookie)
                .map(|(k, _)| k);
            count(keys, |k| maps.conns.remove(k))
        }),
    );
    note(
        "tuples vouched for",
        maps.vouched.entries().and_then(|all| {
            let keys = all.iter().map(|(k, _)| k).filter(|k| k.netns == cookie);
            count(keys, |k| maps.vouched.remove(k))
        }),
    );
    if let Err(error) = maps.usage.remove(&cookie) {
        tracing::warn!(%error, netns = cookie, "cannot remove its row in usage");
    }
    removed
}

fn forget_addresses(shared: &Shared, cookie: u64) -> io::Result<usize> {
    let all = shared.maps.pod_addrs.entries()?;
    let mut n = 0;
    for (key, _) in all.iter().filter(|(_, p)| p.netns == cookie) {
        super::enrolled::drop_address(&shared.maps, cookie, mesh_common::ip_from_key(key))?;
        n += 1;
    }
    Ok(n)
}

fn count<'a, K: 'a>(
    keys: impl Iterator<Item = &'a K>,
    mut remove: impl FnMut(&K) -> io::Result<bool>,
) -> io::Result<usize> {
    let mut n = 0;
    for key in keys {
        n += usize::from(remove(key)?);
    }
    Ok(n)
}

/// Removes everything that agents of `node` ever pinned, without a running agent. Existing connections through a dead
/// agent are dead already; others live on. Says what was removed; empty if there was nothing.
///
/// # Errors
/// An agent of that name is running.
pub fn release_node(bpffs: &Path, node: &str) -> Result<Vec<String>, CaptureError> {
    let Some(pins) = Pins::open_existing(bpffs, node)? else {
        return Ok(Vec::new());
    };
    Ok(pins.remove_all())
}

/// [`forget`] for the cookies of no workload: left by an earlier agent.
pub(super) fn forget_strays(shared: &Arc<Shared>, keep: &[u64]) -> Vec<u64> {
    let rows = shared.maps.workloads.entries().unwrap_or_default();
    let mut strays: Vec<u64> = rows.iter().map(|(cookie, _)| *cookie).collect();
    strays.extend(shared.pins.lookups());
    strays.sort_unstable();
    strays.dedup();
    strays.retain(|cookie| !keep.contains(cookie));
    for cookie in &strays {
        let removed = forget(shared, *cookie);
        tracing::info!(
            netns = cookie,
            removed = removed.join(", "),
            "released a namespace that is no workload's any more"
        );
    }
    strays
}
