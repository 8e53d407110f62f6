//! What happens to requests on their way: retries, breakers, panic, limits, pools, mirrors, detection.
//!
//! Services, and the limits of each, have series of their own up to a cap; what is above shares one.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
};

use super::{families::Families, labels::OVERFLOW, lock};
use crate::{model::ResourceName, resilience::Transition, telemetry::Reason};

/// Services with series of their own.
const MAX_SERVICES: usize = 2_000;
/// Value of the labels where a request has no service.
const NO_SERVICE: &str = "-";

/// An enum whose values are the values of one label.
macro_rules! words {
    ($(#[$doc:meta])* $visibility:vis $name:ident { $($(#[$word:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        $visibility enum $name { $($(#[$word])* $variant,)* }

        impl $name {
            #[allow(dead_code)] // not every kind of word is counted by word
            $visibility const ALL: &'static [Self] = &[$(Self::$variant,)*];

            $visibility const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

words! {
    /// What became of the wish to repeat an attempt.
    pub Retry {
        /// Another attempt was made.
        Made = "made",
        /// A request that was repeated was answered well.
        Succeeded = "succeeded",
        /// The service's budget had none left.
        BudgetRefused = "budget_refused",
        /// Every retry that the policy allows was used.
        LimitReached = "limit_reached",
    }
}

words! {
    /// What became of an endpoint's breaker: the state that it entered, or an ejection that there was no room for.
    BreakerChange {
        Closed = "Closed",
        HalfOpen = "HalfOpen",
        Open = "Open",
        Refused = "refused",
    }
}

impl BreakerChange {
    const fn of(transition: &Transition) -> Self {
        match transition {
            Transition::Closed => Self::Closed,
            Transition::HalfOpen => Self::HalfOpen,
            Transition::Opened { .. } => Self::Open,
            Transition::Refused { .. } => Self::Refused,
        }
    }
}

words! {
    /// What became of the copy of a request.
    pub Mirror {
        Sent = "sent",
        /// As many copies are on their way as may be, or the body is too large.
        Dropped = "dropped",
        Failed = "failed",
    }
}

words! {
    /// What the detection of a connection's protocol found.
    pub Detected {
        Http1 = "http1",
        Http2 = "http2",
        /// The client's first bytes are not HTTP's.
        Other = "other",
        /// The server spoke first.
        ServerFirst = "server_first",
        /// Nobody spoke within the deadline.
        Timeout = "timeout",
        /// The client went away before it said anything.
        Closed = "closed",
    }
}

words! {
    /// What an active health check found out.
    pub HealthChange {
        Healthy = "healthy",
        Unhealthy = "unhealthy",
    }
}

words! {
    /// Whose protocol it is that was broken.
    Side {
        Client = "client",
        Upstream = "upstream",
    }
}

/// One counter a word.
type Words<const N: usize> = [AtomicU64; N];

fn add(counters: &[AtomicU64], word: usize) {
    counters[word].fetch_add(1, Ordering::Relaxed);
}

/// What is counted of one service.
#[derive(Debug, Default)]
struct ServiceCounts {
    attempts: AtomicU64,
    retries: Words<{ Retry::ALL.len() }>,
    breaker: Words<{ BreakerChange::ALL.len() }>,
    health: Words<{ HealthChange::ALL.len() }>,
    panic: AtomicBool,
    panics: AtomicU64,
}

/// All of it.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    services: RwLock<HashMap<ResourceName, Arc<ServiceCounts>>>,
    overflow: ServiceCounts,
    none: ServiceCounts,
    mirrors: Words<{ Mirror::ALL.len() }>,
    detected: Words<{ Detected::ALL.len() }>,
    protocol_errors: Mutex<BTreeMap<(Side, &'static str), u64>>,
    /// Requests now served: outbound, inbound.
    in_flight: [AtomicI64; 2],
    pub(crate) spans_exported: AtomicU64,
    pub(crate) spans_dropped: AtomicU64,
    pub(crate) span_exports_failed: AtomicU64,
}

impl Traffic {
    /// Runs on the counters of a service. Allocates nothing for one that is known.
    fn of(&self, service: Option<&ResourceName>, work: impl FnOnce(&ServiceCounts)) {
        let Some(service) = service else {
            return work(&self.none);
        };
        let known = self.services.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(counts) = known.get(service) {
            return work(counts);
        }
        let full = known.len() >= MAX_SERVICES;
        drop(known);
        if full {
            return work(&self.overflow);
        }
        let mut known = self
            .services
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        work(known.entry(service.clone()).or_default());
    }

    pub(crate) fn attempts(&self, service: Option<&ResourceName>, n: u64) {
        self.of(service, |counts| {
            counts.attempts.fetch_add(n, Ordering::Relaxed);
        });
    }

    pub(crate) fn retry(&self, service: Option<&ResourceName>, outcome: Retry) {
        self.of(service, |counts| add(&counts.retries, outcome as usize));
    }

    pub(crate) fn breaker(&self, service: &ResourceName, transition: &Transition) {
        let change = BreakerChange::of(transition);
        self.of(Some(service), |counts| {
            add(&counts.breaker, change as usize);
        });
    }

    pub(crate) fn health(&self, service: &ResourceName, to: HealthChange) {
        self.of(Some(service), |counts| add(&counts.health, to as usize));
    }

    /// True when that is a change.
    pub(crate) fn panic(&self, service: &ResourceName, on: bool) -> bool {
        let mut changed = false;
        self.of(Some(service), |counts| {
            changed = counts.panic.swap(on, Ordering::Relaxed) != on;
            if changed && on {
                counts.panics.fetch_add(1, Ordering::Relaxed);
            }
        });
        changed
    }

    pub(crate) fn mirror(&self, outcome: Mirror) {
        add(&self.mirrors, outcome as usize);
    }

    pub(crate) fn detected(&self, outcome: Detected) {
        add(&self.detected, outcome as usize);
    }

    /// Counts the reasons that say that a peer broke HTTP.
    pub(crate) fn violation(&self, reason: Reason) {
        let side = match reason {
            Reason::BadRequest
            | Reason::RequestTooLarge
            | Reason::UriTooLong
            | Reason::ClientTimeout
            | Reason::NotHttp
            | Reason::ClientAbuse => Side::Client,
            Reason::UpstreamProtocol | Reason::GrpcStatusMissing => Side::Upstream,
            _ => return,
        };
        *lock(&self.protocol_errors)
            .entry((side, reason.as_str()))
            .or_default() += 1;
    }

    pub(crate) fn in_flight(&self, inbound: bool, by: i64) {
        self.in_flight[usize::from(inbound)].fetch_add(by, Ordering::Relaxed);
    }

    /// Forgets services that are no more.
    pub(crate) fn retain(&self, exists: impl Fn(&ResourceName) -> bool) {
        self.services
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|service, _| exists(service));
    }

    pub(super) fn encode(&self, out: &mut Families<'_>) -> std::fmt::Result {
        self.encode_services(out)?;
        let words = |counters: &[AtomicU64], at: usize| counters[at].load(Ordering::Relaxed);
        out.counters(
            "mesh_mirrored_requests",
            "Copies of requests that were sent, dropped because too many were on their way, or failed",
            "outcome",
            Mirror::ALL.iter().map(|o| (o.as_str(), words(&self.mirrors, *o as usize))),
        )?;
        out.counters(
            "mesh_protocol_detections",
            "Connections to ports without a declared protocol, by what was found",
            "outcome",
            Detected::ALL
                .iter()
                .map(|o| (o.as_str(), words(&self.detected, *o as usize))),
        )?;
        let errors = lock(&self.protocol_errors).clone();
        out.labelled_counters(
            "mesh_protocol_errors",
            "Violations of HTTP and floods, by whose they were and the cause",
            errors
                .iter()
                .map(|((side, cause), n)| ([("side", side.as_str()), ("cause", *cause)], *n)),
        )?;
        out.gauges(
            "mesh_requests_active",
            "Requests now served",
            ["source", "destination"]
                .into_iter()
                .zip(&self.in_flight)
                .map(|(reporter, n)| {
                    (
                        [("reporter", reporter.to_owned())],
                        n.load(Ordering::Relaxed) as f64,
                    )
                }),
        )?;
        for (name, help, n) in [
            (
                "mesh_spans_exported",
                "Spans that the collector took",
                &self.spans_exported,
            ),
            (
                "mesh_spans_dropped",
                "Spans that were lost because the collector is slow, away or refuses them",
                &self.spans_dropped,
            ),
            (
                "mesh_span_exports_failed",
                "Attempts to send spans that failed",
                &self.span_exports_failed,
            ),
        ] {
            out.counter(name, help, n.load(Ordering::Relaxed))?;
        }
        Ok(())
    }

    fn encode_services(&self, out: &mut Families<'_>) -> std::fmt::Result {
        let services = self.services.read().unwrap_or_else(PoisonError::into_inner);
        let row = |service, namespace, counts| Row {
            service,
            namespace,
            counts,
        };
        let rows: Vec<Row<'_>> = services
            .iter()
            .map(|(service, counts)| row(&*service.name, &*service.namespace, &**counts))
            .chain([
                row(NO_SERVICE, NO_SERVICE, &self.none),
                row(OVERFLOW, OVERFLOW, &self.overflow),
            ])
            .collect();
        out.labelled_counters(
            "mesh_request_attempts",
            "Attempts to have requests answered, the first of each included",
            rows.iter().filter_map(|row| {
                let n = row.counts.attempts.load(Ordering::Relaxed);
                (n > 0).then(|| (row.labels(), n))
            }),
        )?;
        for (name, help, key, words, read) in BY_SERVICE {
            out.labelled_counters(
                name,
                help,
                rows.iter().flat_map(|row| {
                    let counters = read(row.counts).iter().zip(words());
                    counters.filter_map(move |(n, word)| {
                        let n = n.load(Ordering::Relaxed);
                        let [service, namespace] = row.labels();
                        (n > 0).then_some(([service, namespace, (key, word)], n))
                    })
                }),
            )?;
        }
        out.labelled_counters(
            "mesh_panics",
            "Times that so few endpoints were usable that all were used from then on",
            rows.iter().filter_map(|row| {
                let n = row.counts.panics.load(Ordering::Relaxed);
                (n > 0).then(|| (row.labels(), n))
            }),
        )?;
        out.gauges(
            "mesh_panic_mode",
            "1 while so few endpoints of the service are usable that all are used",
            rows.iter()
                .filter(|row| row.counts.panics.load(Ordering::Relaxed) > 0)
                .map(|row| {
                    let on = row.counts.panic.load(Ordering::Relaxed);
                    let labels = row.labels().map(|(k, v)| (k, v.to_owned()));
                    (labels, f64::from(u8::from(on)))
                }),
        )
    }
}

/// One service at a scrape.
struct Row<'a> {
    service: &'a str,
    namespace: &'a str,
    counts: &'a ServiceCounts,
}

impl<'a> Row<'a> {
    fn labels(&self) -> [(&'static str, &'a str); 2] {
        [
            ("destination_service_name", self.service),
            ("destination_service_namespace", self.namespace),
        ]
    }
}

type Read = fn(&ServiceCounts) -> &[AtomicU64];
type Texts = fn() -> Vec<&'static str>;
/// Name, help, label, its values, and the counters of these.
const BY_SERVICE: [(&str, &str, &str, Texts, Read); 3] = [
    (
        "mesh_request_retries",
        "Retries by outcome: made, succeeded, refused by the budget, at the limit of the policy",
        "outcome",
        || Retry::ALL.iter().map(|w| w.as_str()).collect(),
        |counts| &counts.retries,
    ),
    (
        "mesh_breaker_transitions",
        "Changes of the circuit breakers of a service's endpoints, by the state entered; refused: no more may be ejected",
        "to",
        || BreakerChange::ALL.iter().map(|w| w.as_str()).collect(),
        |counts| &counts.breaker,
    ),
    (
        "mesh_health_check_transitions",
        "Endpoints that active health checks found healthy or unhealthy anew",
        "to",
        || HealthChange::ALL.iter().map(|w| w.as_str()).collect(),
        |counts| &counts.health,
    ),
];
