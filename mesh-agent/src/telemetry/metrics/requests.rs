//! The HTTP and gRPC families: one flow for each (reporter, source, destination, service, principals, protocol), and in
//! it a series for each answer (status, gRPC status, flag). Series are capped, flows forgotten when idle.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet},
    metrics::{MetricType, counter::ConstCounter, exemplar::Exemplar},
};

use super::{
    labels::{FlowKey, FlowLabels, OVERFLOW, RequestLabels, RequestReasonLabels},
    lock,
};
use crate::{
    model::ResourceName,
    telemetry::{Reason, directory::Directory, security::Principals},
};

/// Upper bounds in microseconds: Envoy's, which Istio's dashboards expect.
const DURATIONS: [u64; 19] = [
    500,
    1_000,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    600_000_000,
    1_800_000_000,
    3_600_000_000,
];
/// Upper bounds in bytes.
const SIZES: [u64; 12] = [
    0,
    1 << 8,
    1 << 10,
    1 << 12,
    1 << 14,
    1 << 16,
    1 << 18,
    1 << 20,
    1 << 22,
    1 << 24,
    1 << 27,
    1 << 30,
];
/// Answers of one flow with series of their own.
const MAX_ANSWERS: usize = 64;
/// Flows that one connection remembers.
const MAX_CACHED: usize = 16;

/// What tells one flow from another, borrowed: looking one up copies nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FlowRef<'a> {
    pub(crate) inbound: bool,
    pub(crate) source: Option<&'a ResourceName>,
    pub(crate) destination: Option<&'a ResourceName>,
    pub(crate) service: Option<&'a ResourceName>,
    pub(crate) security: Option<&'a Principals>,
    pub(crate) grpc: bool,
}

impl FlowRef<'_> {
    fn is(&self, key: &RequestKey) -> bool {
        let (flow, grpc) = key;
        *grpc == self.grpc
            && flow.inbound == self.inbound
            && flow.destination.as_ref() == self.destination
            && flow.source.as_ref() == self.source
            && flow.service.as_ref() == self.service
            && flow.security.as_ref() == self.security
    }

    /// Counts references, copies nothing.
    fn to_key(self) -> RequestKey {
        let flow = FlowKey {
            inbound: self.inbound,
            source: self.source.cloned(),
            destination: self.destination.cloned(),
            service: self.service.cloned(),
            security: self.security.cloned(),
        };
        (flow, self.grpc)
    }
}

type RequestKey = (FlowKey, bool);

/// How a request was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// 0: not at all.
    pub(crate) code: u16,
    pub(crate) grpc_status: Option<u32>,
    pub(crate) reason: Reason,
}

impl Answer {
    /// What the labels tell apart; several reasons share a flag. Codes that gRPC does not know are its UNKNOWN.
    fn labels(self) -> (u16, Option<u32>, &'static str) {
        let grpc = self
            .grpc_status
            .map(|code| if code > 16 { 2 } else { code });
        (self.code, grpc, self.reason.flag())
    }
}

/// What was measured of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    pub(crate) duration: Duration,
    pub(crate) request_bytes: u64,
    pub(crate) response_bytes: u64,
}

/// Counts by upper bound, the last for what is above all of them.
#[derive(Debug)]
struct Histogram<const N: usize> {
    counts: [AtomicU64; N],
    above: AtomicU64,
    sum: AtomicU64,
}

impl<const N: usize> Default for Histogram<N> {
    fn default() -> Self {
        Self {
            counts: [const { AtomicU64::new(0) }; N],
            above: AtomicU64::new(0),
            sum: AtomicU64::new(0),
        }
    }
}

