//! One node with a bridge: a client pod for each subject, and the server's.
//!
//! All subjects cross the same wires: client pod -> (proxy in the client pod) -> bridge -> server pod.

use anyhow::Result;

use crate::bench::bed::{Bed, batch};

/// As the bed calls the node.
pub(super) const NODE: &str = "node";
pub(super) const SERVER: &str = "10.99.0.20";
pub(super) const MESH_CLIENT: &str = "10.99.0.12";
pub(super) const ENVOY_ADDRESS: &str = "10.99.0.14";
/// Pod of an Envoy that only has many routes.
pub(super) const ROUTES: &str = "routes";
pub(super) const ROUTES_ADDRESS: &str = "10.99.0.16";

/// Pods and the last byte of their addresses.
const PODS: [(&str, u8); 7] = [
    ("direct", 11),
    ("mesh", 12),
    ("haproxy", 13),
    ("envoy", 14),
    ("nginx", 15),
    (ROUTES, 16),
    ("server", 20),
];

pub(super) fn build(bed: &mut Bed) -> Result<()> {
    let node = bed.add_node(NODE)?;
    batch(
        &node,
        "link set lo up
         link add br0 type bridge
         addr add 10.99.0.1/16 dev br0
         link set br0 up",
    )?;
    for (name, host) in PODS {
        let wire = format!("p{host}");
        let address = format!("10.99.0.{host}/16");
        bed.add_pod(name, &node, &wire, &address, "10.99.0.1")?;
    }
    Ok(())
}
