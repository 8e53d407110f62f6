//! The table of open proxied connections.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    conn::{ANONYMOUS, Conn},
    lock,
};

/// Shards, so that openings and endings on different cores seldom meet; cookies are handed out one after the other.
const SHARDS: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Live {
    shards: [Mutex<HashMap<u64, Arc<Conn>>>; SHARDS],
    anonymous: AtomicU64,
}

impl Live {
    fn shard(&self, key: u64) -> &Mutex<HashMap<u64, Arc<Conn>>> {
        &self.shards[key as usize % SHARDS]
    }

    /// Adds a connection under its cookie, or, where that is 0 or taken, under a number of its own.
    pub(super) fn insert(&self, cookie: u64, conn: &Arc<Conn>) {
        if cookie != 0
            && let Entry::Vacant(slot) = lock(self.shard(cookie)).entry(cookie)
        {
            conn.key.store(cookie, Ordering::Relaxed);
            slot.insert(conn.clone());
            return;
        }
        let key = ANONYMOUS | self.anonymous.fetch_add(1, Ordering::Relaxed);
        conn.key.store(key, Ordering::Relaxed);
        lock(self.shard(key)).insert(key, conn.clone());
    }

    /// Removes a connection; keys are never shared.
    pub(super) fn remove(&self, conn: &Conn) {
        let key = conn.key.load(Ordering::Relaxed);
        lock(self.shard(key)).remove(&key);
    }

    pub(super) fn get(&self, key: u64) -> Option<Arc<Conn>> {
        lock(self.shard(key)).get(&key).cloned()
    }

    pub(super) fn all(&self) -> Vec<Arc<Conn>> {
        let mut all = Vec::new();
        for shard in &self.shards {
            all.extend(lock(shard).values().cloned());
        }
        all
    }
}
