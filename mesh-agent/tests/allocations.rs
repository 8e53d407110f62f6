//! What must not allocate once its labels are known: counted by the allocator, thread by thread.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]
#![allow(
    unsafe_code,
    reason = "an allocator that counts is the only proof that nothing was allocated"
)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    collections::BTreeMap,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use http::HeaderMap;
use mesh_agent::{
    catalog::Catalog,
    model::{
        EffectivePolicy, Enrolment, ResourceName, SpiffeId, TrustDomain, TunnelProtocol, Workload,
    },
    policy::{Facts, HttpFacts, RequestHost, RequestPath},
    telemetry::{
        ConnMeta, Direction, Directory, Outcome, Peer, Protocol, Reason, RequestStart, Role,
        Telemetry, TelemetryOptions, TraceContext,
        logging::{self, LogFormat},
    },
};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator with what was given.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // Gone while a thread ends: nothing is measured then.
        let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
        // SAFETY: the caller's promises are the system allocator's terms.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(work: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.with(Cell::get);
    work();
    ALLOCATIONS.with(Cell::get) - before
}

struct World(Arc<Workload>);

impl Directory for World {
    fn workload(&self, _: &ResourceName) -> Option<Arc<Workload>> {
        Some(self.0.clone())
    }
    fn workload_by_netns(&self, _: u64) -> Option<ResourceName> {
        None
    }
    fn workload_by_address(&self, _: IpAddr) -> Option<ResourceName> {
        None
    }
    fn service_by_address(&self, _: IpAddr) -> Option<ResourceName> {
        None
    }
}

fn id(account: &str) -> SpiffeId {
    SpiffeId::new(&TrustDomain::default(), "shop", account).unwrap()
}

fn telemetry() -> Telemetry {
    let telemetry = Telemetry::new(TelemetryOptions {
        closed_max: 1,
        ..TelemetryOptions::default()
    });
    telemetry.set_directory(Arc::new(World(Arc::new(Workload {
        name: ResourceName::new("shop", "client"),
        labels: BTreeMap::new(),
        node: None,
        addresses: Vec::new(),
        netns: None,
        service_account: "client".into(),
        identity: id("client"),
        protocol: TunnelProtocol::Hbone,
        weight: 1,
        zone: None,
        ports: BTreeMap::new(),
        enrolment: Enrolment::Enrolled,
        policy: Arc::new(EffectivePolicy::default()),
    }))));
    telemetry
}

fn meta() -> ConnMeta {
    ConnMeta {
        direction: Direction::Inbound,
        workload: ResourceName::new("shop", "web-1"),
        source: Peer {
            addr: "10.0.0.1:40000".parse().unwrap(),
            workload: Some(ResourceName::new("shop", "client")),
        },
        original_dst: "10.0.0.2:8080".parse().unwrap(),
        service: None,
        protocol: Protocol::Tcp,
        app_cookie: 0,
        agent_cookie: 7,
    }
}

#[test]
fn mutual_tls_costs_a_connection_no_allocation() {
    let telemetry = telemetry();
    let (source, destination) = (id("client"), id("web"));
    let carry = |meta: ConnMeta, secured: bool| {
        let guard = telemetry.open(meta);
        if secured {
            guard.set_security(Some(source.clone()), Some(destination.clone()));
        }
        guard.established(None);
        guard.counters().add_sent(1);
        guard.finish(Reason::Completed);
    };
    // The label sets, the ring and the tables come to be.
    for _ in 0..4 {
        carry(meta(), false);
        carry(meta(), true);
    }
    let (one, another) = (meta(), meta());
    let plain = allocations(|| carry(one, false));
    let secured = allocations(|| carry(another, true));
    assert!(plain > 0, "the allocator counts");
    assert_eq!(secured, plain);
}

#[test]
fn decisions_and_handshakes_allocate_nothing_once_known() {
    let telemetry = telemetry();
    let policy = ResourceName::new("shop", "web-clients");
    let work = || {
        telemetry.decision(Some(&policy), Outcome::Allow);
        telemetry.decision(None, Outcome::Deny);
        telemetry.handshake_failed(Role::Server, "expired");
        telemetry.handshake_done(Role::Client, Duration::from_millis(3));
    };
    work();
    assert_eq!(allocations(work), 0);
}

/// Metrics and log of a request, from its headers to its end; beside them there is only the counter of its bytes, which
/// its bodies share.
#[test]
fn a_request_allocates_nothing_once_its_labels_are_known() {
    let telemetry = telemetry();
    let (_log, _flush) = logging::init(LogFormat::Json, "info", &telemetry).unwrap();
    let outbound = ConnMeta {
        direction: Direction::Outbound,
        workload: ResourceName::new("shop", "client"),
        service: Some(ResourceName::new("shop", "web")),
        ..meta()
    };
    let connections = [outbound, meta()].map(|meta| {
        let connection = telemetry.open(meta);
        connection.set_protocol(Protocol::Http);
        connection
    });
    let (source, destination) = (id("client"), id("web"));
    let endpoint = ResourceName::new("shop", "web-1");
    let canary = ResourceName::new("shop", "web-canary");
    let route: Arc<str> = "shop/routes/0".into();
    let mut headers = http::HeaderMap::new();
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    headers.insert("traceparent", parent.parse().unwrap());
    let start = RequestStart {
        method: http::Method::GET,
        uri: "http://web.shop/cart?id=7".parse().unwrap(),
        version: http::Version::HTTP_11,
        authority: Some("web.shop".parse().unwrap()),
        request_id: Some("0b7c".parse().unwrap()),
        user_agent: Some("curl/8 \"quoted\"".parse().unwrap()),
        grpc: true,
        trace: TraceContext::extract(&headers),
    };
    let serve = |status: u16, reason: Reason| {
        for connection in &connections {
            let mut guard = connection.request(start.clone());
            guard.set_service(&canary);
            guard.set_route(&route);
            for _ in 0..2 {
                guard.attempt("10.0.0.2:8080".parse().unwrap(), Some(&endpoint));
                guard.attempt_connected();
                guard.set_security(Some(&source), Some(&destination));
                guard.attempt_ended(Err(Reason::UpstreamRefused));
            }
            guard.bytes().add_request(10);
            guard.response_started(http::StatusCode::from_u16(status).unwrap());
            guard.bytes().add_response(1000);
            guard.set_grpc_status(14);
            guard.finish(reason);
        }
    };
    for _ in 0..4 {
        serve(200, Reason::Completed);
        serve(503, Reason::RetriesExhausted);
    }
    let of_bytes = connections.len();
    assert_eq!(allocations(|| serve(200, Reason::Completed)), of_bytes);
    assert_eq!(
        allocations(|| serve(503, Reason::RetriesExhausted)),
        of_bytes
    );
    let known = allocations(|| serve(200, Reason::Completed));
    let new = allocations(|| serve(201, Reason::Completed));
    assert!(new > known, "a label set that is new is made");
    assert!(
        telemetry
            .exposition()
            .contains("mesh_log_lines_dropped_total 0"),
        "the lines were taken"
    );
}

