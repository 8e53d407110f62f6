//! Endpoints of a service: order, deadlines, breaker, limits. Below the catalog, which knows no loopback addresses.

use mesh_common::Direction;

use super::*;
use crate::{
    balance::Balancer,
    catalog::{Upstream, UpstreamEndpoint},
    model::{AppProtocol, CircuitBreaker, Endpoint, Limits, Service, ServicePort, TrafficPolicy},
    proxy::{
        accept::meta,
        connect::{Client, Connected, Link, to_service},
        served::{Report, Served},
        socket::Leg,
    },
    resilience::{BreakerState, Ejections, EndpointState, Health, ServiceState},
};

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

fn upstream(endpoints: &[SocketAddr], traffic: TrafficPolicy) -> Upstream {
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|address| UpstreamEndpoint {
            endpoint: Endpoint {
                address: *address,
                workload: None,
                weight: 1,
                zone: None,
                node: None,
            },
            state: EndpointState::settled(),
        })
        .collect();
    let port = Arc::new(ServicePort {
        name: None,
        port: 80,
        app_protocol: AppProtocol::Undeclared,
        endpoints: vec![],
    });
    Upstream {
        service: Arc::new(Service {
            name: ResourceName::new("test", "service"),
            vips: vec![],
            ports: vec![Arc::clone(&port)],
            client_ip_affinity: false,
            traffic: Arc::new(traffic),
        }),
        port,
        balancer: Balancer::new(&Default::default(), &endpoints, 0),
        state: ServiceState::new(),
        ejections: Ejections::new(endpoints.len() as u32),
        endpoints,
    }
}

/// One connection to the service, and what was reported as its upstream.
async fn connect(rig: &Rig, upstream: &Upstream) -> (Result<Connected, Reason>, String) {
    let served = Arc::new(Served::new(rig.pod.clone()));
    let shared = &rig.proxy.shared;
    let dialled = SocketAddr::from((CLIENT, 80));
    let meta = meta(
        shared,
        &served,
        Direction::Outbound,
        dialled,
        dialled,
        None,
        0,
    );
    let report = Report::new(rig.telemetry.open(meta), served);
    let client = Client {
        address: dialled,
        chosen: false,
    };
    let result = to_service(shared, rig.pod.as_ref(), upstream, client, &report).await;
    let reason = result.as_ref().err().copied().unwrap_or(Reason::Completed);
    report.finish(reason);
    let tried = rig.telemetry.closed_connections()[0].upstream.clone();
    (result, tried.unwrap_or_default())
}

fn leg(connected: &Connected) -> &Leg {
    match &connected.link {
        Link::Plain(leg) => leg,
        Link::Tunnel(_) => panic!("nothing here takes tunnels"),
    }
}

fn failed(result: &(Result<Connected, Reason>, String)) -> Option<Reason> {
    result.0.as_ref().err().copied()
}

#[tokio::test]
async fn the_next_candidate_is_used() {
    let rig = Rig::new();
    let server = listen().await;
    let address = server.local_addr().unwrap();
    let upstream = upstream(&[refusing(), address, refusing()], TrafficPolicy::default());
    for _ in 0..6 {
        let (connected, tried) = connect(&rig, &upstream).await;
        assert_eq!(leg(&connected.unwrap()).peer_addr().unwrap(), address);
        assert_eq!(tried, address.to_string());
    }
    assert!(upstream.endpoints[0].state.last_failure().is_some());
}

#[tokio::test]
async fn every_candidate_is_tried_once() {
    let rig = Rig::new();
    let upstream = upstream(
        &[refusing(), refusing(), refusing()],
        TrafficPolicy::default(),
    );
    let result = connect(&rig, &upstream).await;
    assert_eq!(failed(&result), Some(Reason::UpstreamRefused));
    assert!(
        upstream
            .endpoints
            .iter()
            .all(|e| e.state.last_failure().is_some())
    );
    assert!(upstream.endpoints.iter().all(|e| e.state.in_flight() == 0));
}

#[tokio::test]
async fn no_endpoints() {
    let rig = Rig::new();
    let result = connect(&rig, &upstream(&[], TrafficPolicy::default())).await;
    assert_eq!(failed(&result), Some(Reason::NoEndpoints));
}

