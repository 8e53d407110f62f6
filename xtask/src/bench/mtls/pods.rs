//! Two nodes with a wire between them; client pods behind the one, server pods behind the other.
//!
//! All subjects cross the same wires: client pod -> (proxy in the client pod) -> node -> node -> (proxy in the server
//! pod) -> server.

use anyhow::Result;

use crate::bench::bed::{Bed, batch};

/// As the bed calls the nodes of the clients and of the servers.
pub(in crate::bench) const CLIENTS: &str = "clients";
pub(in crate::bench) const SERVERS: &str = "servers";

/// Where direct's client finds its server, and the mesh's service its endpoint.
pub(in crate::bench) const DIRECT_SERVER: &str = "10.98.128.21";
pub(super) const MESH_CLIENT: &str = "10.98.1.12";
pub(in crate::bench) const MESH_SERVER: &str = "10.98.128.22";

/// Client pods and the last byte of their addresses.
const CLIENT_PODS: [(&str, u8); 4] = [
    ("direct", 11),
    ("mesh", 12),
    ("envoy-mtls", 13),
    ("envoy-connect", 14),
];

/// Server pods and their addresses.
pub(in crate::bench) const SERVER_PODS: [(&str, &str); 4] = [
    ("direct-server", DIRECT_SERVER),
    ("mesh-server", MESH_SERVER),
    ("envoy-mtls-server", "10.98.128.23"),
    ("envoy-connect-server", "10.98.128.24"),
];

pub(in crate::bench) fn build(bed: &mut Bed) -> Result<()> {
    let (clients, servers) = (bed.add_node(CLIENTS)?, bed.add_node(SERVERS)?);
    batch(
        &clients,
        &format!(
            "link set lo up
             link add link0 type veth peer name link0 netns {servers}
             addr add 10.98.0.1/30 dev link0
             link set link0 up
             link add br0 type bridge
             addr add 10.98.1.1/24 dev br0
             link set br0 up
             route add 10.98.128.0/17 via 10.98.0.2"
        ),
    )?;
    batch(
        &servers,
        "link set lo up
         addr add 10.98.0.2/30 dev link0
         link set link0 up
         link add br0 type bridge
         addr add 10.98.128.1/24 dev br0
         link set br0 up
         route add 10.98.1.0/24 via 10.98.0.1",
    )?;
    for (name, host) in CLIENT_PODS {
        let (wire, address) = (format!("p{host}"), format!("10.98.1.{host}/24"));
        bed.add_pod(name, &clients, &wire, &address, "10.98.1.1")?;
    }
    for (at, (name, address)) in SERVER_PODS.iter().enumerate() {
        let (wire, address) = (format!("p{at}"), format!("{address}/24"));
        bed.add_pod(name, &servers, &wire, &address, "10.98.128.1")?;
    }
    Ok(())
}

/// A server pod with many addresses: to the mesh each is a destination of its own.
pub(in crate::bench) struct ColdPod {
    pub(super) name: String,
    pub(super) addresses: Vec<String>,
}

/// As many addresses as one workload may have.
const ADDRESSES: usize = 16;

pub(super) fn build_cold(bed: &mut Bed, count: usize) -> Result<Vec<ColdPod>> {
    let servers = bed.ns(SERVERS);
    let mut pods = Vec::new();
    for n in 1..=count {
        let name = format!("cold-{n}");
        let first = format!("10.98.128.{}", 100 + n);
        let wire = format!("c{n}");
        let ns = bed.add_pod(
            &name,
            &servers,
            &wire,
            &format!("{first}/24"),
            "10.98.128.1",
        )?;
        let more: Vec<_> = (1..ADDRESSES)
            .map(|a| format!("10.98.{}.{a}", 128 + n))
            .collect();
        let lines: Vec<_> = more
            .iter()
            .map(|a| format!("addr add {a}/32 dev eth0"))
            .collect();
        batch(&ns, &lines.join("\n"))?;
        // One neighbour a pod: the kernel keeps about a thousand of them for all namespaces together.
        batch(
            &servers,
            &format!("route add 10.98.{}.0/24 via {first}", 128 + n),
        )?;
        pods.push(ColdPod {
            name,
            addresses: [vec![first], more].concat(),
        });
    }
    Ok(pods)
}
