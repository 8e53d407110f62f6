//! The tasks that keep capture true: ring buffer, listeners, addresses, namespaces that come and go, a one-second
//! tick. They hold the capture weakly and end with it.

use std::{
    collections::HashMap,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
};
use mesh_common::{Event, EventKind};
use rustix::fs::inotify;
use tokio::{io::unix::AsyncFd, sync::Notify};

use super::{
    Capture, conns,
    enrolled::{AbortOnDrop, Enrolled},
    error::CaptureError,
    listening, sys,
};

const TICK: Duration = Duration::from_secs(1);
/// Several listeners that come or go at once are one look.
const SETTLE: Duration = Duration::from_millis(20);
/// Pods looked at each tick though nothing was heard of them: what the kernel programs cannot see is found in the end.
const ROTATE: usize = 16;

/// Starts the tasks of a capture.
pub(super) fn start(
    capture: &Arc<Capture>,
    events: RingBuf<MapData>,
    ebpf: Ebpf,
) -> Result<(), CaptureError> {
    let failed = |what: &str| CaptureError::io(format!("cannot wait for {what}"));
    let events = sys::readable(events).map_err(failed("the ring buffer"))?;
    let inotify = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
        .map_err(|e| failed("inotify")(e.into()))?;
    let inotify = sys::readable(inotify).map_err(failed("inotify"))?;
    let weak = || Arc::downgrade(capture);
    let tasks = [
        tokio::spawn(read_events(weak(), events)),
        tokio::spawn(follow_listeners(weak(), capture.listeners_changed.clone())),
        tokio::spawn(follow_namespaces(weak(), inotify)),
        tokio::spawn(tick(weak(), capture.wake.clone())),
        tokio::spawn(log(ebpf)),
    ];
    capture
        .tasks
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .extend(tasks.map(AbortOnDrop));
    Ok(())
}

/// Final records go to telemetry, news of listeners to [`follow_listeners`].
async fn read_events(capture: Weak<Capture>, mut events: AsyncFd<RingBuf<MapData>>) {
    loop {
        let Ok(mut ready) = events.readable_mut().await else {
            return;
        };
        let Some(capture) = capture.upgrade() else {
            return;
        };
        while let Some(item) = ready.get_inner_mut().next() {
            let Some(event) = sys::bpf::read_event(&item) else {
                continue;
            };
            handle(&capture, &event);
        }
        ready.clear_ready();
    }
}

fn handle(capture: &Capture, event: &Event) {
    if event.kind == EventKind::Closed as u32 {
        capture.report_closed(event.cookie, event.record);
    } else if event.kind == EventKind::Listen as u32 {
        capture.listeners_may_have_changed(event.record.netns);
    }
}

async fn follow_listeners(capture: Weak<Capture>, changed: Arc<Notify>) {
    loop {
        changed.notified().await;
        tokio::time::sleep(SETTLE).await;
        let Some(capture) = capture.upgrade() else {
            return;
        };
        blocking(&capture, |capture| look_at_listeners(capture, 0)).await;
    }
}

/// Looks at pods that were heard of, and at `more` others in rotation.
fn look_at_listeners(capture: &Capture, more: usize) {
    let pods = capture.enrolled();
    let mut due: Vec<Arc<Enrolled>> = pods
        .values()
        .filter(|p| p.dirty.swap(false, Ordering::Relaxed))
        .cloned()
        .collect();
    if more > 0 {
        let mut others: Vec<&Arc<Enrolled>> = pods.values().collect();
        others.sort_by_key(|p| p.cookie());
        let begin = capture.rotation.fetch_add(more, Ordering::Relaxed);
        let n = others.len();
        let turn = (0..more.min(n)).filter_map(|i| others.get((begin + i) % n).copied());
        for pod in turn {
            // A notice may have been lost, or an address was another's when it came.
            if let Err(error) = pod.sync_addresses(&capture.shared.maps) {
                tracing::warn!(workload = %pod.pod.name, %error, "an address is not captured");
            }
            due.push(pod.clone());
        }
    }
    if due.is_empty() {
        return;
    }
    let maps = &capture.shared.maps;
    let found = match listening::found(maps) {
        Ok(found) => found,
        Err(error) => return tracing::warn!(%error, "cannot read listen_ports"),
    };
    for pod in due {
        let here = found.get(&pod.cookie()).cloned().unwrap_or_default();
        match pod.sync_listening(maps, &here) {
            Ok(true) => {}
            Ok(false) => {
                pod.dirty.store(true, Ordering::Relaxed);
                capture.listeners_changed.notify_one();
            }
            Err(error) => {
                tracing::warn!(workload = %pod.pod.name, %error, "cannot look at its listening sockets");
                pod.dirty.store(true, Ordering::Relaxed);
            }
        }
    }
}

async fn tick(capture: Weak<Capture>, wake: Arc<Notify>) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut n = 0u64;
    loop {
        // Woken when a release is done.
        let ticked = tokio::select! {
            _ = interval.tick() => true,
            () = wake.notified() => false,
        };
        let Some(capture) = capture.upgrade() else {
            return;
        };
        capture.reconcile().await;
        if !ticked {
            continue;
        }
        n += 1;
        blocking(&capture, move |capture| {
            look_at_listeners(capture, ROTATE);
            refresh(capture);
            if n.is_multiple_of(5) {
                for pod in capture.enrolled().values() {
                    pod.pod.shrink_pools();
                }
            }
            if n.is_multiple_of(10) {
                match conns::sweep(&capture.shared.maps) {
                    Ok(0) => {}
                    Ok(entries) => tracing::debug!(entries, "swept connections that nobody took"),
                    Err(error) => tracing::warn!(%error, "cannot sweep old entries"),
                }
            }
        })
        .await;
    }
}

