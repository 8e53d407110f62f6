//! Compares ways to copy: scratch sizes, splice(2) and pipe sizes, one runtime against one per core.
//!
//! `cargo bench -p mesh-agent --bench copy [-- ROUNDS SECONDS [FILTER]]` prints the table of docs/adr/0003-copying.md.
//! Each variant is the whole proxy in a process of its own, between a client and a server that use blocking sockets on
//! loopback. Variants alternate within a round; the figures are medians over the rounds, with minimum and maximum. CPU is
//! that of the proxy's process alone.

use std::{
    error::Error,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::BorrowedFd,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use mesh_agent::{
    catalog::Catalog,
    model::{EffectivePolicy, ResourceName},
    proxy::{
        CopyOptions, EVENT_INTERVAL, PodSockets, Proxy, ProxyOptions, WorkerMode, raise_nofile,
    },
    telemetry::{Telemetry, TelemetryOptions},
};
use mesh_common::Role;
use socket2::{Domain, Socket, Type};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const KIB: usize = 1024;

#[derive(Clone, Copy)]
struct Variant {
    name: &'static str,
    scratch: usize,
    /// 0: no splice.
    pipe: usize,
    turn: usize,
    per_core: bool,
}

const fn variant(name: &'static str, scratch: usize, pipe: usize) -> Variant {
    Variant {
        name,
        scratch: scratch * KIB,
        pipe: pipe * KIB,
        turn: 512 * KIB,
        per_core: false,
    }
}

const VARIANTS: &[Variant] = &[
    variant("copy 16K", 16, 0),
    variant("copy 32K", 32, 0),
    variant("copy 64K", 64, 0),
    variant("copy 128K", 128, 0),
    variant("copy 256K", 256, 0),
    variant("splice 64K", 64, 64),
    variant("splice 256K", 64, 256),
    variant("splice 1M", 64, 1024),
    Variant {
        per_core: true,
        ..variant("splice 256K per-core", 64, 256)
    },
    Variant {
        turn: 128 * KIB,
        ..variant("splice 256K turn 128K", 64, 256)
    },
    Variant {
        turn: 2048 * KIB,
        ..variant("splice 256K turn 2M", 64, 256)
    },
];

/// What one variant did at one work.
#[derive(Clone, Copy, Default)]
struct Figures {
    /// Round trips, bytes or connections per second.
    rate: f64,
    /// Proxy CPU seconds per 100k round trips, GiB, or 10k connections.
    cpu: f64,
    p50_us: f64,
    p99_us: f64,
}

const WORKS: &[(&str, Work)] = &[
    ("ping-64", ping),
    ("stream-1", |a, s| stream(a, 1, s)),
    ("stream-8", |a, s| stream(a, 8, s)),
    ("ping-64 beside stream-8", ping_beside_streams),
    ("connect", connect),
];

type Work = fn(SocketAddr, Duration) -> Result<(f64, f64, Vec<f64>)>;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    if args.first().is_some_and(|a| a == "proxy") {
        return proxy(&args[1..]);
    }
    let rounds: usize = args.first().map_or(Ok(3), |a| a.parse())?;
    let seconds: f64 = args.get(1).map_or(Ok(1.0), |a| a.parse())?;
    let filter = args.get(2).cloned().unwrap_or_default();
    let server = serve()?;
    for (work_name, work) in WORKS {
        if !filter.is_empty() && *work_name != filter {
            continue;
        }
        let mut all = vec![Vec::new(); VARIANTS.len()];
        for _ in 0..rounds {
            for (i, v) in VARIANTS.iter().enumerate() {
                all[i].push(run(v, server, *work, Duration::from_secs_f64(seconds))?);
            }
        }
        println!("\n### {work_name}\n");
        println!("| variant | rate | CPU | p50 us | p99 us |\n| --- | --- | --- | --- | --- |");
        for (v, figures) in VARIANTS.iter().zip(&all) {
            let column = |f: fn(&Figures) -> f64| {
                let mut values: Vec<_> = figures.iter().map(f).collect();
                values.sort_by(f64::total_cmp);
                let (min, max) = (values[0], values[values.len() - 1]);
                format!("{:.4} ({min:.4}..{max:.4})", values[values.len() / 2])
            };
            println!(
                "| {} | {} | {} | {} | {} |",
                v.name,
                column(|f| f.rate),
                column(|f| f.cpu),
                column(|f| f.p50_us),
                column(|f| f.p99_us)
            );
        }
    }
    if filter.is_empty() || filter == "idle" {
        println!("\n### idle\n\n{:.0} bytes per connection", idle()?);
    }
    Ok(())
}