/// A thousand policies of every kind, which match or not: a decision allocates nothing either way, nor does the question
/// what those in dry run would change.
#[test]
fn a_decision_allocates_nothing() {
    let mut text = "apiVersion: mesh.covet.dev/v1alpha1\nkind: Workload\nmetadata: {name: web, namespace: shop}\nspec: {addresses: [10.0.0.2]}\n".to_owned();
    for at in 0..1000 {
        let (action, dry_run) = (["ALLOW", "DENY"][at % 3 / 2], at % 10 == 5);
        let rule = match at % 7 {
            // A DENY in dry run that matches everything that is asked here.
            _ if at == 5 => "to: [{operation: {ports: [80, 4, 9]}}]".to_owned(),
            0 => format!(
                "from: [{{source: {{principals: [cluster.local/ns/n{at}/sa/x, '*/sa/y{at}']}}}}]"
            ),
            1 => format!(
                "from: [{{source: {{namespaces: ['n{at}*'], notPrincipals: ['cluster.local/ns/n{at}/sa/a*']}}}}]"
            ),
            2 => format!(
                "from: [{{source: {{serviceAccounts: [s{at}], ipBlocks: [10.{}.0.0/16]}}}}]",
                at % 256
            ),
            3 => format!(
                "to: [{{operation: {{ports: [{}], notPorts: [80]}}}}]",
                at + 1
            ),
            4 => format!(
                "to: [{{operation: {{ports: [{at}1], methods: [GET], paths: [/p{at}, '/p{at}/*'], notHosts: [h{at}]}}}}]"
            ),
            5 => format!(
                "to: [{{operation: {{ports: [{at}2]}}}}], when: [{{key: 'request.headers[x{}]', values: [v{at}, 'w{at}*']}}]",
                at % 3
            ),
            _ => format!(
                "when: [{{key: source.ip, notValues: [10.0.0.0/8]}}, {{key: source.namespace, values: [m{at}]}}]"
            ),
        };
        text += &format!(
            "---\napiVersion: mesh.covet.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: p{at}, namespace: shop}}\nspec: {{action: {action}, dryRun: {dry_run}, rules: [{{{rule}}}]}}\n"
        );
    }
    let (config, _) = mesh_agent::api::parse_bytes("f", text.as_bytes()).unwrap();
    let catalog = Catalog::new("n1");
    catalog.apply(catalog.register(), config);
    let authorizer = catalog
        .snapshot()
        .authorizer(&ResourceName::new("shop", "web"));
    assert_eq!(authorizer.policies().len(), 1000);
    let trust_domain = TrustDomain::default();
    let of =
        |namespace: &str, account: &str| SpiffeId::new(&trust_domain, namespace, account).unwrap();
    let clients = [
        None,
        Some(of("n0", "x")),
        Some(of("q", "y5")),
        Some(of("n11", "b")),
    ];
    let mut headers = HeaderMap::new();
    for (name, value) in [("x0", "w1"), ("x1", "v5"), ("x1", "v6")] {
        headers.append(name, value.parse().unwrap());
    }
    let ambiguous = RequestPath::new("/p4/a%2Fb");
    let (mut allowed, mut told) = (0, 0);
    let work = || {
        for source in &clients {
            for (ip, port) in [("10.1.0.1", 80), ("fd00::1", 4), ("::ffff:192.0.2.1", 9)] {
                let facts = Facts {
                    source: source.as_ref(),
                    source_ip: ip.parse().unwrap(),
                    destination_ip: ip.parse().unwrap(),
                    destination_port: port,
                    http: None,
                };
                allowed += usize::from(authorizer.decide(&facts).is_allowed());
                authorizer.dry_run(&facts, |_, _| told += 1);
                for path in [&RequestPath::new("/p4/x"), &ambiguous] {
                    let facts = Facts {
                        http: Some(HttpFacts {
                            method: "GET",
                            path,
                            host: &RequestHost::new("shop.example:80"),
                            headers: &headers,
                        }),
                        ..facts
                    };
                    let _ = authorizer.decide(&facts);
                    let _ = authorizer.decide_connection(&facts);
                    authorizer.dry_run(&facts, |_, _| told += 1);
                }
            }
        }
    };
    assert_eq!(allocations(work), 0);
    assert!(
        (1..12).contains(&allowed),
        "some are allowed and some are not: {allowed}"
    );
    assert!(told > 0, "those in dry run were looked at");
}
