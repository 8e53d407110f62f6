//! Which workloads shall be captured, which are, and the pass that makes the second follow the first.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use futures::StreamExt;
use tokio::time::Instant;

use super::{
    Capture, PodEvent, WantedPod, enrolled::Enrolled, error::EnrolError, release, versions, watch,
};
use crate::model::ResourceName;

/// Enrolments at once. Each is a few milliseconds of system calls, and waits for its self-test.
const AT_ONCE: usize = 8;
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// How capture stands for one workload.
#[derive(Clone, Debug, serde::Serialize)]
pub struct PodStatus {
    pub name: ResourceName,
    pub netns: PathBuf,
    /// Cookie of its namespace; none before it was opened.
    pub cookie: Option<u64>,
    pub state: PodState,
    /// Captured addresses.
    pub addresses: Vec<IpAddr>,
    /// Where its applications listen.
    pub listening: Vec<SocketAddr>,
    /// Since when the state holds.
    pub since: SystemTime,
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum PodState {
    Enrolling,
    Enrolled,
    Releasing,
    /// It is tried again by itself.
    Failed {
        reason: String,
        attempts: u32,
    },
}

impl PodState {
    /// Value of a metric label, word of a table.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Enrolling => "enrolling",
            Self::Enrolled => "enrolled",
            Self::Releasing => "releasing",
            Self::Failed { .. } => "failed",
        }
    }
}

#[derive(Default)]
pub(super) struct Table {
    wanted: HashMap<ResourceName, WantedPod>,
    slots: BTreeMap<ResourceName, Slot>,
    /// Somebody has said what is wanted. Before, all that an earlier agent captured stays captured.
    asked: bool,
    /// What an earlier agent left was looked through.
    swept: bool,
    /// Nothing is enrolled any more.
    closed: bool,
}

struct Slot {
    path: PathBuf,
    since: SystemTime,
    stage: Stage,
}

enum Stage {
    Enrolling,
    Enrolled(Arc<Enrolled>),
    Releasing(Arc<Enrolled>),
    Failed {
        reason: String,
        attempts: u32,
        retry: Instant,
    },
}

impl Slot {
    fn new(path: PathBuf, stage: Stage) -> Self {
        Self {
            path,
            since: SystemTime::now(),
            stage,
        }
    }
}

impl Table {
    pub(super) fn set_wanted(&mut self, wanted: Vec<WantedPod>) {
        self.asked = true;
        self.wanted = wanted.into_iter().map(|w| (w.name.clone(), w)).collect();
        // What was asked for anew is tried at once.
        self.retry_failed(|_| true);
    }

    /// Makes failed enrolments due whose path satisfies `which`.
    pub(super) fn retry_failed(&mut self, which: impl Fn(&std::path::Path) -> bool) {
        for slot in self.slots.values_mut().filter(|s| which(&s.path)) {
            if let Stage::Failed { retry, .. } = &mut slot.stage {
                *retry = Instant::now();
            }
        }
    }

    /// From now on nothing is enrolled.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    /// Folders of the paths of all wanted namespaces.
    pub(super) fn folders(&self) -> Vec<PathBuf> {
        let mut folders: Vec<PathBuf> = self
            .wanted
            .values()
            .filter_map(|w| Some(w.netns.parent()?.to_path_buf()))
            .collect();
        folders.sort();
        folders.dedup();
        folders
    }

    pub(super) fn enrolled(&self) -> HashMap<u64, Arc<Enrolled>> {
        let live = self.slots.values().filter_map(|slot| match &slot.stage {
            Stage::Enrolled(e) | Stage::Releasing(e) => Some((e.cookie(), e.clone())),
            _ => None,
        });
        live.collect()
    }

    pub(super) fn enrolled_by_name(&self, name: &ResourceName) -> Option<Arc<Enrolled>> {
        match &self.slots.get(name)?.stage {
            Stage::Enrolled(e) => Some(e.clone()),
            _ => None,
        }
    }

    pub(super) fn status(&self) -> Vec<PodStatus> {
        self.slots
            .iter()
            .map(|(name, slot)| slot.status(name))
            .collect()
    }

