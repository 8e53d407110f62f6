//! Which identities a node may have: those of the workloads that the configuration places on it.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    catalog::{Catalog, Snapshot},
    model::SpiffeId,
};

/// Why a node may not have an identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotPlaced {
    #[error("the configuration has no workload with the identity {0}")]
    Unknown(SpiffeId),
    #[error("no workload with the identity {id} is placed on node {node}: {others}")]
    Elsewhere {
        id: SpiffeId,
        node: String,
        others: &'static str,
    },
}

/// The identities of each node, of one version of the configuration.
#[derive(Debug, Default)]
pub(super) struct Placement {
    version: u64,
    nodes: HashMap<String, HashSet<SpiffeId>>,
    /// Of workloads that name no node.
    unplaced: HashSet<SpiffeId>,
}

impl Placement {
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        let mut placement = Self {
            version: snapshot.version,
            ..Self::default()
        };
        for workload in snapshot.workloads() {
            let identities = match &workload.node {
                Some(node) => placement.nodes.entry(node.clone()).or_default(),
                // An agent takes a workload without a node for its own. Here that would hand the identity to every node.
                None => &mut placement.unplaced,
            };
            identities.insert(workload.identity.clone());
        }
        placement
    }

    pub(super) fn allows(&self, node: &str, id: &SpiffeId) -> Result<(), NotPlaced> {
        if self.nodes.get(node).is_some_and(|ids| ids.contains(id)) {
            return Ok(());
        }
        let others = if self.nodes.values().any(|ids| ids.contains(id)) {
            // Which one is nothing that this node needs to know.
            "its Workloads are on another node (spec.node)"
        } else if self.unplaced.contains(id) {
            "its Workloads name no node (spec.node), which here counts as none"
        } else {
            return Err(NotPlaced::Unknown(id.clone()));
        };
        Err(NotPlaced::Elsewhere {
            id: id.clone(),
            node: node.to_owned(),
            others,
        })
    }
}

/// The placement of the newest configuration, computed once for each version.
#[derive(Debug)]
pub(super) struct Placements {
    catalog: Arc<Catalog>,
    current: Mutex<Arc<Placement>>,
}

impl Placements {
    pub(super) fn new(catalog: Arc<Catalog>) -> Self {
        let current = Mutex::new(Arc::new(Placement::of(&catalog.snapshot())));
        Self { catalog, current }
    }

    pub(super) fn get(&self) -> Arc<Placement> {
        let snapshot = self.catalog.snapshot();
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.version != snapshot.version {
            *current = Arc::new(Placement::of(&snapshot));
        }
        Arc::clone(&current)
    }
}
