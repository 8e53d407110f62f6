//! Which policies are for which workload: those of its namespace and of the root namespace, as far as their selectors
//! match. Workloads with the same policies share what is compiled of them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::{
    Authorizer,
    layer::{Layer, Policy},
};
use crate::{
    api::{AuthorizationPolicy, Diff, Object},
    policy::Trust,
};

type Labels = BTreeMap<String, String>;

/// All policies, by namespace. A change makes anew only what it touches.
#[derive(Clone, Debug, Default)]
pub struct AuthorizationPolicies {
    root: Arc<str>,
    trust: Arc<Trust>,
    namespaces: BTreeMap<Arc<str>, Namespace>,
}

#[derive(Clone, Debug, Default)]
struct Namespace {
    policies: BTreeMap<Arc<str>, Policy>,
    /// Of the policies without selector.
    everyone: Arc<Layer>,
    selecting: Arc<Selecting>,
}

/// Policies with a selector, found by the first label that they demand.
#[derive(Debug, Default)]
struct Selecting {
    policies: Vec<Policy>,
    by_label: HashMap<String, HashMap<String, Vec<u32>>>,
    /// They demand no certain value of a label.
    others: Vec<u32>,
}

/// Whose authorizers a change may have touched.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Touched {
    Everyone,
    Namespaces(BTreeSet<Arc<str>>),
}

impl Touched {
    pub(crate) fn includes(&self, namespace: &str) -> bool {
        match self {
            Self::Everyone => true,
            Self::Namespaces(namespaces) => namespaces.contains(namespace),
        }
    }
}

/// What a policy's namespace and selector make it apply to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// In the root namespace without a selector.
    Mesh,
    /// In another namespace without a selector.
    Namespace,
    /// With a selector.
    Workloads,
}

/// A policy and where it applies.
#[derive(Clone, Copy, Debug)]
pub struct PolicyScope<'p> {
    pub policy: &'p Arc<Object<AuthorizationPolicy>>,
    pub scope: Scope,
    in_root: bool,
}

impl PolicyScope<'_> {
    /// Whether the policy is for a workload.
    pub fn applies(&self, namespace: &str, labels: &Labels) -> bool {
        (self.in_root || *self.policy.name.namespace == *namespace)
            && self
                .policy
                .spec
                .selector
                .as_ref()
                .is_none_or(|selector| selector.matches(labels))
    }
}

/// Compiled policies in use, to be shared. Only a cache: what is not here is made anew.
#[derive(Debug, Default)]
pub struct Authorizers {
    /// By the addresses of the policies, which the layer keeps alive.
    layers: HashMap<Vec<usize>, Arc<Layer>>,
    /// By the addresses of the layers, which the authorizer keeps alive.
    authorizers: HashMap<Vec<usize>, Arc<Authorizer>>,
}

