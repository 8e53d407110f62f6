//! The command line: tables against golden files, arguments, finding the agent.

mod args;
mod golden;
mod identity;
mod reach;
mod routes;
mod table;

use crate::admin::api::{
    BundleFile, Condition, Connection, CounterValue, Endpoint, EndpointDetail, KernelState,
    MapState, PortEndpoints, Service, ServicePort, SourceState, Status, TappedRequest, Workload,
};

/// 2026-08-01T12:00:00Z
const NOW: u64 = 1_785_585_600_000;

fn tapped() -> Vec<TappedRequest> {
    let good = TappedRequest {
        time_unix_ms: NOW + 1_234,
        direction: "outbound".into(),
        protocol: "http".into(),
        http_version: "1.1".into(),
        method: "GET".into(),
        authority: Some("web.shop".into()),
        path: "/cart?id=*".into(),
        status: Some(200),
        duration_ms: 1.834,
        reason: "completed".into(),
        response_flags: "-".into(),
        source: "10.0.0.1:40000".into(),
        source_workload: Some("shop/client".into()),
        service: Some("shop/web".into()),
        endpoint: Some("10.0.0.2:8080".into()),
        destination_workload: Some("shop/web-1".into()),
        route: Some("shop/web-routes/0".into()),
        attempts: 1,
        security: "mutual_tls".into(),
        request_bytes: 0,
        response_bytes: 1_536,
        request_id: Some("7c4a".into()),
        ..TappedRequest::default()
    };
    let failed = TappedRequest {
        status: Some(503),
        reason: "retries_exhausted".into(),
        attempts: 3,
        duration_ms: 15_200.0,
        path: "/a\u{1b}[2J\r".into(),
        route: None,
        ..good.clone()
    };
    let grpc = TappedRequest {
        direction: "inbound".into(),
        protocol: "grpc".into(),
        http_version: "2".into(),
        method: "POST".into(),
        path: "/shop.Cart/Get".into(),
        grpc_status: Some(14),
        service: None,
        source_workload: None,
        ..good.clone()
    };
    let gone = TappedRequest {
        status: None,
        reason: "client_reset".into(),
        endpoint: None,
        destination_workload: None,
        security: "none".into(),
        ..good.clone()
    };
    vec![good, failed, grpc, gone]
}

fn connections() -> Vec<Connection> {
    let live = Connection {
        workload: Some("shop/client".into()),
        direction: "outbound".into(),
        path: "proxied".into(),
        protocol: "tcp".into(),
        source: "10.0.0.1:40000".into(),
        source_workload: Some("shop/client".into()),
        original_dst: "10.96.0.1:80".into(),
        service: Some("shop/web".into()),
        upstream: Some("10.0.0.2:8080".into()),
        upstream_workload: Some("shop/web-1".into()),
        state: "established".into(),
        security: "mutual_tls".into(),
        source_principal: Some("spiffe://cluster.local/ns/shop/sa/client".into()),
        destination_principal: Some("spiffe://cluster.local/ns/shop/sa/web".into()),
        policy: Some("shop/web-clients".into()),
        duration_ms: 12_000,
        bytes_sent: 1_536,
        bytes_received: 3 << 20,
        rtt_us: Some(120),
        retransmits: Some(0),
        app_cookie: 4242,
        ..Connection::default()
    };
    let served = Connection {
        workload: Some("shop/web-1".into()),
        direction: "inbound".into(),
        source: "[fd00::9]:51000".into(),
        source_workload: None,
        original_dst: "[fd00::2]:8080".into(),
        service: None,
        upstream: Some("[::1]:8080".into()),
        state: "close_wait".into(),
        duration_ms: 90,
        rtt_us: None,
        app_cookie: 0,
        ..live.clone()
    };
    let old = Connection {
        path: "unmeshed".into(),
        security: "none".into(),
        source_principal: None,
        destination_principal: None,
        policy: None,
        service: None,
        original_dst: "203.0.113.7:443".into(),
        upstream: Some("203.0.113.7:443".into()),
        upstream_workload: None,
        duration_ms: 200_000_000,
        ..live.clone()
    };
    vec![live, served, old]
}

fn closed() -> Vec<Connection> {
    let mut rows = connections();
    for (row, (reason, flags)) in rows.iter_mut().zip([
        ("completed", "-"),
        ("client_reset", "DC"),
        ("upstream_timeout", "UF"),
    ]) {
        row.state = "closed".into();
        row.reason = Some(reason.into());
        row.response_flags = Some(flags.into());
    }
    rows
}

fn workloads() -> Vec<Workload> {
    let enrolled = Workload {
        name: "shop/web-1".into(),
        node: Some("n1".into()),
        addresses: vec!["10.0.0.2".into(), "fd00::2".into()],
        state: "enrolled".into(),
        netns: Some("/run/netns/web-1".into()),
        netns_cookie: Some(7),
        listen_ports: vec![80, 8080],
        fail_policy: "closed".into(),
        outbound: "allow".into(),
        service_account: "web".into(),
        identity: "spiffe://cluster.local/ns/shop/sa/web".into(),
        protocol: "HBONE".into(),
        mtls: "strict, 9090: permissive".into(),
        weight: 1,
        connections: 3,
        ..Workload::default()
    };
    let not = Workload {
        name: "quiet/batch".into(),
        state: "not enrolled".into(),
        reason: Some("namespace not labelled mesh.covet.dev/enabled=true".into()),
        netns: None,
        netns_cookie: None,
        listen_ports: Vec::new(),
        connections: 0,
        ..enrolled.clone()
    };
    vec![not, enrolled]
}