/// Each connection takes one turn, or two endpoints would see only one of them first.
#[tokio::test]
async fn round_robin_takes_turns() {
    let rig = Rig::new();
    let (a, b) = (listen().await, listen().await);
    let addresses = [a.local_addr().unwrap(), b.local_addr().unwrap()];
    let upstream = upstream(&addresses, TrafficPolicy::default());
    let mut tried = Vec::new();
    for _ in 0..4 {
        tried.push(connect(&rig, &upstream).await.1);
    }
    assert_ne!(tried[0], tried[1]);
    assert_eq!(tried[..2], tried[2..]);
}

/// A candidate that does not answer takes its share of the deadline, the last one all that is left.
#[tokio::test]
async fn deadlines() {
    let rig = Rig::with(|o| {
        o.attempt_timeout = Duration::from_millis(200);
        o.connect_timeout = Duration::from_millis(900);
    });
    let ((first, _a), (second, _b)) = (silent(), silent());
    let server = listen().await;
    // With somebody left to try: soon.
    let one_answers = upstream(
        &[first, server.local_addr().unwrap()],
        TrafficPolicy::default(),
    );
    for _ in 0..2 {
        let begin = Instant::now();
        assert!(connect(&rig, &one_answers).await.0.is_ok());
        assert!(begin.elapsed() < Duration::from_millis(800));
    }
    let none_answers = upstream(&[first, second], TrafficPolicy::default());
    let begin = Instant::now();
    let result = connect(&rig, &none_answers).await;
    assert_eq!(failed(&result), Some(Reason::UpstreamTimeout));
    assert!(begin.elapsed() >= Duration::from_millis(890));
    assert!(begin.elapsed() < Duration::from_secs(5));
    // The policy's own deadline goes before.
    let policy = TrafficPolicy {
        connect_timeout: Some(Duration::from_millis(100)),
        ..TrafficPolicy::default()
    };
    let begin = Instant::now();
    let result = connect(&rig, &self::upstream(&[first], policy)).await;
    assert_eq!(failed(&result), Some(Reason::UpstreamTimeout));
    assert!(begin.elapsed() < Duration::from_millis(800));
}

fn breaker(max_ejection_percent: u32, recovery: Duration) -> TrafficPolicy {
    TrafficPolicy {
        breaker: Some(CircuitBreaker {
            failure_threshold: 2,
            failure_ratio: None,
            window: Duration::from_secs(10),
            min_volume: 10,
            recovery_timeout: recovery,
            max_recovery_timeout: recovery,
            success_threshold: 1,
            max_ejection_percent,
        }),
        ..TrafficPolicy::default()
    }
}

#[tokio::test]
async fn the_breaker_opens_and_skips() {
    let rig = Rig::new();
    let server = listen().await;
    let upstream = upstream(
        &[refusing(), server.local_addr().unwrap()],
        breaker(50, SOON),
    );
    let bad = &upstream.endpoints[0].state;
    let open = || matches!(bad.breaker_state(Instant::now()), BreakerState::Open { .. });
    for i in 0.. {
        assert!(
            i < 20,
            "never opens: {} failures",
            bad.consecutive_failures()
        );
        assert!(connect(&rig, &upstream).await.0.is_ok());
        if open() {
            break;
        }
    }
    let last = bad.last_failure().unwrap().at;
    for _ in 0..4 {
        assert!(connect(&rig, &upstream).await.0.is_ok());
    }
    assert_eq!(bad.last_failure().unwrap().at, last, "tried while open");
}

