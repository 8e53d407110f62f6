//! TLS handshakes: how long they took, why they failed.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{
    super::lock,
    families::{Families, Histogram},
};

/// Which side of a handshake this agent was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// It opened the tunnel.
    Client,
    /// It accepted the tunnel.
    Server,
}

impl Role {
    const ALL: [Self; 2] = [Self::Client, Self::Server];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// Upper bounds of the buckets in seconds; the last takes the rest.
const BOUNDS: [f64; 11] = [
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    1.0,
    5.0,
    f64::INFINITY,
];

#[derive(Debug, Default)]
struct Durations {
    buckets: [AtomicU64; BOUNDS.len()],
    nanos: AtomicU64,
}

#[derive(Debug, Default)]
pub(crate) struct Handshakes {
    /// Causes are fixed words, so the map is small.
    failed: Mutex<BTreeMap<(Role, &'static str), u64>>,
    took: [Durations; 2],
}

impl Handshakes {
    pub(crate) fn add_failed(&self, role: Role, cause: &'static str) {
        *lock(&self.failed).entry((role, cause)).or_default() += 1;
    }

    pub(crate) fn add_done(&self, role: Role, took: Duration) {
        let seconds = took.as_secs_f64();
        let durations = &self.took[role as usize];
        if let Some((_, bucket)) = BOUNDS
            .iter()
            .zip(&durations.buckets)
            .find(|(bound, _)| seconds <= **bound)
        {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        durations.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    pub(super) fn encode(&self, out: &mut Families<'_>) -> std::fmt::Result {
        let failed = lock(&self.failed).clone();
        out.labelled_counters(
            "mesh_tls_handshake_failures",
            "TLS handshakes with other agents that failed, by this agent's role and the cause",
            failed
                .iter()
                .map(|((role, cause), n)| ([("role", role.as_str()), ("cause", *cause)], *n)),
        )?;
        out.histograms(
            "mesh_tls_handshake_duration_seconds",
            "How long TLS handshakes with other agents took that succeeded",
            "role",
            Role::ALL.map(|role| {
                let durations = &self.took[role as usize];
                let counts = durations.buckets.iter().map(|n| n.load(Ordering::Relaxed));
                let histogram = Histogram {
                    sum: Duration::from_nanos(durations.nanos.load(Ordering::Relaxed))
                        .as_secs_f64(),
                    buckets: BOUNDS.into_iter().zip(counts).collect(),
                };
                (role.as_str(), histogram)
            }),
        )
    }
}
