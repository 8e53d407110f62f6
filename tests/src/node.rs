//! A machine of the mesh and its pods, made of network namespaces.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::{netns::NetNs, run};

/// A machine: a namespace with a bridge that its pods hang on, and routes to other nodes. Its name is also the node
/// name of its agent.
#[derive(Debug)]
pub struct Node {
    ns: NetNs,
    /// Number of its subnet: 10.HI.LO.0/24 and fd00:0:0:N::/64.
    index: u32,
    next_pod: AtomicU32,
}

impl Node {
    pub fn new() -> Arc<Node> {
        let index = run::next_number();
        assert!(index < 55 * 250, "more subnets than 10.200.0.0/6 has");
        let ns = NetNs::new();
        ns.sysctl("net/ipv4/ip_forward", "1");
        ns.sysctl("net/ipv6/conf/all/forwarding", "1");
        let node = Node {
            ns,
            index,
            next_pod: AtomicU32::new(10),
        };
        let (v4, v6) = (node.v4(1), node.v6(1));
        node.ns.ip_batch(&format!(
            "link set lo up\n\
             link add br0 type bridge mcast_snooping 0\n\
             link set br0 up\n\
             addr add {v4}/24 dev br0\n\
             addr add {v6}/64 dev br0 nodad\n"
        ));
        Arc::new(node)
    }

    fn v4(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(
            10,
            200 + (self.index / 250) as u8,
            (self.index % 250) as u8,
            host,
        )
    }

    fn v6(&self, host: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0, 0, self.index as u16, 0, 0, 0, host)
    }

    /// The node's own address on its pods' network.
    pub fn address(&self) -> IpAddr {
        self.v4(1).into()
    }

    /// A new pod: a namespace with one v4 and one v6 address, default routes through the node.
    pub fn pod(&self, name: &str) -> Arc<Pod> {
        let host = self.next_pod.fetch_add(1, Ordering::Relaxed);
        assert!(host < 250, "a node has room for 240 pods");
        self.wire(NetNs::new(), name, host)
    }

    /// Deletes the pod's namespace and makes another one under the same name, with the same addresses.
    pub fn replace(&self, pod: Arc<Pod>) -> Arc<Pod> {
        let (name, ns, host) = (pod.name.clone(), pod.ns.name().to_owned(), pod.host);
        pod.delete();
        drop(pod);
        // The old wire may live as long as something holds the old namespace; the new pod needs its place.
        let veth = format!("p{host}");
        if self.has_wire(&veth) {
            self.ns.ip(&["link", "del", &veth]);
        }
        self.wire(NetNs::named(ns), &name, host)
    }

    fn wire(&self, ns: NetNs, name: &str, host: u32) -> Arc<Pod> {
        let (v4, v6) = (self.v4(host as u8), self.v6(host as u16));
        let veth = format!("p{host}");
        self.ns.ip_batch(&format!(
            "link add {veth} type veth peer name eth0 netns {}\n\
             link set {veth} master br0\n\
             link set {veth} up\n",
            ns.name()
        ));
        ns.ip_batch(&format!(
            "link set lo up\n\
             link set eth0 up\n\
             addr add {v4}/24 dev eth0\n\
             addr add {v6}/64 dev eth0 nodad\n\
             route add default via {}\n\
             route add ::/0 via {}\n",
            self.v4(1),
            self.v6(1)
        ));
        Arc::new(Pod {
            ns,
            name: name.to_owned(),
            v4,
            v6,
            veth,
            host,
        })
    }

    /// Joins two nodes by a wire and gives each a route to the other's pods.
    pub fn link(a: &Node, b: &Node) {
        let n = run::next_number();
        let (hi, lo) = (n / 250, n % 250);
        let wire = format!("w{n}");
        a.ns.ip_batch(&format!(
            "link add {wire} type veth peer name {wire} netns {}\n",
            b.ns.name()
        ));
        for (from, to, me, you) in [(a, b, 1, 2), (b, a, 2, 1)] {
            from.ns.ip_batch(&format!(
                "addr add 172.{}.{lo}.{me}/24 dev {wire}\n\
                 addr add fd01:0:0:{n:x}::{me}/64 dev {wire} nodad\n\
                 link set {wire} up\n\
                 route add {}/24 via 172.{}.{lo}.{you}\n\
                 route add {}/64 via fd01:0:0:{n:x}::{you}\n",
                16 + hi,
                to.v4(0),
                16 + hi,
                to.v6(0)
            ));
        }
    }

    /// Cuts or mends the pod's wire, as if the pod's machine lost power: nothing is sent, no RST, no FIN.
    pub fn set_wire(&self, pod: &Pod, up: bool) {
        let state = if up { "up" } else { "down" };
        self.ns.ip(&["link", "set", &pod.veth, state]);
    }

    /// True while the node's end of the pod's wire exists: it goes with the pod's namespace.
    pub fn has_wire(&self, veth: &str) -> bool {
        self.ns.ip(&["-o", "link"]).contains(&format!(": {veth}@"))
    }
}

impl Deref for Node {
    type Target = NetNs;

    fn deref(&self) -> &NetNs {
        &self.ns
    }
}

/// A pod of a node. Its resources in a configuration are called by `name`.
#[derive(Debug)]
pub struct Pod {
    ns: NetNs,
    pub name: String,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    /// The node's end of its wire.
    pub veth: String,
    host: u32,
}

impl Pod {
    pub fn v4(&self, port: u16) -> SocketAddr {
        (self.v4, port).into()
    }

    pub fn v6(&self, port: u16) -> SocketAddr {
        (self.v6, port).into()
    }

    /// The address of the given family.
    pub fn addr(&self, v6: bool, port: u16) -> SocketAddr {
        if v6 { self.v6(port) } else { self.v4(port) }
    }

    /// The pod's second address, once [`Pod::add_secondary`] gave it: the last byte raised by 100.
    pub fn secondary(&self, v6: bool) -> IpAddr {
        if v6 {
            let mut s = self.v6.segments();
            s[7] += 0x1000;
            Ipv6Addr::from(s).into()
        } else {
            let mut o = self.v4.octets();
            o[3] = o[3].wrapping_add(100);
            Ipv4Addr::from(o).into()
        }
    }

    /// Gives the pod a second address of its own subnet.
    pub fn add_secondary(&self, v6: bool) -> IpAddr {
        let ip = self.secondary(v6);
        let mask = if v6 { "64" } else { "24" };
        let mut args = vec!["addr".to_owned(), "add".into(), format!("{ip}/{mask}")];
        args.extend(["dev".into(), "eth0".into()]);
        if v6 {
            args.push("nodad".into());
        }
        self.ns
            .ip(&args.iter().map(String::as_str).collect::<Vec<_>>());
        ip
    }
}

impl Deref for Pod {
    type Target = NetNs;

    fn deref(&self) -> &NetNs {
        &self.ns
    }
}
