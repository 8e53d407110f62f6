//! Many short connections: no port runs out, nothing stays in a map, nothing sent is lost.

use std::{
    io::{Read, Write},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use mesh_tests::{
    Bed, Pod, eventually_some,
    runner::Shared,
    tests,
    traffic::{self, Server},
};

use crate::common::map_empties;

static BED: Shared<Bed> = Shared::new();

/// Short connections of one test. What passes the agent twice gets half.
const TOTAL: u64 = 60_000;
const WITHIN: Duration = Duration::from_secs(60);

tests! {
    outbound_to_eight_destinations(alone, deadline = 120),
    inbound_to_one_port(alone, deadline = 120),
    through_both_sides(alone, deadline = 120),
    fire_and_forget(alone),
    refused_ones_leave_nothing(alone),
}

pub(crate) fn teardown() {
    BED.clear();
}

fn bed() -> Arc<Bed> {
    BED.get(|| {
        Bed::plan()
            .pods(&["client", "web1"])
            .outsider("ext1")
            .outsider("ext2")
            .start()
    })
}

/// Eight bytes there, eight back, the client closes first.
fn visit(to: SocketAddr, n: u64) -> std::io::Result<()> {
    let socket = traffic::client::tcp_here(to.is_ipv6())?;
    socket.connect(&to.into())?;
    let mut stream = std::net::TcpStream::from(socket);
    traffic::client::patient(&stream)?;
    stream.write_all(&n.to_le_bytes())?;
    let mut answer = [0_u8; 8];
    stream.read_exact(&mut answer)?;
    assert_eq!(answer, n.to_le_bytes());
    Ok(())
}

/// A server for `visit`.
fn host(pod: &Pod, addr: SocketAddr) -> Server {
    Server::inline(pod, addr, |mut stream, _| {
        let mut buffer = [0_u8; 8];
        if stream.read_exact(&mut buffer).is_ok() {
            let _ = stream.write_all(&buffer);
            // Until the client's FIN: it closes first.
            let _ = stream.read(&mut buffer);
        }
    })
}

/// `total` visits over the routes (client and destination), one thread each, all within `WITHIN`.
fn churn(routes: &[(&Arc<Pod>, SocketAddr)], total: u64) {
    let share = total / routes.len() as u64;
    let began = Instant::now();
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for (client, to) in routes {
            let done = &done;
            // Inside the pod for the whole time: a thread for each socket would be what is measured.
            scope.spawn(move || {
                client.enter(|| {
                    for n in 0..share {
                        visit(*to, n).unwrap_or_else(|e| panic!("connection {n} to {to}: {e}"));
                        done.fetch_add(1, Ordering::Relaxed);
                        assert!(
                            began.elapsed() < WITHIN,
                            "{} of {total} connections after {WITHIN:?}",
                            done.load(Ordering::Relaxed)
                        );
                    }
                });
            });
        }
    });
    assert_eq!(done.into_inner(), share * routes.len() as u64);
    println!(
        "    {total} connections in {:.1} s",
        began.elapsed().as_secs_f64()
    );
}

fn nothing_stays(bed: &Bed) {
    if bed.has_mesh() {
        for map in ["orig_dst", "clients", "conns"] {
            map_empties(bed, map);
        }
    }
}

fn outbound_to_eight_destinations() {
    let bed = bed();
    let (client, ext) = (bed.pod("client"), bed.pod("ext1"));
    let servers: Vec<_> = (0..8).map(|i| host(ext, ext.addr(i % 2 == 1, 0))).collect();
    let routes: Vec<_> = servers.iter().map(|s| (client, s.addr)).collect();
    churn(&routes, TOTAL);
    nothing_stays(&bed);
}

fn inbound_to_one_port() {
    let bed = bed();
    let web = bed.pod("web1");
    let server = host(web, web.v4(0));
    // Several clients: one alone runs out of ports of its own without a mesh as well.
    let (one, two) = (bed.pod("ext1"), bed.pod("ext2"));
    for pod in [one, two] {
        pod.sysctl("net/ipv4/ip_local_port_range", "1024 65000");
    }
    let routes = [
        (one, server.addr),
        (one, server.addr),
        (two, server.addr),
        (two, server.addr),
    ];
    churn(&routes, TOTAL);
    nothing_stays(&bed);
}

fn through_both_sides() {
    let bed = bed();
    let (client, web) = (bed.pod("client"), bed.pod("web1"));
    let servers: Vec<_> = (0..8).map(|i| host(web, web.addr(i % 2 == 1, 0))).collect();
    let routes: Vec<_> = servers.iter().map(|s| (client, s.addr)).collect();
    churn(&routes, TOTAL / 2);
    nothing_stays(&bed);
}

/// connect, send, close, without waiting for anything: every byte arrives.
fn fire_and_forget() {
    const MESSAGES: u64 = 3000;
    let bed = bed();
    let (client, ext, web) = (bed.pod("client"), bed.pod("ext1"), bed.pod("web1"));
    for (from, to) in [(client, ext), (ext, web), (client, web)] {
        let sum = Arc::new(AtomicU64::new(0));
        let count = Arc::new(AtomicU64::new(0));
        let server = {
            let (sum, count) = (Arc::clone(&sum), Arc::clone(&count));
            Server::inline(to, to.v4(0), move |mut stream, _| {
                let mut got = Vec::new();
                if stream.read_to_end(&mut got).is_ok() && got.len() == 8 {
                    sum.fetch_add(
                        u64::from_le_bytes(got.try_into().unwrap()),
                        Ordering::Relaxed,
                    );
                    count.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        from.enter(|| {
            for n in 1..=MESSAGES {
                let socket = traffic::client::tcp_here(false).unwrap();
                socket.connect(&server.addr.into()).unwrap();
                (&socket).write_all(&n.to_le_bytes()).unwrap();
            }
        });
        eventually_some("every message", Duration::from_secs(20), || {
            match count.load(Ordering::Relaxed) {
                MESSAGES => Ok(()),
                n => Err(format!(
                    "{n} of {MESSAGES} from {} to {}",
                    from.name, to.name
                )),
            }
        });
        assert_eq!(sum.load(Ordering::Relaxed), MESSAGES * (MESSAGES + 1) / 2);
    }
    nothing_stays(&bed);
}

fn refused_ones_leave_nothing() {
    let bed = bed();
    let (client, ext) = (bed.pod("client"), bed.pod("ext1"));
    for _ in 0..1000 {
        crate::common::must_be_reset(client, ext.v4(1), Duration::from_secs(5));
    }
    nothing_stays(&bed);
}