#[tokio::test]
async fn all_breakers_open_refuse_at_once_and_recover() {
    let rig = Rig::new();
    let address = refusing();
    let upstream = upstream(&[address], breaker(100, Duration::from_millis(300)));
    for _ in 0..2 {
        assert_eq!(
            failed(&connect(&rig, &upstream).await),
            Some(Reason::UpstreamRefused)
        );
    }
    assert_eq!(
        failed(&connect(&rig, &upstream).await),
        Some(Reason::BreakerOpen)
    );
    // The endpoint comes back; a probe finds out.
    let _server = TcpListener::bind(address).await.unwrap();
    let deadline = Instant::now() + SOON;
    while connect(&rig, &upstream).await.0.is_err() {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(
        upstream.endpoints[0].state.breaker_state(Instant::now()),
        BreakerState::Closed
    );
}

fn limits(service: Option<u32>, endpoint: Option<u32>) -> TrafficPolicy {
    TrafficPolicy {
        limits: Limits {
            max_connections: service,
            max_connections_per_endpoint: endpoint,
            ..Limits::default()
        },
        ..TrafficPolicy::default()
    }
}

#[tokio::test]
async fn the_limit_of_the_service() {
    let rig = Rig::new();
    let server = listen().await;
    let upstream = upstream(&[server.local_addr().unwrap()], limits(Some(2), None));
    let first = connect(&rig, &upstream).await;
    let second = connect(&rig, &upstream).await;
    assert!(first.0.is_ok() && second.0.is_ok());
    assert_eq!(
        failed(&connect(&rig, &upstream).await),
        Some(Reason::ConnectionLimit)
    );
    drop(first);
    assert!(connect(&rig, &upstream).await.0.is_ok());
    drop(second);
    assert_eq!(upstream.state.connections.in_use(), 0);
}

#[tokio::test]
async fn the_limit_of_an_endpoint_leads_to_the_next() {
    let rig = Rig::new();
    let (a, b) = (listen().await, listen().await);
    let addresses = [a.local_addr().unwrap(), b.local_addr().unwrap()];
    let upstream = upstream(&addresses, limits(None, Some(1)));
    let first = connect(&rig, &upstream).await;
    let second = connect(&rig, &upstream).await;
    assert!(first.0.is_ok() && second.0.is_ok());
    assert_ne!(first.1, second.1);
    assert_eq!(
        failed(&connect(&rig, &upstream).await),
        Some(Reason::ConnectionLimit)
    );
    drop(first);
    assert!(connect(&rig, &upstream).await.0.is_ok());
}

/// Our own lack of descriptors says nothing about the endpoints.
#[tokio::test]
async fn no_descriptors_does_not_blame_the_endpoint() {
    let rig = Rig::new();
    *rig.pod.socket_error.lock().unwrap() = Some(libc::EMFILE);
    let upstream = upstream(
        &[refusing(), refusing()],
        breaker(100, Duration::from_millis(300)),
    );
    for _ in 0..4 {
        assert_eq!(
            failed(&connect(&rig, &upstream).await),
            Some(Reason::NoDescriptors)
        );
    }
    assert!(
        upstream
            .endpoints
            .iter()
            .all(|e| e.state.last_failure().is_none())
    );
    assert_eq!(upstream.state.connections.in_use(), 0);
}

/// Who does not pass its active checks gets no connection, unless fewer than half do: then all do, and it is said.
#[tokio::test]
async fn few_healthy_endpoints_are_not_left_alone() {
    let rig = Rig::new();
    let servers = [
        listen().await,
        listen().await,
        listen().await,
        listen().await,
    ];
    let addresses = servers.each_ref().map(|s| s.local_addr().unwrap());
    let upstream = upstream(&addresses, TrafficPolicy::default());
    let tried = async || {
        let mut tried = std::collections::BTreeSet::new();
        for _ in 0..8 {
            let (connected, to) = connect(&rig, &upstream).await;
            assert!(connected.is_ok());
            tried.insert(to);
        }
        tried
    };
    for index in 0..2 {
        upstream.endpoints[index]
            .state
            .set_health(Health::Unhealthy);
    }
    let healthy = addresses[2..].iter().map(ToString::to_string).collect();
    assert_eq!(tried().await, healthy);
    assert!(!rig.telemetry.exposition().contains("mesh_panic_mode{"));
    upstream.endpoints[2].state.set_health(Health::Unhealthy);
    assert_eq!(tried().await.len(), 4);
    let panic = |on| {
        format!(
            "mesh_panic_mode{{destination_service_name=\"service\",destination_service_namespace=\"test\"}} {on}"
        )
    };
    let metrics = rig.telemetry.exposition();
    assert!(metrics.contains(&panic(1)), "{metrics}");
    for endpoint in &upstream.endpoints {
        endpoint.state.set_health(Health::Healthy);
    }
    assert_eq!(tried().await.len(), 4);
    assert!(rig.telemetry.exposition().contains(&panic(0)));
}