impl<const N: usize> Histogram<N> {
    fn observe(&self, bounds: &[u64; N], value: u64) {
        let at = bounds.partition_point(|bound| *bound < value);
        self.counts
            .get(at)
            .unwrap_or(&self.above)
            .fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    /// Sum, count, buckets; in `unit`s.
    fn read(&self, bounds: &[u64; N], unit: f64) -> (f64, u64, Vec<(f64, u64)>) {
        let buckets: Vec<_> = bounds
            .iter()
            .map(|bound| *bound as f64 / unit)
            .chain([f64::INFINITY])
            .zip(self.counts.iter().chain([&self.above]))
            .map(|(bound, n)| (bound, n.load(Ordering::Relaxed)))
            .collect();
        let count = buckets.iter().map(|(_, n)| n).sum();
        (
            self.sum.load(Ordering::Relaxed) as f64 / unit,
            count,
            buckets,
        )
    }
}

/// What is counted of one answer of one flow.
#[derive(Debug)]
pub(crate) struct Series {
    code: u16,
    grpc_status: Option<u32>,
    flags: &'static str,
    requests: AtomicU64,
    durations: Histogram<{ DURATIONS.len() }>,
    request_bytes: Histogram<{ SIZES.len() }>,
    response_bytes: Histogram<{ SIZES.len() }>,
}

impl Series {
    fn new((code, grpc_status, flags): (u16, Option<u32>, &'static str)) -> Self {
        Self {
            code,
            grpc_status,
            flags,
            requests: AtomicU64::new(0),
            durations: Histogram::default(),
            request_bytes: Histogram::default(),
            response_bytes: Histogram::default(),
        }
    }

    fn is(&self, labels: (u16, Option<u32>, &'static str)) -> bool {
        (self.code, self.grpc_status, self.flags) == labels
    }

    fn add(&self, measured: Measured) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(measured.duration.as_micros()).unwrap_or(u64::MAX);
        self.durations.observe(&DURATIONS, micros);
        self.request_bytes.observe(&SIZES, measured.request_bytes);
        self.response_bytes.observe(&SIZES, measured.response_bytes);
    }
}

/// One flow.
#[derive(Debug)]
pub(crate) struct RequestFlow {
    key: RequestKey,
    labels: FlowLabels,
    answers: RwLock<Vec<Arc<Series>>>,
    /// Answers above the cap.
    rest: Arc<Series>,
    reasons: [AtomicU64; Reason::ALL.len()],
    /// Milliseconds since the start of the table, of the last request.
    touched: AtomicU64,
}

impl RequestFlow {
    fn new(key: RequestKey, labels: FlowLabels) -> Self {
        Self {
            key,
            labels,
            answers: RwLock::default(),
            rest: Arc::new(Series::new((0, None, OVERFLOW))),
            reasons: [const { AtomicU64::new(0) }; Reason::ALL.len()],
            touched: AtomicU64::new(0),
        }
    }

    fn protocol(&self) -> &'static str {
        if self.key.1 { "grpc" } else { "http" }
    }

    fn find(&self, answer: Answer) -> Option<Arc<Series>> {
        let answers = self.answers.read().unwrap_or_else(PoisonError::into_inner);
        answers.iter().find(|s| s.is(answer.labels())).cloned()
    }
}

/// What a connection remembers of its requests' series.
#[derive(Debug, Default)]
pub(crate) struct SeriesCache(Mutex<Vec<(Arc<RequestFlow>, Arc<Series>)>>);

impl SeriesCache {
    /// Lets go, so that the flows do not seem in use.
    pub(crate) fn clear(&self) {
        *lock(&self.0) = Vec::new();
    }
}

/// Every flow of requests.
pub(crate) struct Requests {
    started: Instant,
    max: usize,
    idle: Duration,
    flows: RwLock<HashMap<RequestKey, Arc<RequestFlow>>>,
    series: AtomicUsize,
    /// Outbound, inbound; then those with mutual TLS; then gRPC.
    overflow: [Arc<RequestFlow>; 8],
    folded: AtomicU64,
}

impl fmt::Debug for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Requests").field("max", &self.max).finish()
    }
}

