//! Connections past the agent that policy may forbid, and what else the mesh says about single connections: ending one,
//! vouching for one.

use std::{io, net::SocketAddr, time::Duration};

use mesh_common::{Addr, ConnRecord, Direction, KernelClose, Path, Share, Tuple, Vouched};

use super::{Capture, diag, share, sys::sock::monotonic_ns};
use crate::model::EffectivePolicy;

impl Capture {
    /// Connections that reached the application of a workload past the agent: older than its enrolment, or let in while
    /// no agent was there. Not those that its exclusions let pass, and not those that this node vouched for.
    pub fn plain_inbound(&self) -> Vec<(u64, ConnRecord)> {
        let pods = self.enrolled();
        let mut found = self.read_conns();
        found.retain(|(_, record)| {
            let plain =
                record.path == Path::Unmeshed as u8 || record.path == Path::Passthrough as u8;
            plain
                && record.direction == Direction::Inbound as u8
                && pods
                    .get(&record.netns)
                    .is_some_and(|pod| !is_excluded(&pod.pod.policy.load(), record))
        });
        found
    }

    /// Ends a connection that does not pass through the agent, inside the namespace of its workload: the other side gets
    /// RST, the application ECONNABORTED. `cookie` is that of its socket, the key of its record. False: there is no such
    /// connection (any more), or the agent carries it and has to end it itself.
    ///
    /// # Errors
    /// EOPNOTSUPP: this kernel cannot (`CONFIG_INET_DIAG_DESTROY`), and will not be able to for any other.
    pub fn destroy(&self, netns: u64, cookie: u64) -> io::Result<bool> {
        let Some(mut record) = self.shared.maps.conns.get(&cookie)? else {
            return Ok(false);
        };
        if record.netns != netns || record.path == Path::Proxied as u8 {
            return Ok(false);
        }
        let pods = self.enrolled();
        let Some(pod) = pods.get(&netns) else {
            return Ok(false);
        };
        let mut inner = pod.lock();
        let Some(inner) = inner.as_mut() else {
            return Ok(false);
        };
        if !diag::destroy(&mut inner.diag, &record.local, &record.remote, cookie)? {
            return Ok(false);
        }
        // Nobody else hears of the end of one that is older than enrolment; and the pass that looks for such ends, which
        // has to wait for the pod's lock, must not find it and guess how it ended.
        let maps = &self.shared.maps;
        if record.path == Path::Unmeshed as u8 && maps.conns.remove(&cookie)? {
            share::note(maps, netns, Share::Conns, -1)?;
            record.state = diag::state::CLOSE;
            record.close_reason = KernelClose::Aborted as u8;
            record.last_ns = monotonic_ns();
            self.report_closed(cookie, record);
        }
        Ok(true)
    }

    /// Lets one connection pass to the application as it is, whatever protects the workload with that namespace:
    /// `client` and `destination` as the workload sees them. Good for one connection that begins within `time`.
    ///
    /// # Errors
    /// The map is full, and the connection is treated like any other.
    pub fn vouch(
        &self,
        netns: u64,
        client: SocketAddr,
        destination: SocketAddr,
        time: Duration,
    ) -> io::Result<()> {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let key = Tuple {
            netns,
            src: Addr::from(client),
            dst: Addr::from(destination),
        };
        let entry = Vouched {
            expires_ns: monotonic_ns().saturating_add(nanos),
        };
        self.shared.maps.vouched.insert(&key, &entry)
    }
}

/// As the kernel program decides it.
fn is_excluded(policy: &EffectivePolicy, record: &ConnRecord) -> bool {
    let client = SocketAddr::from(record.remote).ip();
    policy.exclude_ports.contains(&record.local.port)
        || policy.exclude_cidrs.iter().any(|c| c.contains(&client))
}
