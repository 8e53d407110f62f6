//! The workloads of a snapshot: who is enrolled, which policy applies, who has which label.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use super::{CatalogOptions, build::keep_equal, snapshot::Snapshot};
use crate::{
    api::{self, Config, Diff, ENABLED_LABEL, Object, contains_all},
    model::{
        EffectivePolicy, Enrolment, NotEnrolled, ResourceName, SpiffeId, TunnelProtocol, Workload,
    },
    policy::{MeshPolicies, Trust},
};

type Source = Arc<Object<api::Workload>>;
type Label = (Arc<str>, String, String);

/// Workloads as their sources wrote them, by name and by label.
#[derive(Debug, Default)]
pub(super) struct Workloads {
    by_name: HashMap<ResourceName, Source>,
    by_label: HashMap<Label, BTreeSet<Arc<str>>>,
    policies: MeshPolicies,
    trust: Trust,
    enabled: HashMap<Arc<str>, bool>,
}

impl Workloads {
    /// Brings the snapshot's workloads up to date; `scopes_changed` says that namespaces or policies did change.
    /// Returns whether anything differs.
    pub(super) fn update(
        &mut self,
        next: &mut Snapshot,
        options: &CatalogOptions,
        config: &Config,
        diff: &Diff<'_, Object<api::Workload>>,
        scopes_changed: bool,
    ) -> bool {
        if scopes_changed {
            self.policies = MeshPolicies::new(
                &config.mesh_policies,
                &options.root_namespace,
                &options.exceptions,
            );
            self.trust = self.policies.trust();
            self.enabled = config
                .namespaces
                .iter()
                .map(|namespace| {
                    let label = namespace.metadata.labels.get(ENABLED_LABEL);
                    (Arc::clone(&namespace.name.name), label == Some("true"))
                })
                .collect();
        } else if diff.is_empty() {
            return false;
        }
        for workload in &diff.removed {
            self.remove(workload);
        }
        for workload in &diff.added {
            self.add(workload);
        }

        let mut fresh: Vec<Arc<Workload>> = Vec::new();
        let concerned: &mut dyn Iterator<Item = &Source> = if scopes_changed {
            &mut config.workloads.iter()
        } else {
            &mut diff.added.iter().copied()
        };
        for source in concerned {
            let old = next.workloads.get(&source.name);
            let policy = self
                .policies
                .effective(&source.name.namespace, &source.metadata.labels.0);
            let Some(workload) = self.workload(source, policy, &options.node) else {
                // Names are checked when a resource is read.
                tracing::error!(workload = %source.name, "its names make no identity; it is left out");
                continue;
            };
            let workload = keep_equal(old, workload);
            if old.is_none_or(|old| !Arc::ptr_eq(old, &workload)) {
                fresh.push(workload);
            }
        }
        let gone: Vec<&Source> = diff
            .removed
            .iter()
            .copied()
            .filter(|workload| !self.by_name.contains_key(&workload.name))
            .collect();
        if fresh.is_empty() && gone.is_empty() {
            return false;
        }
        let workloads = Arc::make_mut(&mut next.workloads);
        let by_address = Arc::make_mut(&mut next.by_address);
        // Every old address goes before any new one comes: an address may move from one workload to another.
        let replaced = gone
            .iter()
            .map(|gone| &gone.name)
            .chain(fresh.iter().map(|w| &w.name));
        for name in replaced {
            if let Some(old) = workloads.remove(name) {
                for address in &old.addresses {
                    by_address.remove(address);
                }
            }
        }
        for workload in fresh {
            for address in &workload.addresses {
                by_address.insert(*address, Arc::clone(&workload));
            }
            workloads.insert(workload.name.clone(), workload);
        }
        true
    }

    /// The mesh's trust domain and aliases.
    pub(super) fn trust(&self) -> Trust {
        self.trust.clone()
    }

    /// Workloads of a namespace with all of these labels, in the order of names.
    pub(super) fn selected(
        &self,
        namespace: &Arc<str>,
        selector: &api::Labels,
    ) -> impl Iterator<Item = &Source> {
        let rarest = selector
            .0
            .iter()
            .map(|(key, value)| {
                self.by_label
                    .get(&(Arc::clone(namespace), key.clone(), value.clone()))
            })
            .min_by_key(|names| names.map_or(0, BTreeSet::len))
            .flatten();
        rarest.into_iter().flatten().filter_map(move |name| {
            let name = ResourceName::new(Arc::clone(namespace), Arc::clone(name));
            let workload = self.by_name.get(&name)?;
            contains_all(&workload.metadata.labels.0, &selector.0).then_some(workload)
        })
    }

    fn add(&mut self, workload: &Source) {
        for label in labels(workload) {
            let names = self.by_label.entry(label).or_default();
            names.insert(Arc::clone(&workload.name.name));
        }
        self.by_name
            .insert(workload.name.clone(), Arc::clone(workload));
    }

    fn remove(&mut self, workload: &Source) {
        for label in labels(workload) {
            if let Some(names) = self.by_label.get_mut(&label) {
                names.remove(&workload.name.name);
                if names.is_empty() {
                    self.by_label.remove(&label);
                }
            }
        }
        self.by_name.remove(&workload.name);
    }

    fn workload(
        &self,
        source: &Source,
        policy: Arc<EffectivePolicy>,
        node: &str,
    ) -> Option<Workload> {
        let spec = &source.spec;
        let identity = SpiffeId::new(
            &self.trust.domain,
            &source.name.namespace,
            &spec.service_account,
        );
        Some(Workload {
            name: source.name.clone(),
            labels: source.metadata.labels.0.clone(),
            node: spec.node.clone(),
            addresses: spec.addresses.iter().map(|address| address.0).collect(),
            netns: spec.netns.clone(),
            service_account: spec.service_account.clone(),
            identity: identity.ok()?,
            protocol: spec.protocol.unwrap_or(match self.is_enabled(source) {
                true if spec.netns.is_some() => TunnelProtocol::Hbone,
                _ => TunnelProtocol::Tcp,
            }),
            weight: spec.weight,
            zone: spec.zone.clone(),
            ports: spec.ports.clone(),
            enrolment: self.enrolment(source, node),
            policy,
        })
    }

    /// Whether labels ask for its traffic to be captured.
    fn is_enabled(&self, source: &Source) -> bool {
        match source.metadata.labels.get(ENABLED_LABEL) {
            Some(own) => own == "true",
            None => self
                .enabled
                .get(&source.name.namespace)
                .copied()
                .unwrap_or(false),
        }
    }

    fn enrolment(&self, source: &Source, node: &str) -> Enrolment {
        let why_not = match source.metadata.labels.get(ENABLED_LABEL) {
            _ if source.spec.node.as_deref().is_some_and(|on| on != node) => NotEnrolled::OtherNode,
            Some("false") => NotEnrolled::OptedOut,
            None if !self.is_enabled(source) => NotEnrolled::NoLabel,
            _ if source.spec.netns.is_none() => NotEnrolled::NoNetns,
            _ => return Enrolment::Enrolled,
        };
        Enrolment::NotEnrolled(why_not)
    }
}

fn labels(workload: &Source) -> impl Iterator<Item = Label> + '_ {
    workload.metadata.labels.0.iter().map(|(key, value)| {
        (
            Arc::clone(&workload.name.namespace),
            key.clone(),
            value.clone(),
        )
    })
}