/// Resident memory per idle connection that has carried something: the slope between 1,000 and 4,000.
fn idle() -> Result<f64> {
    raise_nofile()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let v = variant("idle", 64, 256);
    let mut child = spawn(&v, listener.local_addr()?)?;
    let slope = (|| {
        let address = address_of(&mut child)?;
        let mut held = Vec::new();
        let mut grow = |n: usize| -> Result<f64> {
            while held.len() < n {
                let mut client = open(address, b'x')?;
                let mut server = listener.accept()?.0;
                server.read_exact(&mut [0])?;
                server.write_all(&[0; 64])?;
                client.read_exact(&mut [0; 64])?;
                held.push((client, server));
            }
            let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()))?;
            let line = status.lines().find(|l| l.starts_with("VmRSS:"));
            let kib = line
                .and_then(|l| l.split_whitespace().nth(1))
                .ok_or("no VmRSS")?;
            Ok(kib.parse::<f64>()? * 1024.0)
        };
        let few = grow(1000)?;
        Ok((grow(4000)? - few) / 3000.0)
    })();
    child.kill()?;
    child.wait()?;
    slope
}

fn spawn(v: &Variant, server: SocketAddr) -> Result<Child> {
    Ok(Command::new(std::env::current_exe()?)
        .arg("proxy")
        .args([v.scratch, v.pipe, v.turn, usize::from(v.per_core)].map(|n| n.to_string()))
        .arg(server.to_string())
        .stdout(Stdio::piped())
        .spawn()?)
}

fn address_of(child: &mut Child) -> Result<SocketAddr> {
    let mut line = String::new();
    let stdout = child.stdout.take().ok_or("no stdout")?;
    BufReader::new(stdout).read_line(&mut line)?;
    Ok(line.trim().parse()?)
}

fn run(v: &Variant, server: SocketAddr, work: Work, time: Duration) -> Result<Figures> {
    let mut child = spawn(v, server)?;
    let figures = measure(&mut child, work, time);
    child.kill()?;
    child.wait()?;
    figures
}

fn measure(child: &mut Child, work: Work, time: Duration) -> Result<Figures> {
    let address = address_of(child)?;
    // Warm: threads, pipes, caches.
    work(address, time / 10)?;
    let before = cpu(child.id())?;
    let (units, seconds, mut latencies) = work(address, time)?;
    let used = cpu(child.id())? - before;
    latencies.sort_by(f64::total_cmp);
    let at = |q: f64| {
        latencies
            .get((latencies.len() as f64 * q) as usize)
            .map_or(0.0, |s| s * 1e6)
    };
    Ok(Figures {
        rate: units / seconds,
        cpu: used / units,
        p50_us: at(0.5),
        p99_us: at(0.99),
    })
}

/// CPU seconds of all threads of a process, to the nanosecond.
fn cpu(pid: u32) -> Result<f64> {
    let mut total = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = std::fs::read_to_string(task?.path().join("schedstat"))?;
        total += stat
            .split_whitespace()
            .next()
            .ok_or("no schedstat")?
            .parse::<u64>()?;
    }
    Ok(total as f64 / 1e9)
}

/// Units are 100k round trips.
fn ping(address: SocketAddr, time: Duration) -> Result<(f64, f64, Vec<f64>)> {
    let mut stream = open(address, b'p')?;
    let mut block = [0; 64];
    let mut latencies = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < time {
        let sent = Instant::now();
        stream.write_all(&block)?;
        stream.read_exact(&mut block)?;
        latencies.push(sent.elapsed().as_secs_f64());
    }
    let seconds = begin.elapsed().as_secs_f64();
    Ok((latencies.len() as f64 / 1e5, seconds, latencies))
}

/// Units are GiB.
fn stream(address: SocketAddr, n: usize, time: Duration) -> Result<(f64, f64, Vec<f64>)> {
    let begin = Instant::now();
    let threads: Vec<_> = (0..n)
        .map(|_| {
            thread::spawn(move || -> Result<u64> {
                let mut stream = open(address, b's')?;
                let block = vec![1; 64 * KIB];
                let mut sent = 0;
                while begin.elapsed() < time {
                    stream.write_all(&block)?;
                    sent += block.len() as u64;
                }
                stream.shutdown(std::net::Shutdown::Write)?;
                // The server answers when it has read everything.
                stream.read_exact(&mut [0])?;
                Ok(sent)
            })
        })
        .collect();
    let mut bytes = 0;
    for thread in threads {
        bytes += thread.join().map_err(|_| "panic")??;
    }
    Ok((
        bytes as f64 / (1u64 << 30) as f64,
        begin.elapsed().as_secs_f64(),
        vec![],
    ))
}

