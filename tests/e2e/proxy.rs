//! What the proxy does with a connection: how it carries it, and how it says no.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use mesh_tests::{
    Bed, Pod, eventually, eventually_some,
    runner::Shared,
    tests,
    traffic::{self, End, Server, pattern},
};

use crate::common::{echoes, must_be_refused, must_be_reset, must_echo, ping};

static BED: Shared<Bed> = Shared::new();

tests! {
    vanished_peers_are_noticed(deadline = 170),
    upstream_refuses,
    upstream_does_not_answer,
    next_candidate_when_one_refuses,
    server_speaks_first,
    half_close_by_the_client,
    half_close_by_the_server,
    reset_by_the_client,
    reset_by_the_server,
    both_ways_at_once_unequal,
    slow_reader_holds_the_sender_back(deadline = 120),
    gigabyte_each_way(alone, deadline = 180),
    two_thousand_at_once(alone, deadline = 120),
}

pub(crate) fn teardown() {
    BED.clear();
}

fn bed() -> Arc<Bed> {
    BED.get(|| {
        Bed::plan()
            .pods(&["client", "web1", "web2"])
            .outsider("ext")
            .service("web", &[(80, 8080), (81, 8081)])
            .start()
    })
}

/// Client and server: through the outbound side, through the inbound side, through both.
fn routes(bed: &Bed) -> [(&Arc<Pod>, &Arc<Pod>); 3] {
    let (client, web, ext) = (bed.pod("client"), bed.pod("web1"), bed.pod("ext"));
    [(client, ext), (ext, web), (client, web)]
}

fn upstream_refuses() {
    let bed = bed();
    let (client, web, ext) = (bed.pod("client"), bed.pod("web1"), bed.pod("ext"));
    for to in [ext.v4(1), ext.v6(1), web.v4(1), web.v6(1)] {
        must_be_reset(client, to, Duration::from_secs(3));
    }
    must_be_refused(ext, web.v4(1));
    if bed.has_mesh() {
        // Every endpoint refuses.
        must_be_reset(
            client,
            bed.service("web", false, 81),
            Duration::from_secs(3),
        );
    }
}

/// The SYN reaches a host whose answers never come back.
fn upstream_does_not_answer() {
    let bed = Bed::plan().pods(&["client"]).outsider("dark").start();
    let (client, dark) = (bed.pod("client"), bed.pod("dark"));
    let _server = Server::echo(dark, dark.v4(8080));
    dark.ip(&["route", "add", "blackhole", &format!("{}/32", client.v4)]);
    let began = Instant::now();
    let socket = traffic::client::tcp(client, false).unwrap();
    let connected = socket.connect_timeout(&dark.v4(8080).into(), Duration::from_secs(14));
    if !bed.has_mesh() {
        connected.expect_err("the kernel itself waits longer");
        return;
    }
    connected.expect("the agent accepts at once");
    let stream = TcpStream::from(socket);
    traffic::client::patient(&stream).unwrap();
    let (got, end) = traffic::read_to_end(&stream);
    assert_eq!((got.as_slice(), end), (&b""[..], End::Reset));
    let took = began.elapsed();
    // The default connect deadline of 10 s: long enough for a lost SYN, and kept.
    assert!(
        (Duration::from_secs(8)..Duration::from_secs(12)).contains(&took),
        "{took:?}"
    );
}

/// One of two endpoints refuses: nobody notices.
fn next_candidate_when_one_refuses() {
    let bed = bed();
    let web = bed.pod("web1");
    let server = Server::named(web, web.v4(8080), "web1");
    for _ in 0..20 {
        let stream = traffic::connect(bed.pod("client"), bed.service("web", false, 80)).unwrap();
        assert_eq!(traffic::round_trip(&stream, b"?").unwrap(), b"web1");
    }
    assert_eq!(server.count(), 20);
}

fn server_speaks_first() {
    let bed = bed();
    for (client, web) in routes(&bed) {
        let server = Server::greeter(web, web.v4(0), "220 ready\r\n");
        let began = Instant::now();
        let mut stream = traffic::connect(client, server.addr).unwrap();
        let mut banner = [0_u8; 11];
        stream.read_exact(&mut banner).unwrap();
        assert_eq!(&banner, b"220 ready\r\n");
        assert!(
            began.elapsed() < Duration::from_millis(900),
            "it waited for the client: {:?}",
            began.elapsed()
        );
        echoes(&stream);
    }
}

