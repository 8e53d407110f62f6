//! The task against a catalog that changes and servers that fall ill and recover.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::task::JoinHandle;

use super::servers::{self, Loopback, Says};
use crate::{
    api::parse_bytes,
    catalog::{Catalog, SourceId},
    health::{Board, Key, run},
    model::ResourceName,
    resilience::{EndpointState, Health},
    telemetry::{Telemetry, TelemetryOptions},
};

const ENDPOINT: &str = "10.1.0.9:5432";

struct Rig {
    catalog: Arc<Catalog>,
    source: SourceId,
    board: Arc<Board>,
    telemetry: Telemetry,
    task: JoinHandle<std::convert::Infallible>,
    says: Says,
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
const ILL: &str = "HTTP/1.1 503 Unavailable\r\ncontent-length: 0\r\n\r\n";

const CHECK: &str = r#"
apiVersion: mesh.covet.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: db, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: db}]
  healthCheck: {http: {}, interval: 20ms, timeout: 20ms}
---
"#;

impl Rig {
    async fn new() -> Self {
        let (server, says, _) = servers::http(OK).await;
        let dial = Loopback::default();
        let endpoint: SocketAddr = ENDPOINT.parse().unwrap();
        dial.addresses.lock().unwrap().insert(endpoint, server);
        let catalog = Catalog::new("n1");
        let source = catalog.register();
        let board = Board::new();
        let telemetry = Telemetry::new(TelemetryOptions::default());
        let task = tokio::spawn(run(
            Arc::clone(&catalog),
            Arc::new(dial),
            Arc::new(telemetry.clone()),
            Arc::clone(&board),
        ));
        Self {
            catalog,
            source,
            board,
            telemetry,
            task,
            says,
        }
    }

    /// A service with a virtual address of each family over one endpoint.
    fn apply(&self, policy: &str, endpoints: &str) {
        let text = format!(
            r#"{policy}
apiVersion: v1
kind: Service
metadata: {{name: db, namespace: shop}}
spec:
  clusterIPs: [10.96.0.2, "fd00:96::2"]
  ports: [{{port: 5432}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: db-1, namespace: shop, labels: {{kubernetes.io/service-name: db}}}}
addressType: IPv4
endpoints: [{endpoints}]
ports: [{{port: 5432}}]
"#
        );
        let (config, _) = parse_bytes("f", text.as_bytes()).unwrap();
        self.catalog.apply(self.source, config);
    }

    /// Of both virtual addresses.
    fn states(&self) -> Vec<Arc<EndpointState>> {
        let snapshot = self.catalog.snapshot();
        let service = snapshot.service(&ResourceName::new("shop", "db")).unwrap();
        snapshot
            .upstreams_of(service)
            .map(|(_, _, upstream)| {
                let endpoint = upstream
                    .endpoints
                    .iter()
                    .find(|e| e.endpoint.address.to_string() == ENDPOINT)
                    .unwrap();
                Arc::clone(&endpoint.state)
            })
            .collect()
    }

    async fn becomes(&self, health: Health) {
        let states = self.states();
        assert_eq!(states.len(), 2);
        let seen = async {
            while states.iter().any(|state| state.health() != health) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(20), seen)
            .await
            .is_err()
        {
            let now: Vec<_> = states.iter().map(|state| state.health()).collect();
            panic!(
                "{now:?}, not {health:?}; last check {:?}",
                self.board.report(&key())
            );
        }
    }
}

fn key() -> Key {
    Key {
        service: ResourceName::new("shop", "db"),
        port: 5432,
        endpoint: ENDPOINT.parse().unwrap(),
    }
}

#[tokio::test]
async fn endpoints_fall_ill_and_recover() {
    let rig = Rig::new().await;
    rig.apply(CHECK, "{addresses: [10.1.0.9]}");
    rig.becomes(Health::Healthy).await;
    ILL.clone_into(&mut rig.says.lock().unwrap());
    rig.becomes(Health::Unhealthy).await;
    let report = rig.board.report(&key()).unwrap();
    assert_eq!(report.failed.unwrap().to_string(), "status 503");
    OK.clone_into(&mut rig.says.lock().unwrap());
    rig.becomes(Health::Healthy).await;
    let counts = rig.board.counts();
    assert!(counts.bad >= 3 && counts.good >= 3, "{counts:?}");
    let metrics = rig.telemetry.exposition();
    for line in [
        "mesh_health_check_transitions_total{destination_service_name=\"db\",destination_service_namespace=\"shop\",to=\"healthy\"} 2",
        "mesh_health_check_transitions_total{destination_service_name=\"db\",destination_service_namespace=\"shop\",to=\"unhealthy\"} 1",
    ] {
        assert!(metrics.contains(line), "{metrics}");
    }
    rig.task.abort();
}

#[tokio::test]
async fn the_verdict_goes_with_the_policy_and_with_the_endpoint() {
    let rig = Rig::new().await;
    ILL.clone_into(&mut rig.says.lock().unwrap());
    rig.apply(CHECK, "{addresses: [10.1.0.9]}");
    rig.becomes(Health::Unhealthy).await;
    let unhealthy = rig.board.unhealthy();
    assert_eq!(unhealthy, [(key().service, 1)].into());
    // A change beside it makes the upstreams anew, and the verdict stays.
    rig.apply(CHECK, "{addresses: [10.1.0.9]}, {addresses: [10.1.0.8]}");
    rig.becomes(Health::Unhealthy).await;
    rig.apply("", "{addresses: [10.1.0.9]}");
    rig.becomes(Health::Unknown).await;
    assert_eq!(rig.board.report(&key()), None);
    rig.apply(CHECK, "{addresses: [10.1.0.9]}");
    rig.becomes(Health::Unhealthy).await;
    rig.task.abort();
}
