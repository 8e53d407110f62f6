//! Bodies of any length run in bounded memory: a gibibyte up, a gibibyte both ways at once, events without an end.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use mesh_tests::{
    Mesh, Pod, eventually,
    http::{Ask, Connection, HttpServer, Speaks, client::grpc_message, pattern},
    runner::Shared,
    tests,
};

use crate::http_common::{ask, service, vip};

static BENCH: Shared<Bench> = Shared::new();

tests! {
    a_gibibyte_up(alone, deadline = 240),
    a_gibibyte_both_ways_at_once(alone, deadline = 240),
    events_without_an_end(alone, deadline = 600),
}

pub(crate) fn teardown() {
    BENCH.clear();
}

const PORT: u16 = 80;
const PIECE: usize = 256 << 10;
const PIECES: usize = 4096;
/// What an agent may hold of bodies on their way: windows and buffers of a connection, none of which grows with the body.
const HELD: u64 = 48 << 20;
/// How long the events come for, in seconds.
const SOAK: &str = "MESH_TESTS_SOAK";

/// `client` and `near` share a node, `far` is on another.
struct Bench {
    _servers: Vec<HttpServer>,
    mesh: Mesh,
}

fn bench() -> Arc<Bench> {
    BENCH.get(|| {
        let mut plan = Mesh::plan(2).pods(0, &["client", "near"]).pod(1, "far");
        for (n, app) in [(1, "near"), (2, "far")] {
            let text = service("shop", app, n, app, &[(PORT, 8080, "http")]);
            plan = plan.file(&format!("service-{app}.yaml"), &text);
        }
        let mesh = plan.start();
        let servers = ["near", "far"]
            .map(|name| HttpServer::start(mesh.pod(name), mesh.pod(name).v4(8080), name));
        Bench {
            _servers: servers.into(),
            mesh,
        }
    })
}

impl Bench {
    fn client(&self) -> &Arc<Pod> {
        self.mesh.pod("client")
    }

    fn memory(&self) -> [u64; 2] {
        [0, 1].map(|node| self.mesh.agent(node).memory())
    }

    /// Does the work, which must not make an agent hold more than [`HELD`].
    fn bounded(&self, what: &str, work: impl FnOnce()) {
        let before = self.memory();
        let far = self.mesh.agent(1);
        let mut most = [0; 2];
        most[1] = far.peak_memory_of(|| {
            most[0] = self.mesh.agent(0).peak_memory_of(work);
        });
        for node in [0, 1] {
            let grown = most[node].saturating_sub(before[node]);
            assert!(
                grown < HELD,
                "{what}: the agent of node {node} grew by {grown} bytes"
            );
        }
    }
}

/// The same piece again and again: shared, so that the client holds it once.
fn gibibyte() -> Vec<Bytes> {
    vec![Bytes::from(pattern(PIECE)); PIECES]
}

fn a_gibibyte_up() {
    let bench = bench();
    // Warm: what it takes once is no part of it.
    let small = Ask::post("/up", vec![1; 4 << 20]);
    for (place, to) in [("near", vip(1, PORT)), ("far", vip(2, PORT))] {
        for speaks in [Speaks::Http1, Speaks::Http2] {
            ask(bench.client(), to, speaks, &small);
            let request = Ask::new("POST", "/up").chunks(gibibyte());
            bench.bounded(&format!("{place} {speaks:?}"), || {
                let request = request.within(Duration::from_secs(100));
                let said = ask(bench.client(), to, speaks, &request).json();
                assert_eq!(said["length"], PIECE * PIECES, "{place} {speaks:?}");
            });
        }
    }
}

/// A gRPC stream whose server gives back what it gets, as it comes.
fn a_gibibyte_both_ways_at_once() {
    let bench = bench();
    let piece = pattern(PIECE);
    let (message, small) = (grpc_message(&piece), [&piece[..]; 8]);
    for (place, to) in [("near", vip(1, PORT)), ("far", vip(2, PORT))] {
        ask(
            bench.client(),
            to,
            Speaks::Http2,
            &Ask::grpc("/a/b", &small),
        );
        let request = Ask::grpc("/a/b", &[]).chunks(vec![message.clone(); PIECES]);
        bench.bounded(place, || {
            let mut connection = Connection::open(bench.client(), to, Speaks::Http2).unwrap();
            let mut opened = connection.start(&request).unwrap();
            let mut at = 0;
            while let Some(piece) = connection.next(&mut opened).unwrap() {
                for part in piece.chunks(message.len()) {
                    // Pieces need not begin where messages do.
                    let from = at % message.len();
                    let head = part.len().min(message.len() - from);
                    assert!(
                        part[..head] == message[from..from + head],
                        "{place} at {at}"
                    );
                    assert!(
                        part[head..] == message[..part.len() - head],
                        "{place} at {at}"
                    );
                    at += part.len();
                }
            }
            assert_eq!(at, message.len() * PIECES, "{place}");
        });
    }
}

/// Twenty clients take events for as long as [`SOAK`] says, some of them slowly. The memory of both agents, looked at all
/// the time, is no more at the end than it was when all had been running for a while.
fn events_without_an_end() {
    let bench = bench();
    let soak = std::env::var(SOAK).map_or(20, |secs| secs.parse().expect("seconds"));
    let soak = Duration::from_secs(soak);
    let over = AtomicBool::new(false);
    let events: Vec<AtomicU64> = (0..20).map(|_| AtomicU64::new(0)).collect();
    let mut memory: Vec<[u64; 2]> = Vec::new();
    thread::scope(|scope| {
        for (n, count) in events.iter().enumerate() {
            let to = vip(1 + n as u8 % 2, PORT);
            let speaks = [Speaks::Http1, Speaks::Http2][n / 2 % 2];
            let (client, over) = (bench.client(), &over);
            scope.spawn(move || take_events(client, to, speaks, n >= 16, over, count));
        }
        let began = Instant::now();
        eventually(
            "all have events, for a while",
            soak + Duration::from_secs(60),
            || {
                memory.push(bench.memory());
                began.elapsed() > soak && events.iter().all(|n| n.load(Ordering::Relaxed) > 10)
            },
        );
        over.store(true, Ordering::Relaxed);
    });
    let (early, late) = memory.split_at(memory.len() / 2);
    for node in [0, 1] {
        let most = |samples: &[[u64; 2]]| samples.iter().map(|sample| sample[node]).max().unwrap();
        // What had not been touched before the first half ended may be after it; a leak is more.
        let (early, late) = (most(early), most(&late[late.len() / 2..]));
        assert!(
            late < early + (2 << 20),
            "node {node}: {early}, then {late} bytes"
        );
    }
    let all: u64 = events.iter().map(|n| n.load(Ordering::Relaxed)).sum();
    let [first, last] = [&memory[memory.len() / 4], memory.last().unwrap()];
    println!(
        "    {all} events in {soak:?}; resident at a quarter {first:?}, at the end {last:?} bytes"
    );
}

fn take_events(
    client: &Pod,
    to: SocketAddr,
    speaks: Speaks,
    slowly: bool,
    over: &AtomicBool,
    count: &AtomicU64,
) {
    let mut connection = Connection::open(client, to, speaks).unwrap();
    let mut opened = connection.start(&Ask::get("/events/1000000")).unwrap();
    while !over.load(Ordering::Relaxed) {
        connection.next(&mut opened).unwrap().expect("no end");
        count.fetch_add(1, Ordering::Relaxed);
        if slowly {
            thread::sleep(Duration::from_millis(100));
        }
    }
}
