//! Connections that the agent does not carry (older than enrolment, or let in while it was away), ended when policy no
//! longer allows them.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use mesh_common::ConnRecord;
use tokio::sync::watch;

use crate::{
    capture::Capture, catalog::Catalog, model::ResourceName, policy::Facts, proxy::decide,
    telemetry::Reason,
};

/// Connections that should be closed and could not be, by cookie, with the reason why they should.
#[derive(Debug, Default)]
pub(super) struct Unmeshed {
    left: Mutex<BTreeMap<u64, (ResourceName, Reason)>>,
}

/// How often records are looked at where nothing changed: a pod may have been enrolled since.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Follows what capture has applied.
pub(super) async fn run(
    unmeshed: Arc<Unmeshed>,
    catalog: Arc<Catalog>,
    capture: Arc<Capture>,
    mut applied: watch::Receiver<u64>,
) {
    loop {
        // Reads a map and makes system calls.
        let (unmeshed, catalog, capture) = (unmeshed.clone(), catalog.clone(), capture.clone());
        let looked =
            tokio::task::spawn_blocking(move || unmeshed.enforce(&catalog, &capture)).await;
        if let Err(error) = looked {
            tracing::error!(%error, "looking at connections that the agent does not carry failed");
        }
        if let Ok(Err(_)) = tokio::time::timeout(LOOK_EVERY, applied.changed()).await {
            return;
        }
    }
}

impl Unmeshed {
    /// Looks at every record; takes a system call for each connection that is closed.
    fn enforce(&self, catalog: &Catalog, capture: &Capture) {
        let mut left = BTreeMap::new();
        if !any_protected(catalog) {
            *self.lock() = left;
            return;
        }
        for (cookie, record) in capture.plain_inbound() {
            let Some((name, reason)) = forbidden(catalog, &record) else {
                continue;
            };
            let (local, remote) = (
                SocketAddr::from(record.local),
                SocketAddr::from(record.remote),
            );
            match capture.destroy(record.netns, cookie) {
                Ok(true) => {
                    tracing::info!(workload = %name, %local, %remote, %reason, "closed a connection that the agent does not carry");
                }
                // It is gone already.
                Ok(false) => {}
                Err(error) => {
                    let known = self.lock().contains_key(&cookie);
                    if !known {
                        tracing::warn!(workload = %name, %local, %remote, %reason, %error, "cannot close a connection that policy forbids");
                    }
                    left.insert(cookie, (name, reason));
                }
            }
        }
        *self.lock() = left;
    }

    /// Those that live on.
    pub(super) fn left(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, (ResourceName, Reason)>> {
        self.left
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Whether anything could be forbidden on this node.
fn any_protected(catalog: &Catalog) -> bool {
    let snapshot = catalog.load();
    snapshot.local_workloads().any(|workload| {
        workload.policy.any_strict() || snapshot.authorizer(&workload.name).protects()
    })
}

/// Whose connection it is and why it may not go on, if it may not.
fn forbidden(catalog: &Catalog, record: &ConnRecord) -> Option<(ResourceName, Reason)> {
    let name = catalog.workload_by_netns(record.netns)?;
    let snapshot = catalog.load();
    let workload = snapshot.workload(&name)?;
    let (local, remote) = (
        SocketAddr::from(record.local),
        SocketAddr::from(record.remote),
    );
    if remote.ip().is_loopback() {
        return None;
    }
    let facts = Facts {
        source: None,
        source_ip: remote.ip(),
        destination_ip: local.ip(),
        destination_port: local.port(),
        http: None,
    };
    let authorizer = snapshot.authorizer(&name);
    let reason = decide::admit(&workload.policy, &authorizer, &facts).refusal()?;
    Some((name, reason))
}