/// Latency of the ping-pong, while streams keep the proxy busy. Units are 100k round trips.
fn ping_beside_streams(address: SocketAddr, time: Duration) -> Result<(f64, f64, Vec<f64>)> {
    let streams = thread::spawn(move || stream(address, 8, time + Duration::from_millis(50)));
    thread::sleep(Duration::from_millis(20));
    let figures = ping(address, time)?;
    streams.join().map_err(|_| "panic")??;
    Ok(figures)
}

/// Units are 10k connections: connect, one byte each way, close.
fn connect(address: SocketAddr, time: Duration) -> Result<(f64, f64, Vec<f64>)> {
    let mut latencies = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < time {
        let opened = Instant::now();
        let mut stream = open(address, b'p')?;
        stream.write_all(&[0; 64])?;
        stream.read_exact(&mut [0; 64])?;
        // RST, or loopback runs out of ports.
        Socket::from(stream).set_linger(Some(Duration::ZERO))?;
        latencies.push(opened.elapsed().as_secs_f64());
    }
    Ok((
        latencies.len() as f64 / 1e4,
        begin.elapsed().as_secs_f64(),
        latencies,
    ))
}

fn open(address: SocketAddr, kind: u8) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.write_all(&[kind])?;
    Ok(stream)
}

/// The server behind the proxy: echoes blocks of 64 bytes, or swallows a stream.
fn serve() -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || answer(stream));
        }
    });
    Ok(address)
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut kind = [0];
    stream.read_exact(&mut kind)?;
    if kind[0] == b'p' {
        let mut block = [0; 64];
        loop {
            stream.read_exact(&mut block)?;
            stream.write_all(&block)?;
        }
    }
    let mut block = vec![0; 256 * KIB];
    while stream.read(&mut block)? > 0 {}
    stream.write_all(b"x")
}

/// The child process.
fn proxy(args: &[String]) -> Result<()> {
    let number = |i: usize| -> Result<usize> { Ok(args.get(i).ok_or("argument")?.parse()?) };
    let (scratch, pipe, turn, per_core) = (number(0)?, number(1)?, number(2)?, number(3)? != 0);
    let server = args.get(4).ok_or("server")?.parse()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .event_interval(EVENT_INTERVAL)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut options = ProxyOptions::for_nofile(raise_nofile()?);
        options.copy = CopyOptions {
            scratch,
            splice: pipe > 0,
            pipe_size: pipe.max(64 * KIB),
            turn,
        };
        if per_core {
            options.workers = WorkerMode::PerCore(2);
        }
        let telemetry = Arc::new(Telemetry::new(TelemetryOptions::default()));
        let proxy = Proxy::new(Catalog::new("bench"), telemetry, options)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        proxy.serve_pod(Arc::new(Pod::new(server)), vec![(Role::Outbound, listener)])?;
        println!("{address}");
        std::future::pending::<()>().await;
        Ok(())
    })
}

struct Pod {
    name: ResourceName,
    policy: Arc<EffectivePolicy>,
    server: SocketAddr,
    cookie: AtomicU64,
}

impl Pod {
    fn new(server: SocketAddr) -> Self {
        Self {
            name: ResourceName::new("bench", "pod"),
            policy: Arc::default(),
            server,
            cookie: AtomicU64::new(1),
        }
    }
}

impl PodSockets for Pod {
    fn name(&self) -> &ResourceName {
        &self.name
    }

    fn cookie(&self) -> u64 {
        1
    }

    fn policy(&self) -> Arc<EffectivePolicy> {
        Arc::clone(&self.policy)
    }

    fn socket(&self, v6: bool) -> BoxFuture<'_, io::Result<Socket>> {
        let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
        Box::pin(async move { Socket::new(domain, Type::STREAM.nonblocking().cloexec(), None) })
    }

    fn original_dst(&self, _: BorrowedFd<'_>) -> io::Result<Option<(SocketAddr, u64)>> {
        Ok(Some((
            self.server,
            self.cookie.fetch_add(1, Ordering::Relaxed),
        )))
    }

    fn set_client(&self, _: BorrowedFd<'_>, _: SocketAddr) -> io::Result<()> {
        Ok(())
    }
}