impl Requests {
    /// `max`: series with labels of their own.
    pub(crate) fn new(max: usize, idle: Duration, now: Instant) -> Self {
        let overflow = |i: usize| {
            let (inbound, secured, grpc) = (i & 1 == 1, i & 2 == 2, i & 4 == 4);
            let key = FlowKey {
                inbound,
                source: None,
                destination: None,
                service: None,
                security: None,
            };
            let labels = FlowLabels::overflow(inbound, secured);
            Arc::new(RequestFlow::new((key, grpc), labels))
        };
        Self {
            started: now,
            max,
            idle,
            flows: RwLock::default(),
            series: AtomicUsize::new(0),
            overflow: std::array::from_fn(overflow),
            folded: AtomicU64::new(0),
        }
    }

    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }

    /// Counts one request. Allocates nothing for a series that is known.
    pub(crate) fn add(
        &self,
        cache: &SeriesCache,
        key: FlowRef<'_>,
        answer: Answer,
        measured: Measured,
        directory: &dyn Directory,
        now: Instant,
    ) {
        let count = |flow: &RequestFlow, series: &Series| {
            series.add(measured);
            flow.reasons[answer.reason.index()].fetch_add(1, Ordering::Relaxed);
            flow.touched.store(self.millis(now), Ordering::Relaxed);
        };
        {
            let cached = lock(&cache.0);
            let known = cached
                .iter()
                .find(|(flow, series)| series.is(answer.labels()) && key.is(&flow.key));
            if let Some((flow, series)) = known {
                return count(flow, series);
            }
        }
        let flow = self.flow(key, directory);
        let own = key.is(&flow.key);
        let series = self.series(&flow, answer, own);
        count(&flow, series.as_ref().unwrap_or(&flow.rest));
        // What is counted in the overflow may get room of its own later.
        match series {
            Some(series) if own => {
                let mut cached = lock(&cache.0);
                if cached.len() >= MAX_CACHED {
                    cached.remove(0);
                }
                cached.push((flow, series));
            }
            _ => {
                self.folded.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn flow(&self, key: FlowRef<'_>, directory: &dyn Directory) -> Arc<RequestFlow> {
        let owned = key.to_key();
        let read = || self.flows.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(flow) = read().get(&owned) {
            return flow.clone();
        }
        if self.series.load(Ordering::Relaxed) >= self.max {
            let at = usize::from(key.inbound)
                + 2 * usize::from(key.security.is_some())
                + 4 * usize::from(key.grpc);
            return self.overflow[at].clone();
        }
        // Labels are made outside the write lock: the directory may be slow.
        let labels = FlowLabels::new(&owned.0, directory);
        let mut flows = self.flows.write().unwrap_or_else(PoisonError::into_inner);
        flows
            .entry(owned.clone())
            .or_insert_with(|| Arc::new(RequestFlow::new(owned, labels)))
            .clone()
    }

    /// `None`: there are too many. Of the overflow flows, which are few (not `own`), answers do not count against the cap.
    fn series(&self, flow: &RequestFlow, answer: Answer, own: bool) -> Option<Arc<Series>> {
        if let Some(series) = flow.find(answer) {
            return Some(series);
        }
        let mut answers = flow.answers.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(series) = answers.iter().find(|s| s.is(answer.labels())) {
            return Some(series.clone());
        }
        if answers.len() >= MAX_ANSWERS || (own && self.series.load(Ordering::Relaxed) >= self.max)
        {
            return None;
        }
        if own {
            self.series.fetch_add(1, Ordering::Relaxed);
        }
        let series = Arc::new(Series::new(answer.labels()));
        answers.push(series.clone());
        Some(series)
    }

    /// Forgets flows that no connection remembers and that had no request for the idle time.
    pub(crate) fn expire(&self, now: Instant) {
        let horizon = self
            .millis(now)
            .saturating_sub(u64::try_from(self.idle.as_millis()).unwrap_or(u64::MAX));
        let mut flows = self.flows.write().unwrap_or_else(PoisonError::into_inner);
        flows.retain(|_, flow| {
            Arc::strong_count(flow) > 1 || flow.touched.load(Ordering::Relaxed) >= horizon
        });
        let left = flows.values().map(|flow| {
            let answers = flow.answers.read().unwrap_or_else(PoisonError::into_inner);
            answers.len()
        });
        self.series.store(left.sum(), Ordering::Relaxed);
    }

    /// Requests that were counted in an overflow series.
    pub(crate) fn folded(&self) -> u64 {
        self.folded.load(Ordering::Relaxed)
    }

    pub(crate) fn len(&self) -> usize {
        self.series.load(Ordering::Relaxed)
    }

    /// Every flow with its series.
    fn all(&self) -> Vec<(Arc<RequestFlow>, Vec<Arc<Series>>)> {
        let flows = self.flows.read().unwrap_or_else(PoisonError::into_inner);
        flows
            .values()
            .chain(&self.overflow)
            .map(|flow| {
                let answers = flow.answers.read().unwrap_or_else(PoisonError::into_inner);
                let mut series = answers.clone();
                if flow.rest.requests.load(Ordering::Relaxed) > 0 {
                    series.push(flow.rest.clone());
                }
                (flow.clone(), series)
            })
            .filter(|(_, series)| !series.is_empty())
            .collect()
    }
}

type Read = fn(&Series) -> (f64, u64, Vec<(f64, u64)>);
const HISTOGRAMS: [(&str, &str, Read); 3] = [
    (
        "istio_request_duration_milliseconds",
        "From the headers of the request to the end of the response",
        |s| s.durations.read(&DURATIONS, 1_000.0),
    ),
    ("istio_request_bytes", "Bytes of the request's body", |s| {
        s.request_bytes.read(&SIZES, 1.0)
    }),
    (
        "istio_response_bytes",
        "Bytes of the response's body",
        |s| s.response_bytes.read(&SIZES, 1.0),
    ),
];

impl Collector for Requests {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let flows = self.all();
        let each = |work: &mut dyn FnMut(&RequestLabels<'_>, &Series) -> fmt::Result| {
            for (flow, answers) in &flows {
                for series in answers {
                    let overflow = series.flags == OVERFLOW;
                    let (code, grpc) = if overflow {
                        (OVERFLOW.into(), OVERFLOW.into())
                    } else {
                        let grpc = series.grpc_status.map(|code| code.to_string());
                        (series.code.to_string(), grpc.unwrap_or_default())
                    };
                    let labels = RequestLabels {
                        flow: &flow.labels,
                        protocol: flow.protocol(),
                        response_code: &code,
                        grpc_status: &grpc,
                        response_flags: series.flags,
                    };
                    work(&labels, series)?;
                }
            }
            Ok(())
        };
        let mut family = encoder.encode_descriptor(
            "istio_requests",
            "Requests, by how they were answered",
            None,
            MetricType::Counter,
        )?;
        each(&mut |labels, series| {
            ConstCounter::new(series.requests.load(Ordering::Relaxed))
                .encode(family.encode_family(labels)?)
        })?;
        for (name, help, read) in HISTOGRAMS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            each(&mut |labels, series| {
                let (sum, count, buckets) = read(series);
                family.encode_family(labels)?.encode_histogram(
                    sum,
                    count,
                    &buckets,
                    None::<&HashMap<usize, Exemplar<NoLabelSet, f64>>>,
                )
            })?;
        }
        let mut family = encoder.encode_descriptor(
            "mesh_requests",
            "Requests, by the reason that they ended for",
            None,
            MetricType::Counter,
        )?;
        for (flow, _) in &flows {
            for reason in Reason::ALL {
                let n = flow.reasons[reason.index()].load(Ordering::Relaxed);
                if n > 0 {
                    let labels = RequestReasonLabels {
                        flow: &flow.labels,
                        protocol: flow.protocol(),
                        reason: reason.as_str(),
                    };
                    ConstCounter::new(n).encode(family.encode_family(&labels)?)?;
                }
            }
        }
        Ok(())
    }
}
