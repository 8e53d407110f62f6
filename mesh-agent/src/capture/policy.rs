//! A workload's policy as the kernel programs read it: flag bits, excluded ranges and ports; and the addresses that
//! only the mesh knows.

use std::{collections::HashSet, io, net::IpAddr};

use ipnet::IpNet;
use mesh_common::{
    ExcludedPort, WL_EXCL_CIDRS, WL_EXCL_PORTS, WL_HAS_V4, WL_HAS_V6, WL_OPEN_INBOUND,
    WL_OPEN_OUTBOUND, WL_PROTECTED, ip_key,
};

use super::maps::{LpmKey, Maps};
use crate::model::{EffectivePolicy, FailPolicy};

/// Every flag but those that turn capture on.
pub(super) fn flags(policy: &EffectivePolicy, protected: bool, addresses: &[IpAddr]) -> u32 {
    let mut flags = 0;
    if policy.fail_policy == FailPolicy::Open {
        flags |= WL_OPEN_OUTBOUND;
        if !protected {
            flags |= WL_OPEN_INBOUND;
        }
    }
    if protected {
        flags |= WL_PROTECTED;
    }
    if addresses.iter().any(IpAddr::is_ipv4) {
        flags |= WL_HAS_V4;
    }
    if addresses.iter().any(IpAddr::is_ipv6) {
        flags |= WL_HAS_V6;
    }
    if !policy.exclude_cidrs.is_empty() {
        flags |= WL_EXCL_CIDRS;
    }
    if !policy.exclude_ports.is_empty() {
        flags |= WL_EXCL_PORTS;
    }
    flags
}

/// What of `exclusions` and `excl_ports` belongs to one workload.
#[derive(Default)]
pub(super) struct Exclusions {
    cidrs: HashSet<LpmKey>,
    ports: HashSet<u16>,
}

impl Exclusions {
    /// Brings the maps to what `policy` says; new entries first, so that nothing excluded is captured in between.
    pub(super) fn sync(
        &mut self,
        maps: &Maps,
        netns: u64,
        policy: &EffectivePolicy,
    ) -> io::Result<()> {
        let cidrs: HashSet<LpmKey> = policy
            .exclude_cidrs
            .iter()
            .map(|c| lpm_key(netns, c))
            .collect();
        let ports: HashSet<u16> = policy.exclude_ports.iter().copied().collect();
        for key in cidrs.difference(&self.cidrs) {
            maps.exclusions.insert(key, &1)?;
        }
        for port in ports.difference(&self.ports) {
            maps.excl_ports.insert(&port_key(netns, *port), &1)?;
        }
        for key in self.cidrs.difference(&cidrs) {
            maps.exclusions.remove(key)?;
        }
        for port in self.ports.difference(&ports) {
            maps.excl_ports.remove(&port_key(netns, *port))?;
        }
        (self.cidrs, self.ports) = (cidrs, ports);
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.cidrs.len() + self.ports.len()
    }

    /// What an earlier agent left for this workload.
    pub(super) fn found(maps: &Maps, netns: u64) -> io::Result<Self> {
        let cidrs = maps
            .exclusions
            .keys()?
            .into_iter()
            .filter(|k| lpm_netns(k) == netns);
        let ports = maps
            .excl_ports
            .keys()?
            .into_iter()
            .filter(|k| k.netns == netns);
        Ok(Self {
            cidrs: cidrs.collect(),
            ports: ports.map(|k| k.port).collect(),
        })
    }
}

fn port_key(netns: u64, port: u16) -> ExcludedPort {
    ExcludedPort {
        netns,
        port,
        pad: [0; 6],
    }
}

/// Prefix length, netns, address: packed as the kernel reads it.
fn lpm_key(netns: u64, cidr: &IpNet) -> LpmKey {
    let prefix = u32::from(cidr.prefix_len()) + if cidr.addr().is_ipv4() { 96 } else { 0 } + 64;
    let mut key = [0; 28];
    let parts = prefix
        .to_ne_bytes()
        .into_iter()
        .chain(netns.to_ne_bytes())
        .chain(ip_key(cidr.network()));
    for (place, byte) in key.iter_mut().zip(parts) {
        *place = byte;
    }
    key
}

fn lpm_netns(key: &LpmKey) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&key[4..12]);
    u64::from_ne_bytes(bytes)
}

/// Brings `mesh_addrs` to `wanted`.
pub(super) fn sync_mesh_addrs(maps: &Maps, wanted: &HashSet<[u8; 16]>) -> io::Result<()> {
    let found: HashSet<[u8; 16]> = maps
        .mesh_addrs
        .entries()?
        .into_iter()
        .map(|(k, _)| k)
        .collect();
    for key in wanted.difference(&found) {
        maps.mesh_addrs.insert(key, &1)?;
    }
    for key in found.difference(wanted) {
        maps.mesh_addrs.remove(key)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_counts_from_the_cookie() {
        let key = lpm_key(7, &"10.1.0.0/16".parse().unwrap());
        assert_eq!(
            u32::from_ne_bytes(key[..4].try_into().unwrap()),
            64 + 96 + 16
        );
        assert_eq!(lpm_netns(&key), 7);
        assert_eq!(&key[22..28], &[0xff, 0xff, 10, 1, 0, 0]);
        let key = lpm_key(7, &"2001:db8::/32".parse().unwrap());
        assert_eq!(u32::from_ne_bytes(key[..4].try_into().unwrap()), 64 + 32);
        assert_eq!(&key[12..16], &[0x20, 0x01, 0x0d, 0xb8]);
    }

    #[test]
    fn open_never_opens_a_protected_workload() {
        let policy = EffectivePolicy {
            fail_policy: FailPolicy::Open,
            ..Default::default()
        };
        let v4 = ["10.0.0.1".parse().unwrap()];
        assert_eq!(
            flags(&policy, true, &v4),
            WL_OPEN_OUTBOUND | WL_PROTECTED | WL_HAS_V4
        );
        assert_eq!(
            flags(&policy, false, &v4),
            WL_OPEN_OUTBOUND | WL_OPEN_INBOUND | WL_HAS_V4
        );
        assert_eq!(flags(&EffectivePolicy::default(), false, &[]), 0);
    }
}
