//! What a choice costs, by strategy and number of endpoints.
//!
//! `cargo bench -p mesh-agent --bench balance [-- FILTER]` prints the table of docs/benchmarks.md: nanoseconds for the
//! first candidate, the best of several rounds, while all endpoints are usable, while every tenth is ejected, and with a
//! preference for the client's zone. One thread; endpoints cost a memory access to ask.

use std::{hint::black_box, net::SocketAddr, time::Instant};

use mesh_agent::{
    balance::{Balancer, Pick, Place, Target, Usability, endpoint_key, hash_key},
    model::{LoadBalancer, Locality, Prefer, Strategy},
};
use rand::{SeedableRng, rngs::StdRng};

/// Choices in a row, and how often.
const CHOICES: u32 = 2_000;
const ROUNDS: u32 = 30;

const STRATEGIES: [(&str, Strategy); 6] = [
    ("round_robin", Strategy::RoundRobin),
    ("weighted_round_robin", Strategy::WeightedRoundRobin),
    ("least_connections", Strategy::LeastConnections),
    ("random", Strategy::Random),
    ("consistent_hash", Strategy::ConsistentHash),
    ("peak_ewma", Strategy::PeakEwma),
];

struct Host {
    key: u64,
    weight: u32,
    in_flight: u32,
    latency: f64,
    zone: &'static str,
    usable: Usability,
}

impl Target for Host {
    fn weight(&self) -> u32 {
        self.weight
    }
    fn in_flight(&self) -> u32 {
        self.in_flight
    }
    fn key(&self) -> u64 {
        self.key
    }
    fn latency_load(&self, _now: Instant) -> Option<f64> {
        Some(self.latency)
    }
    fn place(&self) -> Place<'_> {
        Place {
            node: None,
            zone: Some(self.zone),
        }
    }
    fn usable(&self, _now: Instant) -> Usability {
        self.usable
    }
}

fn hosts(count: u32, ejected: bool) -> Vec<Host> {
    (0..count)
        .map(|i| Host {
            key: endpoint_key(SocketAddr::from(((0x0a00_0000 + i).to_be_bytes(), 8080))),
            weight: 1 + i % 3,
            in_flight: i % 7,
            latency: f64::from(1 + i % 11) / 1e3,
            zone: ["a", "b", "c"][i as usize % 3],
            usable: if ejected && i % 10 == 0 {
                Usability::Ejected
            } else {
                Usability::Ready
            },
        })
        .collect()
}

/// Nanoseconds for one choice, and milliseconds for the first of all, which makes what the strategy remembers.
fn measure(strategy: Strategy, prefer: Prefer, hosts: &[Host]) -> (f64, f64) {
    let policy = LoadBalancer {
        strategy,
        locality: Locality {
            prefer,
            threshold: 70,
        },
        ..LoadBalancer::default()
    };
    let balancer = Balancer::new(&policy, hosts, 1);
    let mut rng = StdRng::seed_from_u64(1);
    let mut choose = |key: u32| {
        let pick = Pick {
            hash: Some(hash_key(&key.to_be_bytes())),
            client: Place {
                node: None,
                zone: Some("a"),
            },
            ..Pick::at(Instant::now())
        };
        black_box(balancer.candidates(hosts, pick, &mut rng).next());
    };
    let started = Instant::now();
    choose(0);
    let first = started.elapsed().as_secs_f64() * 1e3;
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        let started = Instant::now();
        (0..CHOICES).for_each(&mut choose);
        best = best.min(started.elapsed().as_nanos() as f64 / f64::from(CHOICES));
    }
    (best, first)
}

fn main() {
    let filter = std::env::args()
        .skip(1)
        .find(|arg| !arg.starts_with('-'))
        .unwrap_or_default();
    println!(
        "| strategy | endpoints | all usable, ns | a tenth ejected, ns | zone first, ns | first choice, ms |"
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: |");
    for (name, strategy) in STRATEGIES.iter().filter(|(name, _)| name.contains(&filter)) {
        for count in [10, 1_000, 10_000] {
            let (well, ill) = (hosts(count, false), hosts(count, true));
            let (all, first) = measure(*strategy, Prefer::None, &well);
            let (ejected, _) = measure(*strategy, Prefer::None, &ill);
            let (near, _) = measure(*strategy, Prefer::Zone, &well);
            println!("| {name} | {count} | {all:.0} | {ejected:.0} | {near:.0} | {first:.2} |");
        }
    }
}