fn half_close_by_the_client() {
    let bed = bed();
    for (client, web) in routes(&bed) {
        // Answers only after the client's FIN, and then much.
        let server = Server::start(web, web.v4(0), |stream, _| {
            let got = pattern::receive(&stream, 1).unwrap();
            pattern::send(&stream, got, 3_000_000).unwrap();
        });
        let stream = traffic::connect(client, server.addr).unwrap();
        pattern::send(&stream, 1, 1_000_000).unwrap();
        assert_eq!(pattern::receive(&stream, 1_000_000).unwrap(), 3_000_000);
    }
}

fn half_close_by_the_server() {
    let bed = bed();
    for (client, web) in routes(&bed) {
        let got = Arc::new(AtomicU64::new(0));
        let server = {
            let got = Arc::clone(&got);
            Server::start(web, web.v4(0), move |stream, _| {
                stream.shutdown(Shutdown::Write).unwrap();
                got.store(pattern::receive(&stream, 2).unwrap(), Ordering::SeqCst);
            })
        };
        let stream = traffic::connect(client, server.addr).unwrap();
        // The server's FIN first; the other direction is as open as before.
        assert_eq!(traffic::read_to_end(&stream), (Vec::new(), End::Fin));
        pattern::send(&stream, 2, 1_000_000).unwrap();
        eventually("all of it", Duration::from_secs(10), || {
            got.load(Ordering::SeqCst) == 1_000_000
        });
    }
}

fn reset_by_the_client() {
    let bed = bed();
    for (client, web) in routes(&bed) {
        let (tell, told) = std::sync::mpsc::channel();
        let server = Server::start(web, web.v4(0), move |mut stream, _| {
            let mut buffer = [0_u8; 5];
            stream.read_exact(&mut buffer).unwrap();
            stream.write_all(&buffer).unwrap();
            let _ = tell.send(traffic::read_to_end(&stream));
        });
        let stream = traffic::connect(client, server.addr).unwrap();
        ping(&stream).unwrap();
        traffic::reset(stream);
        let (got, end) = told.recv_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!((got.as_slice(), end), (&b""[..], End::Reset));
    }
}

fn reset_by_the_server() {
    let bed = bed();
    for (client, web) in routes(&bed) {
        let server = Server::start(web, web.v4(0), |mut stream, _| {
            let mut buffer = [0_u8; 5];
            stream.read_exact(&mut buffer).unwrap();
            traffic::reset(stream);
        });
        let mut stream = traffic::connect(client, server.addr).unwrap();
        stream.write_all(b"ping\n").unwrap();
        assert_eq!(traffic::read_to_end(&stream), (Vec::new(), End::Reset));
        // And after the client's own FIN, when a reset is easily mistaken for the end.
        let mut stream = traffic::connect(client, server.addr).unwrap();
        stream.write_all(b"ping\n").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let (got, end) = traffic::read_to_end(&stream);
        assert_eq!((got.as_slice(), end), (&b""[..], End::Reset));
    }
}

/// Sends both ways at once; the lengths are no multiples of anything.
fn both_ways_at_once_unequal() {
    let bed = bed();
    for (client, web) in routes(&bed) {
        for (there, back) in [
            (1, 10_000_019),
            (10_000_019, 1),
            (7_654_321, 9_876_543),
            (0, 5),
        ] {
            exchange(client, web, false, there, back);
        }
    }
}

fn exchange(client: &Pod, web: &Pod, v6: bool, there: u64, back: u64) {
    let (tell, told) = std::sync::mpsc::channel();
    let server = Server::start(web, web.addr(v6, 0), move |stream, _| {
        let _ = tell.send(pattern::exchange(&stream, 22, back, 11).map_err(|e| e.to_string()));
    });
    let stream = traffic::connect(client, server.addr).unwrap();
    assert_eq!(pattern::exchange(&stream, 11, there, 22).unwrap(), back);
    assert_eq!(
        told.recv_timeout(Duration::from_secs(10)).unwrap(),
        Ok(there)
    );
}

fn gigabyte_each_way() {
    let bed = bed();
    let began = Instant::now();
    for (client, web) in routes(&bed) {
        exchange(client, web, false, 1 << 30, 1 << 30);
    }
    println!(
        "    3 x 1 GiB each way in {:.1} s",
        began.elapsed().as_secs_f64()
    );
}

