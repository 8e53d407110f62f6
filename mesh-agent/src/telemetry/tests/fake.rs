//! A catalog and a BPF map for tests.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::{Arc, Mutex},
};

use mesh_common::{ConnRecord, Direction, KernelClose, Path};

use crate::{
    model::{
        EffectivePolicy, Enrolment, ResourceName, SpiffeId, TrustDomain, TunnelProtocol, Workload,
    },
    telemetry::{
        ConnGuard, ConnMeta, ConnStore, Directory, Peer, Protocol, Reason, RequestStart, Telemetry,
        TelemetryOptions, TraceContext, lock,
    },
};

pub(super) fn name(text: &str) -> ResourceName {
    let (namespace, name) = text.split_once('/').unwrap();
    ResourceName::new(namespace, name)
}

/// An outbound connection of shop/client to the service shop/web.
pub(super) fn outbound(cookie: u64) -> ConnMeta {
    ConnMeta {
        direction: Direction::Outbound,
        workload: name("shop/client"),
        source: Peer {
            addr: "10.0.0.1:40000".parse().unwrap(),
            workload: Some(name("shop/client")),
        },
        original_dst: "10.96.0.1:80".parse().unwrap(),
        service: Some(name("shop/web")),
        protocol: Protocol::Tcp,
        app_cookie: cookie,
        agent_cookie: 0,
    }
}

/// An inbound connection of shop/client to shop/web-1.
pub(super) fn inbound(agent_cookie: u64) -> ConnMeta {
    ConnMeta {
        direction: Direction::Inbound,
        workload: name("shop/web-1"),
        original_dst: "10.0.0.2:8080".parse().unwrap(),
        service: None,
        app_cookie: 0,
        agent_cookie,
        ..outbound(0)
    }
}

pub(super) fn record(direction: Direction, path: Path) -> ConnRecord {
    ConnRecord {
        netns: 7,
        local: "10.0.0.1:40000"
            .parse::<std::net::SocketAddr>()
            .unwrap()
            .into(),
        remote: "10.0.0.2:8080"
            .parse::<std::net::SocketAddr>()
            .unwrap()
            .into(),
        original_dst: "10.96.0.1:80"
            .parse::<std::net::SocketAddr>()
            .unwrap()
            .into(),
        start_ns: 1_000_000_000,
        last_ns: 3_500_000_000,
        state: 1,
        direction: direction as u8,
        path: path as u8,
        ..ConnRecord::default()
    }
}

pub(super) fn closed(record: ConnRecord, how: KernelClose) -> ConnRecord {
    ConnRecord {
        close_reason: how as u8,
        state: 7,
        ..record
    }
}

pub(super) struct World;

impl Directory for World {
    fn workload(&self, name: &ResourceName) -> Option<Arc<Workload>> {
        Some(Arc::new(Workload {
            name: name.clone(),
            labels: BTreeMap::from([
                ("app".to_owned(), format!("{}-app", name.name)),
                ("version".to_owned(), "v2".to_owned()),
            ]),
            node: None,
            addresses: Vec::new(),
            netns: None,
            service_account: "default".into(),
            identity: SpiffeId::new(&TrustDomain::default(), &name.namespace, "default").unwrap(),
            protocol: TunnelProtocol::Hbone,
            weight: 1,
            zone: None,
            ports: BTreeMap::new(),
            enrolment: Enrolment::Enrolled,
            policy: Arc::new(EffectivePolicy::default()),
        }))
    }

    fn workload_by_netns(&self, cookie: u64) -> Option<ResourceName> {
        (cookie == 7).then(|| name("shop/client"))
    }

    fn workload_by_address(&self, ip: IpAddr) -> Option<ResourceName> {
        (ip == IpAddr::from([10, 0, 0, 2])).then(|| name("shop/web-1"))
    }

    fn service_by_address(&self, ip: IpAddr) -> Option<ResourceName> {
        (ip == IpAddr::from([10, 96, 0, 1])).then(|| name("shop/web"))
    }

    fn policies(&self) -> Option<HashSet<ResourceName>> {
        Some(HashSet::from([name("shop/web-clients")]))
    }
}

/// The map, and how often it was written.
pub(super) struct Hook(pub(super) Box<dyn FnOnce() + Send>);

impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hook")
    }
}

#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) records: Mutex<HashMap<u64, ConnRecord>>,
    pub(super) writes: Mutex<Vec<u64>>,
    /// Called once, after the map was read and before what was read is given back.
    pub(super) after_reading: Mutex<Option<Hook>>,
}

impl Store {
    pub(super) fn put(&self, cookie: u64, record: ConnRecord) {
        lock(&self.records).insert(cookie, record);
    }

    pub(super) fn get(&self, cookie: u64) -> Option<ConnRecord> {
        lock(&self.records).get(&cookie).copied()
    }

    pub(super) fn remove(&self, cookie: u64) -> Option<ConnRecord> {
        lock(&self.records).remove(&cookie)
    }
}

impl ConnStore for Store {
    fn read_conns(&self) -> Vec<(u64, ConnRecord)> {
        let read = lock(&self.records).iter().map(|(k, v)| (*k, *v)).collect();
        let hook = lock(&self.after_reading).take();
        if let Some(Hook(hook)) = hook {
            hook();
        }
        read
    }

    fn read_conn(&self, cookie: u64) -> Option<ConnRecord> {
        self.get(cookie)
    }

    fn update_conn(&self, cookie: u64, record: &ConnRecord) {
        if let Some(slot) = lock(&self.records).get_mut(&cookie) {
            *slot = *record;
            lock(&self.writes).push(cookie);
        }
    }
}

pub(super) fn telemetry(options: TelemetryOptions) -> (Telemetry, Arc<Store>) {
    let telemetry = Telemetry::new(options);
    let store = Arc::new(Store::default());
    telemetry.set_directory(Arc::new(World));
    telemetry.set_store(store.clone());
    (telemetry, store)
}

/// Sum of the samples of a family that have all these labels.
pub(super) fn sum(exposition: &str, family: &str, labels: &[(&str, &str)]) -> u64 {
    exposition
        .lines()
        .filter(|line| {
            line.strip_prefix(family)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
        })
        .filter(|line| {
            labels
                .iter()
                .all(|(k, v)| line.contains(&format!("{k}=\"{v}\"")))
        })
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum::<f64>() as u64
}

/// A GET of /cart.
pub(super) fn get() -> RequestStart {
    RequestStart {
        method: http::Method::GET,
        uri: "/cart?id=7&token=secret".parse().unwrap(),
        version: http::Version::HTTP_11,
        authority: Some(http::HeaderValue::from_static("web.shop:80")),
        request_id: Some(http::HeaderValue::from_static("r-1")),
        user_agent: Some(http::HeaderValue::from_static("curl/8")),
        grpc: false,
        trace: TraceContext::default(),
    }
}

/// A connection on which requests come.
pub(super) fn http(telemetry: &Telemetry, meta: ConnMeta) -> ConnGuard {
    let guard = telemetry.open(meta);
    guard.set_protocol(Protocol::Http);
    guard
}

/// One request that is answered by shop/web-1.
pub(super) fn answered(connection: &ConnGuard, start: RequestStart, status: u16) {
    let mut guard = connection.request(start);
    guard.attempt("10.0.0.2:8080".parse().unwrap(), Some(&name("shop/web-1")));
    guard.attempt_connected();
    guard.bytes().add_request(3);
    guard.response_started(http::StatusCode::from_u16(status).unwrap());
    guard.bytes().add_response(5);
    guard.finish(Reason::Completed);
}
