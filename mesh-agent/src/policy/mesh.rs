//! MeshPolicy: the scopes and the merge.
//!
//! Three levels, mesh, namespace and workload, are merged field by field; the narrowest that sets a field wins.
//! `exclude.ports` and `exclude.cidrs` count as two fields, as do `mtls.mode` and `mtls.portModes`; `outbound` is one.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use ipnet::IpNet;

use crate::{
    api::{Level, MeshPolicy, MeshPolicySpec, Object, OutboundMode as Mode},
    model::{EffectivePolicy, OutboundMode},
    policy::Trust,
};

type Policy = Arc<Object<MeshPolicy>>;

/// All policies of the mesh, by scope.
#[derive(Debug, Default)]
pub struct MeshPolicies {
    mesh: Option<Policy>,
    namespaces: HashMap<Arc<str>, Policy>,
    selected: HashMap<Arc<str>, Vec<Policy>>,
    /// Ranges that `registered-only` always lets through.
    exceptions: Vec<IpNet>,
    /// Results already made, so that workloads with the same policy share it.
    merged: HashMap<(Arc<str>, Option<usize>), Arc<EffectivePolicy>>,
}

impl MeshPolicies {
    /// `exceptions` are ranges that `registered-only` always lets through. Of two policies at one level the first
    /// stays; within one source validation has refused them.
    pub fn new(policies: &[Policy], root_namespace: &str, exceptions: &[IpNet]) -> Self {
        let mut all = Self {
            exceptions: exceptions.to_vec(),
            ..Self::default()
        };
        for policy in policies {
            let namespace = Arc::clone(&policy.name.namespace);
            match policy.level(root_namespace) {
                Level::Mesh => {
                    all.mesh.get_or_insert_with(|| Arc::clone(policy));
                }
                Level::Namespace => {
                    all.namespaces
                        .entry(namespace)
                        .or_insert_with(|| Arc::clone(policy));
                }
                Level::Workload => {
                    all.selected
                        .entry(namespace)
                        .or_default()
                        .push(Arc::clone(policy));
                }
            }
        }
        all
    }

    /// The mesh's trust domain and its aliases.
    pub fn trust(&self) -> Trust {
        let spec = self.mesh.as_ref().map(|policy| &policy.spec);
        Trust {
            domain: spec
                .and_then(|spec| spec.trust_domain.clone())
                .unwrap_or_default(),
            aliases: spec
                .and_then(|spec| spec.trust_domain_aliases.clone())
                .unwrap_or_default(),
        }
    }

    /// What applies to a workload.
    pub fn effective(
        &mut self,
        namespace: &Arc<str>,
        labels: &BTreeMap<String, String>,
    ) -> Arc<EffectivePolicy> {
        let selected = self.selected.get(namespace).and_then(|policies| {
            policies.iter().position(|policy| {
                let selector = policy.spec.selector.as_ref();
                selector.is_some_and(|selector| selector.matches(labels))
            })
        });
        let key = (Arc::clone(namespace), selected);
        if let Some(known) = self.merged.get(&key) {
            return Arc::clone(known);
        }
        let by_selector = selected.and_then(|at| self.selected.get(namespace)?.get(at));
        // Narrowest first.
        let levels = [
            by_selector,
            self.namespaces.get(namespace),
            self.mesh.as_ref(),
        ];
        let levels: Vec<&MeshPolicySpec> = levels.into_iter().flatten().map(|p| &p.spec).collect();
        let policy = Arc::new(merge(&levels, &self.exceptions));
        self.merged.insert(key, Arc::clone(&policy));
        policy
    }
}

/// Merges levels, narrowest first.
fn merge(levels: &[&MeshPolicySpec], exceptions: &[IpNet]) -> EffectivePolicy {
    let defaults = EffectivePolicy::default();
    let outbound = levels.iter().find_map(|level| level.outbound.as_ref());
    let ports = levels
        .iter()
        .find_map(|level| level.exclude.as_ref()?.ports.as_ref());
    let cidrs = levels
        .iter()
        .find_map(|level| level.exclude.as_ref()?.cidrs.as_ref());
    EffectivePolicy {
        outbound: match outbound {
            Some(outbound) if outbound.mode == Mode::RegisteredOnly => {
                let own = outbound.exceptions.iter().map(|cidr| cidr.0);
                OutboundMode::RegisteredOnly {
                    exceptions: exceptions.iter().copied().chain(own).collect(),
                }
            }
            Some(_) => OutboundMode::Allow,
            None => defaults.outbound,
        },
        fail_policy: levels
            .iter()
            .find_map(|level| level.fail_policy)
            .unwrap_or(defaults.fail_policy),
        exclude_ports: ports.cloned().unwrap_or(defaults.exclude_ports),
        exclude_cidrs: cidrs
            .map(|cidrs| cidrs.iter().map(|cidr| cidr.0).collect())
            .unwrap_or(defaults.exclude_cidrs),
        drain_timeout: levels
            .iter()
            .find_map(|level| level.drain_timeout)
            .map_or(defaults.drain_timeout, |duration| duration.0),
        mtls: levels
            .iter()
            .find_map(|level| level.mtls.as_ref()?.mode)
            .unwrap_or(defaults.mtls),
        port_mtls: levels
            .iter()
            .find_map(|level| level.mtls.as_ref()?.port_modes.as_ref())
            .map(|modes| modes.iter().map(|(port, mode)| (port.0, *mode)).collect())
            .unwrap_or(defaults.port_mtls),
    }
}

#[cfg(test)]
mod tests;
