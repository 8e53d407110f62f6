//! Speed of tunnels, for whoever works on it: `cargo test -p mesh-agent --lib --profile bench speed_of_tunnels -- --ignored
//! --nocapture`. Two agents in runtimes of their own, one thread each, between a client and a server with blocking sockets;
//! CPU is that of the two runtimes' threads. docs/adr/0009-tunnel-io.md has the figures.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener as StdListener, TcpStream as StdStream},
    thread,
};

use tokio::runtime::{Builder, Runtime};

use super::*;
use crate::proxy::EVENT_INTERVAL;

fn runtime(name: &str) -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name(name)
        .event_interval(EVENT_INTERVAL)
        .enable_all()
        .build()
        .unwrap()
}

/// CPU seconds of the agents' threads.
fn cpu() -> f64 {
    let mut total = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let path = task.unwrap().path();
        let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
        if name.starts_with("agent-") {
            let stat = std::fs::read_to_string(path.join("schedstat")).unwrap();
            total += stat.split(' ').next().unwrap().parse::<u64>().unwrap();
        }
    }
    total as f64 / 1e9
}

/// Echoes blocks of 64 bytes, or swallows a stream and answers at its end.
fn serve(mut stream: StdStream) {
    let mut kind = [0];
    if stream.read_exact(&mut kind).is_err() {
        return;
    }
    stream.set_nodelay(true).unwrap();
    if kind[0] == b'p' {
        let mut block = [0; 64];
        while stream.read_exact(&mut block).is_ok() && stream.write_all(&block).is_ok() {}
        return;
    }
    let mut block = vec![0; 256 * 1024];
    while stream.read(&mut block).is_ok_and(|n| n > 0) {}
    let _ = stream.write_all(&[0]);
}

fn open_as(address: SocketAddr, kind: u8) -> StdStream {
    let mut stream = StdStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(&[kind]).unwrap();
    stream
}

fn bulk(address: SocketAddr, streams: usize, time: Duration) -> f64 {
    let begin = Instant::now();
    let threads: Vec<_> = (0..streams)
        .map(|_| {
            thread::spawn(move || {
                let mut stream = open_as(address, b's');
                let block = vec![1; 128 * 1024];
                let mut sent = 0;
                while begin.elapsed() < time {
                    stream.write_all(&block).unwrap();
                    sent += block.len();
                }
                stream.shutdown(Shutdown::Write).unwrap();
                stream.read_exact(&mut [0]).unwrap();
                sent
            })
        })
        .collect();
    let sent: usize = threads.into_iter().map(|t| t.join().unwrap()).sum();
    sent as f64 / f64::from(1 << 30)
}

fn pings(address: SocketAddr, time: Duration) -> Vec<Duration> {
    let mut stream = open_as(address, b'p');
    let mut block = [0; 64];
    let mut took = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < time {
        let sent = Instant::now();
        stream.write_all(&block).unwrap();
        stream.read_exact(&mut block).unwrap();
        took.push(sent.elapsed());
    }
    took.sort();
    took
}

fn connects(address: SocketAddr, time: Duration) -> usize {
    let begin = Instant::now();
    let mut count = 0;
    while begin.elapsed() < time {
        let mut stream = open_as(address, b'p');
        stream.write_all(&[0; 64]).unwrap();
        stream.read_exact(&mut [0; 64]).unwrap();
        Socket::from(stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        count += 1;
    }
    count
}

#[test]
#[ignore = "a measurement"]
fn speed_of_tunnels() {
    let seconds = std::env::var("SECONDS_EACH").map_or(2.0, |s| s.parse().unwrap());
    let only = std::env::var("ONLY").unwrap_or_default();
    let time = Duration::from_secs_f64(seconds);
    let server = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let authority = server.local_addr().unwrap();
    thread::spawn(move || {
        for stream in server.incoming().flatten() {
            thread::spawn(|| serve(stream));
        }
    });
    let (a, b) = (runtime("agent-a"), runtime("agent-b"));
    let pki = Pki::new(&["client", "server"]);
    let destination = b.block_on(async { Side::new("server", &pki, |_| {}) });
    *destination.pod.application.lock().unwrap() = authority;
    let peer = destination.tunnel;
    let source = Arc::new(a.block_on(async { Side::new("client", &pki, |_| {}) }));
    let listener = a.block_on(listen());
    let address = listener.local_addr().unwrap();
    let direct = std::env::var("DIRECT").is_ok();
    let address = if direct { authority } else { address };
    a.spawn(async move {
        loop {
            let (leg, client) = listener.accept().await.unwrap();
            leg.set_nodelay(true).unwrap();
            let source = Arc::clone(&source);
            tokio::spawn(async move {
                let stream = open(&source, request(peer, authority)).await.unwrap();
                let (shared, served) = (&source.proxy.shared, &source.served);
                let meta = accept::meta(
                    shared,
                    served,
                    Direction::Outbound,
                    client,
                    authority,
                    None,
                    0,
                );
                let report = Report::new(source.telemetry.open(meta), Arc::clone(served));
                tunnel::run(Leg::new(leg), stream, shared, report).await;
            });
        }
    });
    pings(address, Duration::from_millis(300));
    let wanted = |work: &str| only.is_empty() || work.starts_with(&only);
    if wanted("ping") {
        let before = cpu();
        let took = pings(address, time);
        let used = (cpu() - before) * 1e6 / took.len() as f64;
        let at = |q: usize| took[took.len() * q / 100].as_secs_f64() * 1e6;
        println!(
            "ping       {:9.0}/s  p50 {:6.1} us  p99 {:6.1} us  {used:6.1} us CPU each",
            took.len() as f64 / seconds,
            at(50),
            at(99)
        );
    }
    for streams in [1, 8, 64] {
        if wanted(&format!("stream-{streams}")) {
            let before = cpu();
            let begin = Instant::now();
            let gib = bulk(address, streams, time);
            let (used, took) = (cpu() - before, begin.elapsed().as_secs_f64());
            println!(
                "stream-{streams:<3} {:9.2} Gbit/s  {:6.2} GiB/CPU s (both agents)",
                gib * 8.59 / took,
                gib / used
            );
        }
    }
    if wanted("connect") {
        let before = cpu();
        let count = connects(address, time);
        let used = (cpu() - before) * 1e6 / count as f64;
        println!(
            "connect    {:9.0}/s  {used:6.1} us CPU each",
            count as f64 / seconds
        );
    }
    a.shutdown_background();
    b.shutdown_background();
}