    /// What the pass has to do; marks it as being done.
    fn plan(&mut self) -> Plan {
        let mut plan = Plan::default();
        let now = Instant::now();
        for (name, slot) in &mut self.slots {
            let wanted = self.wanted.get(name).filter(|w| w.netns == slot.path);
            if let Stage::Enrolled(e) = &slot.stage {
                match wanted {
                    Some(wanted) if !e.is_gone() => plan.update.push((e.clone(), wanted.clone())),
                    _ => {
                        plan.release.push((name.clone(), e.clone()));
                        let stage = Stage::Releasing(e.clone());
                        *slot = Slot::new(slot.path.clone(), stage);
                    }
                }
            }
        }
        self.slots.retain(|name, slot| match &slot.stage {
            Stage::Failed { .. } => self.wanted.get(name).is_some_and(|w| w.netns == slot.path),
            _ => true,
        });
        if self.closed {
            return plan;
        }
        for (name, wanted) in &self.wanted {
            let attempts = match self.slots.get(name).map(|s| &s.stage) {
                None => 0,
                Some(Stage::Failed {
                    attempts, retry, ..
                }) if *retry <= now => *attempts,
                Some(_) => continue,
            };
            if attempts == 0 {
                self.slots.insert(
                    name.clone(),
                    Slot::new(wanted.netns.clone(), Stage::Enrolling),
                );
            }
            plan.enrol.push((wanted.clone(), attempts));
        }
        // A stable order, so that of two workloads that claim one namespace the same one wins each time.
        plan.enrol.sort_by(|a, b| a.0.name.cmp(&b.0.name));
        plan
    }

    fn fail(&mut self, wanted: &WantedPod, error: &EnrolError, attempts: u32) {
        let reason = error.to_string();
        let delay = FIRST_RETRY
            .saturating_mul(1 << attempts.min(10))
            .min(LAST_RETRY);
        let known = match self.slots.get(&wanted.name).map(|s| &s.stage) {
            Some(Stage::Failed { reason: r, .. }) => *r == reason,
            _ => false,
        };
        if !known {
            tracing::warn!(workload = %wanted.name, %reason, "not captured; trying again");
        }
        let stage = Stage::Failed {
            reason,
            attempts: attempts + 1,
            retry: Instant::now() + delay,
        };
        let since = self
            .slots
            .get(&wanted.name)
            .filter(|_| known)
            .map(|s| s.since);
        let mut slot = Slot::new(wanted.netns.clone(), stage);
        slot.since = since.unwrap_or(slot.since);
        self.slots.insert(wanted.name.clone(), slot);
    }
}

#[derive(Default)]
struct Plan {
    update: Vec<(Arc<Enrolled>, WantedPod)>,
    release: Vec<(ResourceName, Arc<Enrolled>)>,
    enrol: Vec<(WantedPod, u32)>,
}

impl Slot {
    fn status(&self, name: &ResourceName) -> PodStatus {
        let mut status = PodStatus {
            name: name.clone(),
            netns: self.path.clone(),
            cookie: None,
            state: PodState::Enrolling,
            addresses: Vec::new(),
            listening: Vec::new(),
            since: self.since,
        };
        let enrolled = match &self.stage {
            Stage::Enrolling => return status,
            Stage::Failed {
                reason, attempts, ..
            } => {
                status.state = PodState::Failed {
                    reason: reason.clone(),
                    attempts: *attempts,
                };
                return status;
            }
            Stage::Enrolled(e) => {
                status.state = PodState::Enrolled;
                e
            }
            Stage::Releasing(e) => {
                status.state = PodState::Releasing;
                e
            }
        };
        status.cookie = Some(enrolled.cookie());
        if let Some(inner) = enrolled.lock().as_ref() {
            status.addresses.clone_from(&inner.addresses);
            status.listening.clone_from(&inner.listening);
        }
        status
    }
}

