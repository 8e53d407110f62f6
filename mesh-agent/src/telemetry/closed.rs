//! The ring of closed connections: bounded in number and age.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_common::ConnRecord;

use super::{Reason, conn::Conn};
use crate::model::ResourceName;

/// A connection that only the kernel has seen, with names for its addresses.
#[derive(Clone, Debug)]
pub(super) struct KernelConn {
    pub(super) cookie: u64,
    pub(super) record: ConnRecord,
    pub(super) workload: Option<ResourceName>,
    pub(super) peer: Option<ResourceName>,
    pub(super) service: Option<ResourceName>,
}

impl KernelConn {
    pub(super) fn inbound(&self) -> bool {
        self.record.direction == mesh_common::Direction::Inbound as u8
    }

    /// Who dialled, with its workload.
    pub(super) fn source(&self) -> (SocketAddr, Option<&ResourceName>) {
        if self.inbound() {
            (self.record.remote.into(), self.peer.as_ref())
        } else {
            (self.record.local.into(), self.workload.as_ref())
        }
    }

    /// Who was dialled, with its workload.
    pub(super) fn destination(&self) -> (SocketAddr, Option<&ResourceName>) {
        if self.inbound() {
            (self.record.local.into(), self.workload.as_ref())
        } else {
            (self.record.remote.into(), self.peer.as_ref())
        }
    }

    /// From its beginning to its last sign of life.
    pub(super) fn duration(&self) -> Duration {
        Duration::from_nanos(self.record.last_ns.saturating_sub(self.record.start_ns))
    }
}

#[derive(Clone, Debug)]
pub(super) enum What {
    Proxied(Arc<Conn>),
    Kernel(Box<KernelConn>),
}

#[derive(Clone, Debug)]
pub(super) struct Closed {
    pub(super) what: What,
    pub(super) reason: Reason,
    pub(super) ended: Instant,
    /// The kernel's final record of a proxied connection.
    pub(super) kernel: Option<Box<ConnRecord>>,
}

#[derive(Debug)]
pub(super) struct Ring {
    rows: VecDeque<(u64, Closed)>,
    /// Sequence number of the first row.
    first: u64,
    /// Join key to sequence number.
    index: HashMap<u64, u64>,
    max: usize,
    age: Duration,
}

impl Ring {
    pub(super) fn new(max: usize, age: Duration) -> Self {
        Self {
            rows: VecDeque::new(),
            first: 0,
            index: HashMap::new(),
            max,
            age,
        }
    }

    /// `key`: the join key, by which a late kernel record finds the row; 0 for none.
    pub(super) fn push(&mut self, key: u64, closed: Closed) {
        while self.rows.len() >= self.max.max(1) {
            self.pop();
        }
        if key != 0 {
            self.index.insert(key, self.first + self.rows.len() as u64);
        }
        self.rows.push_back((key, closed));
    }

    fn pop(&mut self) {
        if let Some((key, _)) = self.rows.pop_front() {
            if self.index.get(&key) == Some(&self.first) {
                self.index.remove(&key);
            }
            self.first += 1;
        }
    }

    /// Gives a row the kernel's final record. False: no such row.
    pub(super) fn attach(&mut self, key: u64, record: &ConnRecord) -> bool {
        let Some(row) = self
            .index
            .get(&key)
            .and_then(|seq| self.rows.get_mut((seq - self.first) as usize))
        else {
            return false;
        };
        row.1.kernel = Some(Box::new(*record));
        true
    }

    /// Drops what is older than the age.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some((_, oldest)) = self.rows.front()
            && now.saturating_duration_since(oldest.ended) > self.age
        {
            self.pop();
        }
    }

    /// Newest first.
    pub(super) fn rows(&self) -> Vec<Closed> {
        self.rows.iter().rev().map(|(_, c)| c.clone()).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use mesh_common::ConnRecord;

    use super::{Closed, KernelConn, Ring, What};
    use crate::telemetry::Reason;

    fn closed(cookie: u64, ended: Instant) -> Closed {
        Closed {
            what: What::Kernel(Box::new(KernelConn {
                cookie,
                record: ConnRecord::default(),
                workload: None,
                peer: None,
                service: None,
            })),
            reason: Reason::Completed,
            ended,
            kernel: None,
        }
    }

    fn cookies(ring: &Ring) -> Vec<u64> {
        ring.rows()
            .iter()
            .map(|c| match &c.what {
                What::Kernel(k) => k.cookie,
                What::Proxied(_) => 0,
            })
            .collect()
    }

    #[test]
    fn keeps_the_newest_in_number_and_age() {
        let start = Instant::now();
        let mut ring = Ring::new(3, Duration::from_secs(60));
        for n in 1..=5 {
            ring.push(n, closed(n, start + Duration::from_secs(n)));
        }
        assert_eq!(cookies(&ring), [5, 4, 3]);
        ring.expire(start + Duration::from_secs(64));
        assert_eq!(cookies(&ring), [5, 4]);
        ring.expire(start + Duration::from_secs(3600));
        assert_eq!(ring.len(), 0);
        assert!(ring.index.is_empty());
    }

    #[test]
    fn a_late_kernel_record_finds_its_row_and_no_other() {
        let now = Instant::now();
        let mut ring = Ring::new(2, Duration::from_secs(60));
        for n in [7, 8, 9] {
            ring.push(n, closed(n, now));
        }
        let record = ConnRecord {
            srtt_us: 42,
            ..ConnRecord::default()
        };
        assert!(!ring.attach(7, &record), "7 was pushed out");
        assert!(ring.attach(9, &record));
        let rows = ring.rows();
        assert_eq!(rows[0].kernel.as_ref().map(|k| k.srtt_us), Some(42));
        assert!(rows[1].kernel.is_none());
    }
}