fn services() -> Vec<Service> {
    let endpoint = |n: u8, breaker: &str| Endpoint {
        address: format!("10.0.0.{n}:8080"),
        workload: Some(format!("shop/web-{n}")),
        weight: 1,
        zone: None,
        in_flight: 2,
        breaker: breaker.into(),
        last_error: (breaker == "open").then(|| "connection refused".into()),
    };
    let web = ServicePort {
        name: Some("http".into()),
        port: 80,
        protocol: "tcp".into(),
        strategy: "round_robin".into(),
        max_connections: Some(100),
        connections: 4,
        endpoints: vec![endpoint(1, "closed"), endpoint(2, "open")],
    };
    let none = ServicePort {
        name: None,
        port: 5432,
        max_connections: None,
        connections: 0,
        endpoints: Vec::new(),
        ..web.clone()
    };
    vec![
        Service {
            name: "shop/db".into(),
            addresses: Vec::new(),
            ports: vec![none],
        },
        Service {
            name: "shop/web".into(),
            addresses: vec!["10.96.0.1".into(), "fd00:96::1".into()],
            ports: vec![web],
        },
    ]
}

fn endpoints() -> Vec<PortEndpoints> {
    let well = EndpointDetail {
        address: "10.0.0.1:8080".into(),
        workload: Some("shop/web-1".into()),
        node: Some("n1".into()),
        zone: Some("z1".into()),
        ready: true,
        weight: 3,
        slow_start: 1.0,
        effective_weight: 3.0,
        connections: 2,
        requests: 17,
        latency_us: Some(1_240),
        breaker: "closed".into(),
        health: "healthy".into(),
        last_check_unix_ms: Some(NOW - 4_000),
        ..EndpointDetail::default()
    };
    let open = EndpointDetail {
        address: "10.0.0.2:8080".into(),
        workload: Some("shop/web-2".into()),
        ready: false,
        connections: 0,
        requests: 0,
        latency_us: Some(2_500_000),
        breaker: "open".into(),
        open_until_unix_ms: Some(NOW + 12_000),
        consecutive_failures: 5,
        last_error: Some("connection refused".into()),
        last_error_unix_ms: Some(NOW - 8_000),
        ..well.clone()
    };
    let ill = EndpointDetail {
        address: "[fd00::3]:8080".into(),
        workload: None,
        node: None,
        zone: None,
        ready: false,
        weight: 1,
        slow_start: 0.4,
        effective_weight: 0.4,
        latency_us: None,
        breaker: "none".into(),
        health: "unhealthy".into(),
        check_error: Some("status 503".into()),
        ..well.clone()
    };
    let web = PortEndpoints {
        service: "shop/web".into(),
        port: 80,
        name: Some("http".into()),
        protocol: "http".into(),
        strategy: "peak_ewma".into(),
        connections: 2,
        max_connections: Some(100),
        requests: 17,
        max_requests: None,
        endpoints: vec![well, open, ill],
    };
    let none = PortEndpoints {
        service: "test/web".into(),
        endpoints: Vec::new(),
        ..web.clone()
    };
    vec![web, none]
}

fn status() -> Status {
    Status {
        node: "n1".into(),
        version: "0.1.0".into(),
        pid: 321,
        uptime_seconds: 3_700,
        ready: false,
        conditions: vec![
            Condition {
                name: "kernel programs attached".into(),
                ok: true,
                detail: "6 programs".into(),
            },
            Condition {
                name: "pods enrolled".into(),
                ok: false,
                detail: "shop/web-2: enrolling".into(),
            },
        ],
        sources: vec![SourceState {
            name: "file".into(),
            resources: 12,
            errors: vec!["/etc/mesh/a.yaml:3:1: spec.port: expected 1..=65535, got 70000".into()],
            warnings: vec!["service shop/db selects nothing".into()],
            ..SourceState::default()
        }],
        kernel: KernelState {
            bpffs: "/sys/fs/bpf/mesh/n1/v1".into(),
            attached: true,
            programs: vec!["connect4".into(), "sockets".into()],
            maps: vec![
                MapState {
                    name: "conns".into(),
                    entries: 60_000,
                    max_entries: 65_536,
                },
                MapState {
                    name: "workloads".into(),
                    entries: 2,
                    max_entries: 1_024,
                },
            ],
            counters: vec![CounterValue {
                name: "conns_full".into(),
                value: 3,
            }],
        },
        identity: identity::certificates().summary(),
        unmeshed_forbidden: 2,
        ..Status::default()
    }
}

fn bundle() -> Vec<BundleFile> {
    vec![BundleFile {
        name: "status.json".into(),
        content: "{}\n".into(),
    }]
}