/// The client reads nothing: the server must come to a halt, and the agent must not hold what is in between.
fn slow_reader_holds_the_sender_back() {
    let bed = bed();
    for (client, web) in routes(&bed) {
        let sent = Arc::new(AtomicU64::new(0));
        let server = {
            let sent = Arc::clone(&sent);
            Server::start(web, web.v4(0), move |mut stream, _| {
                let chunk = vec![7_u8; 64 * 1024];
                for _ in 0..4096 {
                    if stream.write_all(&chunk).is_err() {
                        return;
                    }
                    sent.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                }
            })
        };
        let before = memory(&bed);
        let stream = traffic::connect(client, server.addr).unwrap();
        // Wait until the sender stands still.
        let mut last = (0, Instant::now());
        eventually("the sender stands still", Duration::from_secs(20), || {
            let now = sent.load(Ordering::Relaxed);
            if now != last.0 {
                last = (now, Instant::now());
            }
            now > 0 && last.1.elapsed() > Duration::from_secs(1)
        });
        let stuck = last.0;
        // Socket buffers of two or three connections, not the whole transfer.
        assert!(stuck < 64 << 20, "{stuck} bytes were taken in");
        let grown = memory(&bed).saturating_sub(before);
        assert!(grown < 8 << 20, "the agent grew by {grown} bytes");
        // It goes on when the client reads, and not a byte is missing.
        let mut reader = &stream;
        let mut buffer = vec![0_u8; 256 * 1024];
        let mut got = 0_u64;
        loop {
            match reader.read(&mut buffer).unwrap() {
                0 => break,
                n => got += n as u64,
            }
        }
        assert_eq!(got, 4096 * 64 * 1024);
    }
}

/// Resident bytes of the agent; 0 without one.
fn memory(bed: &Bed) -> u64 {
    let Some(agent) = bed.maybe_agent() else {
        return 0;
    };
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        * 1024
}

fn descriptors(bed: &Bed) -> usize {
    bed.maybe_agent().map_or(0, |agent| {
        std::fs::read_dir(format!("/proc/{}/fd", agent.pid()))
            .unwrap()
            .count()
    })
}

fn two_thousand_at_once() {
    let bed = bed();
    let before = descriptors(&bed);
    let (client, web) = (bed.pod("client"), bed.pod("web1"));
    let server = Server::echo(web, web.v4(0));
    let streams: Vec<TcpStream> = client.enter(|| {
        (0..2000)
            .map(|n| {
                let stream = TcpStream::connect(server.addr)
                    .unwrap_or_else(|e| panic!("connection {n}: {e}"));
                traffic::client::patient(&stream).unwrap();
                stream
            })
            .collect()
    });
    for _ in 0..2 {
        for (n, stream) in streams.iter().enumerate() {
            ping(stream).unwrap_or_else(|e| panic!("connection {n}: {e}"));
        }
    }
    drop(streams);
    eventually_some("descriptors back", Duration::from_secs(20), || {
        // Tunnels are kept for the next ones: a hundred streams each, and both ends are this agent's.
        let now = descriptors(&bed);
        if now <= before + 32 + 2 * 2000 / 100 {
            Ok(())
        } else {
            Err(format!("{now}, before {before}"))
        }
    });
    must_echo(client, server.addr);
}

/// The other end's machine loses power: no FIN, no RST. Noticed within two minutes, idle or sending.
fn vanished_peers_are_noticed() {
    let bed = Bed::plan()
        .pods(&["client", "web1"])
        .outsider("gone")
        .start();
    if !bed.has_mesh() {
        mesh_tests::prereq::skip("without a mesh nobody notices");
    }
    let (client, web, gone) = (bed.pod("client"), bed.pod("web1"), bed.pod("gone"));
    // Outbound: the server vanishes, once while idle, once with data on the way.
    let server = Server::echo(gone, gone.v4(0));
    let idle = traffic::connect(client, server.addr).unwrap();
    ping(&idle).unwrap();
    let mut busy = traffic::connect(client, server.addr).unwrap();
    ping(&busy).unwrap();
    // Inbound: the client vanishes; the application hears of it.
    let (tell, told) = std::sync::mpsc::channel();
    let inbound = Server::start(web, web.v4(0), move |mut stream, _| {
        stream.set_read_timeout(Some(VANISHED * 2)).unwrap();
        let mut buffer = [0_u8; 5];
        stream.read_exact(&mut buffer).unwrap();
        stream.write_all(&buffer).unwrap();
        let _ = tell.send(traffic::read_to_end(&stream).1);
    });
    let lost = traffic::connect(gone, inbound.addr).unwrap();
    ping(&lost).unwrap();
    bed.node.set_wire(gone, false);
    let began = Instant::now();
    busy.write_all(b"are you there?").unwrap();
    for stream in [&busy, &idle] {
        stream.set_read_timeout(Some(VANISHED)).unwrap();
        let (got, end) = traffic::read_to_end(stream);
        assert_eq!((got.as_slice(), end), (&b""[..], End::Reset));
        assert!(began.elapsed() < VANISHED);
    }
    let end = told
        .recv_timeout(VANISHED.saturating_sub(began.elapsed()))
        .expect("the application hears within two minutes");
    assert_eq!(end, End::Reset);
}

const VANISHED: Duration = Duration::from_secs(125);