fn refresh(capture: &Capture) {
    match conns::refresh(&capture.shared.maps, &capture.enrolled()) {
        Ok(refreshed) => {
            for (cookie, record) in refreshed.ended {
                capture.report_closed(cookie, record);
            }
        }
        Err(error) => tracing::warn!(%error, "cannot refresh connection records"),
    }
}

/// Runs system calls that may take milliseconds where no connection waits for them.
async fn blocking(capture: &Arc<Capture>, work: impl FnOnce(&Capture) + Send + 'static) {
    let capture = capture.clone();
    // An error: the work panicked (reported by the runtime) or the runtime ends.
    let _ = tokio::task::spawn_blocking(move || work(&capture)).await;
}

/// Follows the addresses of one pod until it is released.
pub(super) fn addresses(capture: &Arc<Capture>, enrolled: &Arc<Enrolled>, changes: OwnedFd) {
    let (maps, weak) = (capture.shared.maps.clone(), Arc::downgrade(enrolled));
    let task = async move {
        let changes = match sys::readable(changes) {
            Ok(changes) => changes,
            Err(error) => return tracing::warn!(%error, "cannot follow a pod's addresses"),
        };
        loop {
            // Also what changed before the watch began.
            let Some(enrolled) = weak.upgrade() else {
                return;
            };
            if let Err(error) = enrolled.sync_addresses(&maps) {
                tracing::warn!(workload = %enrolled.pod.name, %error, "cannot take over a change of its addresses");
            }
            drop(enrolled);
            let Ok(mut ready) = changes.readable().await else {
                return;
            };
            drain(changes.get_ref());
            ready.clear_ready();
        }
    };
    enrolled.own_task(tokio::spawn(task));
}

/// What the notices say does not matter: the addresses are read anew.
fn drain(socket: &OwnedFd) {
    let mut buffer = [0u8; 8192];
    loop {
        match rustix::net::recv(
            socket.as_fd(),
            &mut buffer[..],
            rustix::net::RecvFlags::DONTWAIT,
        ) {
            Ok(_) => {}
            // ENOBUFS: notices were lost, and the same is done about them.
            Err(rustix::io::Errno::INTR | rustix::io::Errno::NOBUFS) => {}
            Err(_) => return,
        }
    }
}

/// Namespaces that come and go under the paths of workloads.
async fn follow_namespaces(capture: Weak<Capture>, inotify: AsyncFd<OwnedFd>) {
    let mut watched = HashMap::new();
    loop {
        {
            let Some(capture) = capture.upgrade() else {
                return;
            };
            watch_folders(&capture, inotify.get_ref(), &mut watched);
        }
        tokio::select! {
            ready = inotify.readable() => {
                let Ok(mut ready) = ready else { return };
                read_notices(inotify.get_ref());
                ready.clear_ready();
            }
            () = tokio::time::sleep(TICK) => continue,
        }
        let Some(capture) = capture.upgrade() else {
            return;
        };
        // `ip netns add` makes the file first and mounts over it a moment later: look twice.
        for pause in [Duration::ZERO, Duration::from_millis(50)] {
            tokio::time::sleep(pause).await;
            capture
                .table()
                .retry_failed(|path| path.parent().is_some_and(|p| watched.contains_key(p)));
            capture.reconcile().await;
        }
    }
}

/// Watches the folder of every wanted path. A folder that is not there yet is tried again at the next tick.
fn watch_folders(capture: &Capture, inotify: &OwnedFd, watched: &mut HashMap<PathBuf, i32>) {
    use inotify::WatchFlags;
    let flags = WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::MOVED_FROM
        | WatchFlags::MOVED_TO
        | WatchFlags::ONLYDIR;
    let folders = capture.table().folders();
    watched.retain(|folder, wd| {
        let keep = folders.contains(folder) && Path::exists(folder);
        if !keep {
            // Gone with its folder, perhaps.
            let _ = inotify::remove_watch(inotify, *wd);
        }
        keep
    });
    for folder in folders {
        if !watched.contains_key(&folder)
            && let Ok(wd) = inotify::add_watch(inotify, &folder, flags)
        {
            watched.insert(folder, wd);
        }
    }
}

fn read_notices(inotify: &OwnedFd) {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(inotify, &mut buffer);
    while reader.next().is_ok() {}
}

/// What the kernel programs log, through the `log` crate's logger if the process has one.
async fn log(mut ebpf: Ebpf) {
    let logger = match aya_log::EbpfLogger::init(&mut ebpf) {
        Ok(logger) => logger,
        Err(error) => return tracing::debug!(%error, "the kernel programs do not log"),
    };
    let mut logger = match sys::readable(logger) {
        Ok(logger) => logger,
        Err(error) => return tracing::warn!(%error, "cannot wait for the kernel programs' log"),
    };
    loop {
        let Ok(mut ready) = logger.readable_mut().await else {
            return;
        };
        ready.get_inner_mut().flush();
        ready.clear_ready();
    }
}