impl Capture {
    /// One pass: policies, releases, enrolments that are due.
    pub(super) async fn reconcile(self: &Arc<Self>) {
        let _one = self.reconciling.lock().await;
        let plan = self.table().plan();
        for (enrolled, wanted) in plan.update {
            if let Err(error) = enrolled.update(&self.shared.maps, &wanted) {
                tracing::error!(workload = %wanted.name, %error, "cannot write its policy into the kernel's maps");
            }
        }
        for (name, enrolled) in plan.release {
            let capture = self.clone();
            tokio::spawn(async move { capture.release(name, enrolled).await });
        }
        let enrolling = plan.enrol.into_iter().map(|(wanted, attempts)| async move {
            match self.shared.enrol(&wanted).await {
                Ok((enrolled, changes)) => self.enrolment_done(&wanted, enrolled, changes).await,
                Err(error) => self.table().fail(&wanted, &error, attempts),
            }
        });
        futures::stream::iter(enrolling)
            .buffer_unordered(AT_ONCE)
            .collect::<Vec<()>>()
            .await;
        let sweep = {
            let table = self.table();
            table.asked && !table.swept
        };
        if sweep {
            self.sweep().await;
        }
    }

    async fn enrolment_done(
        self: &Arc<Self>,
        wanted: &WantedPod,
        enrolled: Arc<Enrolled>,
        changes: OwnedFd,
    ) {
        watch::addresses(self, &enrolled, changes);
        tracing::info!(workload = %wanted.name, netns = enrolled.cookie(), "captured");
        self.table().slots.insert(
            wanted.name.clone(),
            Slot::new(wanted.netns.clone(), Stage::Enrolled(enrolled.clone())),
        );
        // Nobody reads any more: the agent is on its way out.
        let _ = self
            .pods
            .send(PodEvent::Enrolled(enrolled.pod.clone()))
            .await;
    }

    async fn release(self: &Arc<Self>, name: ResourceName, enrolled: Arc<Enrolled>) {
        let cookie = enrolled.cookie();
        let removed = release::release(&self.shared, &enrolled).await;
        let gone = enrolled.is_gone();
        let _ = self.pods.send(PodEvent::Released { cookie, gone }).await;
        enrolled.let_go(gone);
        self.shared.claims().remove(&cookie);
        tracing::info!(workload = %name, netns = cookie, gone, removed = removed.join(", "), "released");
        self.table().slots.remove(&name);
        self.wake.notify_one();
    }

    /// Releases every workload and waits until that is done. Says what was removed for each.
    pub(super) async fn release_workloads(self: &Arc<Self>) -> Vec<String> {
        {
            let mut table = self.table();
            table.wanted.clear();
            table.closed = true;
        }
        let names: Vec<ResourceName> = self.table().slots.keys().cloned().collect();
        self.reconcile().await;
        while !self.table().slots.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        names
            .iter()
            .map(|name| format!("workload {name}"))
            .collect()
    }

    /// After the first pass, until it is done: what an earlier agent captured and nobody wants any more.
    async fn sweep(self: &Arc<Self>) {
        let failed: Vec<PathBuf> = {
            let table = self.table();
            let failed = table
                .slots
                .values()
                .filter(|s| matches!(s.stage, Stage::Failed { .. }));
            failed.map(|s| s.path.clone()).collect()
        };
        let mut keep: Vec<u64> = self.enrolled().into_keys().collect();
        for path in failed {
            match self.shared.cookie_of(&path).await {
                // Still under the fail policy until it can be enrolled.
                Ok(cookie) => keep.push(cookie),
                Err(EnrolError::OpenNetns { source, .. })
                    if source.kind() == std::io::ErrorKind::NotFound => {}
                // Cannot tell which are its: look again later.
                Err(_) => return,
            }
        }
        release::forget_strays(&self.shared, &keep);
        self.table().swept = versions::sweep(&self.shared.pins, &keep);
    }

    /// Marks the pod of a namespace for another look at its listeners.
    pub(super) fn listeners_may_have_changed(&self, cookie: u64) {
        if let Some(enrolled) = self.enrolled().get(&cookie) {
            enrolled.dirty.store(true, Ordering::Relaxed);
            self.listeners_changed.notify_one();
        }
    }
}