impl Authorizers {
    /// Lets go of what nobody else uses.
    pub(crate) fn sweep(&mut self) {
        self.authorizers
            .retain(|_, authorizer| Arc::strong_count(authorizer) > 1);
        self.layers.retain(|_, layer| Arc::strong_count(layer) > 1);
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

fn addresses<T>(items: &[Arc<T>]) -> Vec<usize> {
    items.iter().map(|item| Arc::as_ptr(item).addr()).collect()
}

impl AuthorizationPolicies {
    pub fn new(root_namespace: &str) -> Self {
        Self {
            root: root_namespace.into(),
            ..Self::default()
        }
    }

    /// Takes over a change of the policies and of the mesh's trust domains.
    pub(crate) fn update(
        &mut self,
        diff: &Diff<'_, Object<AuthorizationPolicy>>,
        trust: &Trust,
    ) -> Touched {
        let mut touched: BTreeSet<Arc<str>> = BTreeSet::new();
        for policy in &diff.removed {
            if let Some(namespace) = self.namespaces.get_mut(&policy.name.namespace) {
                namespace.policies.remove(&policy.name.name);
            }
            touched.insert(Arc::clone(&policy.name.namespace));
        }
        for policy in &diff.added {
            let namespace = self
                .namespaces
                .entry(Arc::clone(&policy.name.namespace))
                .or_default();
            namespace
                .policies
                .insert(Arc::clone(&policy.name.name), Arc::clone(policy));
            touched.insert(Arc::clone(&policy.name.namespace));
        }
        let other_trust = *self.trust != *trust;
        if other_trust {
            self.trust = Arc::new(trust.clone());
            touched.extend(self.namespaces.keys().cloned());
        }
        for name in &touched {
            if let Some(namespace) = self.namespaces.get_mut(name) {
                namespace.rebuild(&self.trust, other_trust);
            }
        }
        self.namespaces
            .retain(|_, namespace| !namespace.policies.is_empty());
        match other_trust || touched.contains(&self.root) {
            true => Touched::Everyone,
            false => Touched::Namespaces(touched),
        }
    }

    /// The policies of a workload, compiled; from the cache where they are there.
    pub(crate) fn authorizer(
        &self,
        namespace: &str,
        labels: &Labels,
        cache: &mut Authorizers,
    ) -> Arc<Authorizer> {
        let root = self.namespaces.get(&self.root);
        let own = self
            .namespaces
            .get(namespace)
            .filter(|_| *namespace != *self.root);
        let scopes = || root.into_iter().chain(own);
        let selected: Vec<Policy> = scopes()
            .flat_map(|scope| scope.selecting.matching(labels))
            .cloned()
            .collect();
        let mut layers: Vec<Arc<Layer>> = scopes()
            .map(|scope| &scope.everyone)
            .filter(|layer| !layer.is_empty())
            .cloned()
            .collect();
        if !selected.is_empty() {
            let layer = cache
                .layers
                .entry(addresses(&selected))
                .or_insert_with(|| Arc::new(Layer::new(selected, &self.trust)));
            layers.push(Arc::clone(layer));
        }
        let authorizer = cache
            .authorizers
            .entry(addresses(&layers))
            .or_insert_with(|| Arc::new(Authorizer::new(layers)));
        Arc::clone(authorizer)
    }

    /// Every policy, in the order of names.
    pub fn iter(&self) -> impl Iterator<Item = PolicyScope<'_>> {
        self.namespaces.iter().flat_map(|(name, namespace)| {
            let in_root = *name == self.root;
            namespace.policies.values().map(move |policy| PolicyScope {
                policy,
                scope: match &policy.spec.selector {
                    Some(_) => Scope::Workloads,
                    None if in_root => Scope::Mesh,
                    None => Scope::Namespace,
                },
                in_root,
            })
        })
    }

    /// The mesh's trust domain and aliases, as the policies understand principals.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }
}

impl Namespace {
    fn rebuild(&mut self, trust: &Arc<Trust>, other_trust: bool) {
        let (selecting, everyone): (Vec<_>, Vec<_>) = self
            .policies
            .values()
            .cloned()
            .partition(|policy| policy.spec.selector.is_some());
        let same = |old: &[Policy], new: &[Policy]| {
            let addresses = |list| addresses(list).into_iter().collect::<BTreeSet<_>>();
            addresses(old) == addresses(new)
        };
        if other_trust || !same(self.everyone.policies(), &everyone) {
            self.everyone = Arc::new(Layer::new(everyone, trust));
        }
        if !same(&self.selecting.policies, &selecting) {
            self.selecting = Arc::new(Selecting::new(selecting));
        }
    }
}

impl Selecting {
    fn new(policies: Vec<Policy>) -> Self {
        let mut all = Self::default();
        for (at, policy) in policies.iter().enumerate() {
            let selector = policy.spec.selector.as_ref();
            let list = match selector.and_then(|selector| selector.match_labels.0.iter().next()) {
                Some((key, value)) => {
                    let values = all.by_label.entry(key.clone()).or_default();
                    values.entry(value.clone()).or_default()
                }
                None => &mut all.others,
            };
            list.push(at as u32);
        }
        all.policies = policies;
        all
    }

    /// In the order of names.
    fn matching(&self, labels: &Labels) -> impl Iterator<Item = &Policy> {
        let by_label = labels
            .iter()
            .filter_map(|(key, value)| self.by_label.get(key)?.get(value));
        let mut candidates: Vec<u32> = by_label.flatten().chain(&self.others).copied().collect();
        candidates.sort_unstable();
        candidates.into_iter().filter_map(move |at| {
            let policy = self.policies.get(at as usize)?;
            let selector = policy.spec.selector.as_ref()?;
            selector.matches(labels).then_some(policy)
        })
    }
}
