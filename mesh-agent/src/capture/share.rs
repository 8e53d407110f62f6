//! Each workload's share of the maps that it fills by what it does. The kernel programs count and refuse; here the shares
//! are set, and the counts set right: a program that was interrupted, an agent that was killed, and the agent's own
//! removals leave them a little off.

use std::{collections::HashMap, io};

use mesh_common::{SHARES, Share, Usage};

use super::maps::Maps;

/// A share is one of so many parts of its map, unless [`Shares`] says otherwise: one workload can do as it likes, and it
/// takes as many that mean harm to fill a map.
const PARTS: u32 = 8;

/// Entries that one workload may have in each map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shares {
    /// Captured connections that the agent has not accepted yet; `None`, here and below: an eighth of the map.
    pub orig_dst: Option<u32>,
    /// Ports on which applications listen.
    pub listen_ports: Option<u32>,
    /// The agent's connections that an application has not accepted yet.
    pub clients: Option<u32>,
    /// Connection records.
    pub conns: Option<u32>,
}

impl Shares {
    fn limits(self, maps: &Maps) -> io::Result<[i64; SHARES]> {
        let part = |set: Option<u32>, room: io::Result<u32>| -> io::Result<i64> {
            Ok(i64::from(match set {
                Some(limit) => limit,
                None => room? / PARTS,
            }))
        };
        let mut limits = [0; SHARES];
        for share in Share::ALL {
            limits[share as usize] = match share {
                Share::OrigDst => part(self.orig_dst, maps.orig_dst.max_entries()),
                Share::ListenPorts => part(self.listen_ports, maps.listen_ports.max_entries()),
                Share::Clients => part(self.clients, maps.clients.max_entries()),
                Share::Conns => part(self.conns, maps.conns.max_entries()),
            }?;
        }
        Ok(limits)
    }
}

/// Gives a workload its shares; before its row. What an earlier agent has counted stays.
pub(super) fn grant(maps: &Maps, netns: u64, shares: Shares) -> io::Result<()> {
    let held = maps.usage.get(&netns)?.unwrap_or_default().held;
    let limit = shares.limits(maps)?;
    maps.usage.insert(&netns, &Usage { held, limit })
}

/// How many more entries the workload may have.
pub(super) fn room(maps: &Maps, netns: u64, share: Share) -> io::Result<usize> {
    let Some(row) = maps.usage.get(&netns)? else {
        return Ok(usize::MAX);
    };
    let left = row.limit[share as usize] - row.held[share as usize].max(0);
    Ok(usize::try_from(left).unwrap_or(0))
}

/// Counts what the agent itself has inserted (or, below zero, removed).
pub(super) fn note(maps: &Maps, netns: u64, share: Share, n: i64) -> io::Result<()> {
    if n == 0 {
        return Ok(());
    }
    if let Some(mut row) = maps.usage.get(&netns)? {
        row.held[share as usize] += n;
        maps.usage.insert(&netns, &row)?;
    }
    if share == Share::Clients {
        let total = maps.totals.get(&(share as u32))?.unwrap_or(0);
        maps.totals.insert(&(share as u32), &(total + n))?;
    }
    Ok(())
}

/// Sets every count right. Programs count on meanwhile: what moved between two looks is not touched.
pub(super) fn reconcile(maps: &Maps) -> io::Result<()> {
    let before: HashMap<u64, Usage> = maps.usage.entries()?.into_iter().collect();
    let clients = Share::Clients as u32;
    let total_before = maps.totals.get(&clients)?.unwrap_or(0);
    let (found, total) = count(maps)?;
    let total_after = maps.totals.get(&clients)?.unwrap_or(0);
    let off = drift(total_before, total_after, total);
    if off != 0 {
        maps.totals.insert(&clients, &(total_after + off))?;
    }
    for (netns, before) in before {
        let Some(mut row) = maps.usage.get(&netns)? else {
            continue;
        };
        let found = found.get(&netns).copied().unwrap_or_default();
        let mut changed = false;
        let counts = row.held.iter_mut().zip(before.held).zip(found);
        for ((held, before), found) in counts {
            let off = drift(before, *held, found);
            *held += off;
            changed |= off != 0;
        }
        if changed {
            maps.usage.insert(&netns, &row)?;
        }
    }
    Ok(())
}

/// By how much a count is off that was `before` and `after` at two looks, with `found` entries in between.
fn drift(before: i64, after: i64, found: i64) -> i64 {
    found - found.clamp(before.min(after), before.max(after))
}

/// Entries of each workload, and of all of them in `clients`.
fn count(maps: &Maps) -> io::Result<(HashMap<u64, [i64; SHARES]>, i64)> {
    let mut found = HashMap::<u64, [i64; SHARES]>::new();
    let mut add = |netns: u64, share: Share| {
        found.entry(netns).or_default()[share as usize] += 1;
    };
    for (key, _) in maps.orig_dst.entries()? {
        add(key.netns, Share::OrigDst);
    }
    for (key, _) in maps.listen_ports.entries()? {
        add(key.netns, Share::ListenPorts);
    }
    let clients = maps.clients.entries()?;
    for (key, _) in &clients {
        add(key.netns, Share::Clients);
    }
    for (_, record) in maps.conns.entries()? {
        add(record.netns, Share::Conns);
    }
    Ok((found, clients.len() as i64))
}

#[cfg(test)]
mod tests {
    use super::drift;

    #[test]
    fn only_what_nobody_moved_is_corrected() {
        assert_eq!(drift(5, 5, 5), 0);
        assert_eq!(drift(5, 5, 3), -2);
        assert_eq!(drift(5, 5, 9), 4);
        assert_eq!(drift(-1, -1, 0), 1);
        // Counted on between the looks.
        assert_eq!(drift(5, 9, 7), 0);
        assert_eq!(drift(9, 5, 7), 0);
        assert_eq!(drift(5, 9, 2), -3);
        assert_eq!(drift(9, 5, 12), 3);
    }
}
