//! Two pods on one wire, an agent reduced to capture, a proxy reduced to a few lines.

use std::{
    fs::File,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    path::PathBuf,
    process::{Command, Output},
    sync::{
        Arc, RwLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use mesh_agent::{
    capture::{Capture, CaptureOptions, CaptureStreams, Pod, PodEvent, PodState, WantedPod},
    model::{EffectivePolicy, FailPolicy, ResourceName},
};
use mesh_common::{ConnRecord, Role};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::{runtime::Runtime, sync::mpsc};

/// Nothing here takes longer on a busy machine.
pub const SOON: Duration = Duration::from_secs(10);

pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

fn unique() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A program is being run: at its start it has a copy of every descriptor for a moment, also of an agent's that is
/// "killed" in this process meanwhile.
static RUNNING: RwLock<()> = RwLock::new(());

/// Runs a program to its end.
pub fn output(program: &mut Command) -> Output {
    let _running = RUNNING.read();
    program.output().unwrap()
}

pub fn ip(args: &str) {
    let out = output(Command::new("ip").args(args.split(' ')));
    assert!(
        out.status.success(),
        "ip {args}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
}

/// A network namespace that goes with its value.
pub struct Ns {
    pub name: String,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

impl Ns {
    pub fn path(&self) -> PathBuf {
        format!("/run/netns/{}", self.name).into()
    }

    /// Runs `work` inside, on a thread of its own.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(self.path()).unwrap();
        std::thread::scope(|s| {
            let inside = s.spawn(|| {
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                drop(file);
                work()
            });
            inside
                .join()
                .unwrap_or_else(|e| std::panic::resume_unwind(e))
        })
    }

    pub fn connect(&self, to: impl Into<SocketAddr>) -> std::io::Result<TcpStream> {
        let to = to.into();
        self.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(3)))
    }

    pub fn listen(&self, at: &str) -> TcpListener {
        self.run(|| TcpListener::bind(at).unwrap())
    }

    /// An application that answers every connection with what accept(), getpeername() and getsockname() say, then
    /// echoes.
    pub fn serve(&self, at: &str) -> SocketAddr {
        let listener = self.listen(at);
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            while let Ok((mut stream, peer)) = listener.accept() {
                std::thread::spawn(move || {
                    let said = stream.peer_addr();
                    let line = format!(
                        "accept={peer} peer={} local={}\n",
                        said.map_or_else(|e| e.to_string(), |a| a.to_string()),
                        stream.local_addr().unwrap()
                    );
                    let _ = stream.write_all(line.as_bytes());
                    let mut copy = stream.try_clone().unwrap();
                    let _ = std::io::copy(&mut copy, &mut stream);
                    let _ = stream.shutdown(std::net::Shutdown::Write);
                });
            }
        });
        address
    }

    pub fn delete(&self) {
        output(Command::new("ip").args(["netns", "del", &self.name]));
    }
}

impl Drop for Ns {
    fn drop(&mut self) {
        self.delete();
    }
}

/// Two namespaces on one wire.
pub fn wire() -> (Ns, Ns) {
    let n = unique();
    let id = std::process::id();
    let make = |side: u8| Ns {
        name: format!("cm-{id}-{n}{}", char::from(b'a' + side)),
        v4: Ipv4Addr::new(10, 70 + (id % 100) as u8, n as u8, side + 1),
        v6: format!("fd70:{:x}:{n:x}::{}", id & 0xffff, side + 1)
            .parse()
            .unwrap(),
    };
    let (a, b) = (make(0), make(1));
    for ns in [&a, &b] {
        ip(&format!("netns add {}", ns.name));
        ip(&format!("-n {} link set lo up", ns.name));
    }
    connect(&a, &b);
    (a, b)
}

/// Puts a wire between them and gives them their addresses.
pub fn connect(a: &Ns, b: &Ns) {
    ip(&format!(
        "-n {} link add eth0 type veth peer name eth0 netns {}",
        a.name, b.name
    ));
    for ns in [a, b] {
        address(ns);
    }
}

pub fn address(ns: &Ns) {
    ip(&format!("-n {} link set eth0 up", ns.name));
    ip(&format!("-n {} addr add {}/24 dev eth0", ns.name, ns.v4));
    ip(&format!(
        "-n {} addr add {}/64 dev eth0 nodad",
        ns.name, ns.v6
    ));
    ip(&format!("-n {} route add default dev eth0", ns.name));
    ip(&format!("-6 -n {} route add default dev eth0", ns.name));
}

/// Capture with a proxy that knows two tricks: it answers outbound connections with their original destination, and
/// carries inbound ones to the application.
pub struct Agent {
    pub runtime: Runtime,
    pub capture: Arc<Capture>,
    pub node: String,
    pub closed: mpsc::Receiver<(u64, ConnRecord)>,
    pub released: mpsc::Receiver<(u64, bool)>,
}

pub fn node() -> String {
    format!("cm-{}-{}", std::process::id(), unique())
}

impl Agent {
    pub fn start(node: &str) -> Self {
        Self::with(CaptureOptions::new(node))
    }

    pub fn with(options: CaptureOptions) -> Self {
        let node = options.node.clone();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let (capture, streams) = runtime.block_on(Capture::start(options)).unwrap();
        let CaptureStreams { pods, closed } = streams;
        let (tell, released) = mpsc::channel(16);
        runtime.spawn(proxy(pods, tell));
        Self {
            runtime,
            capture,
            node,
            closed,
            released,
        }
    }

    pub fn apply(&self, wanted: Vec<WantedPod>) {
        self.runtime.block_on(self.capture.apply(wanted));
    }

    /// Enrols and insists that it worked.
    pub fn enrol(&self, wanted: Vec<WantedPod>) {
        let n = wanted.len();
        self.apply(wanted);
        let pods = self.capture.pods();
        assert_eq!(pods.len(), n);
        for pod in pods {
            assert_eq!(pod.state, PodState::Enrolled, "{}", pod.name);
        }
    }

    /// What SIGKILL does: every descriptor closes, nothing is cleaned up.
    pub fn kill(self) -> String {
        let Self {
            runtime,
            capture,
            node,
            ..
        } = self;
        let _none = RUNNING.write();
        drop(capture);
        runtime.shutdown_timeout(SOON);
        node
    }

    pub fn release(self) -> Vec<String> {
        let said = self.runtime.block_on(self.capture.release_all());
        self.kill();
        said
    }
}

/// Removes the pins of a node whatever happens in the test.
pub struct Pins(pub String);

impl Pins {
    pub fn dir(&self) -> PathBuf {
        format!("/sys/fs/bpf/mesh/{}", self.0).into()
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = mesh_agent::capture::release_node("/sys/fs/bpf".as_ref(), &self.0);
    }
}

pub fn wanted(ns: &Ns) -> WantedPod {
    WantedPod {
        name: ResourceName::new("test", ns.name.as_str()),
        netns: ns.path(),
        addresses: vec![ns.v4.into(), ns.v6.into()],
        policy: Arc::new(EffectivePolicy::default()),
        protected: false,
    }
}

pub fn wanted_open(ns: &Ns) -> WantedPod {
    let policy = EffectivePolicy {
        fail_policy: FailPolicy::Open,
        ..EffectivePolicy::default()
    };
    WantedPod {
        policy: Arc::new(policy),
        ..wanted(ns)
    }
}

pub fn protected(pod: WantedPod) -> WantedPod {
    WantedPod {
        protected: true,
        ..pod
    }
}

/// How a connection fails, if it does.
pub fn refusal(from: &Ns, to: SocketAddr) -> Option<std::io::ErrorKind> {
    from.connect(to).map_err(|e| e.kind()).err()
}

async fn proxy(mut pods: mpsc::Receiver<PodEvent>, released: mpsc::Sender<(u64, bool)>) {
    let mut loops = std::collections::HashMap::<u64, Vec<tokio::task::JoinHandle<()>>>::new();
    while let Some(event) = pods.recv().await {
        match event {
            PodEvent::Enrolled(pod) => {
                let serving = pod.take_listeners().into_iter().map(|(role, listener)| {
                    let pod = pod.clone();
                    tokio::spawn(async move {
                        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                        loop {
                            let (stream, peer) = listener.accept().await.unwrap();
                            tokio::spawn(carry(pod.clone(), role, stream, peer));
                        }
                    })
                });
                loops.insert(pod.cookie, serving.collect());
            }
            PodEvent::Released { cookie, gone } => {
                for serving in loops.remove(&cookie).into_iter().flatten() {
                    serving.abort();
                }
                let _ = released.try_send((cookie, gone));
            }
        }
    }
}

async fn carry(pod: Arc<Pod>, role: Role, mut stream: tokio::net::TcpStream, peer: SocketAddr) {
    use tokio::io::AsyncWriteExt;
    if role == Role::Outbound {
        let (dst, _) = pod
            .original_dst(stream.as_fd())
            .unwrap()
            .expect("an original destination");
        if pod.is_self_test(peer, dst) {
            return;
        }
        let _ = stream
            .write_all(format!("original={dst}\n").as_bytes())
            .await;
        let (mut r, mut w) = stream.split();
        let _ = tokio::io::copy(&mut r, &mut w).await;
        let _ = w.shutdown().await;
        return;
    }
    let dst = stream.local_addr().unwrap();
    if pod.is_self_test(peer, dst) {
        return;
    }
    if role == Role::Tunnel {
        let _ = stream
            .write_all(format!("tunnel peer={peer} local={dst}\n").as_bytes())
            .await;
        let (mut r, mut w) = stream.split();
        let _ = tokio::io::copy(&mut r, &mut w).await;
        return;
    }
    let v6 = dst.is_ipv6();
    let socket = pod.socket(v6).await.unwrap();
    pod.set_client(socket.as_fd(), peer).unwrap();
    let source: IpAddr = if v6 {
        Ipv6Addr::LOCALHOST.into()
    } else {
        Ipv4Addr::LOCALHOST.into()
    };
    socket.bind(&SocketAddr::new(source, 0).into()).unwrap();
    let socket = tokio::net::TcpSocket::from_std_stream(socket.into());
    let Ok(mut app) = socket.connect(dst).await else {
        let _ = rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
        return;
    };
    if pod.client_lost(app.as_fd()).unwrap() {
        return;
    }
    let _ = tokio::io::copy_bidirectional(&mut stream, &mut app).await;
}

/// Reads one line.
pub fn line(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(SOON)).unwrap();
    let (mut line, mut byte) = (Vec::new(), [0]);
    while stream.read(&mut byte).unwrap_or(0) == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

/// Sends, closes its side, and reads until the other side closes.
pub fn echo(mut stream: TcpStream, data: &[u8]) -> Vec<u8> {
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(data).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    back
}

/// What a program of the kernel has counted.
pub fn counted(agent: &Agent, name: &str) -> u64 {
    let all = agent.capture.counters();
    all.into_iter().find(|(_, n, _)| *n == name).unwrap().2
}

/// Entries of a map.
pub fn entries(agent: &Agent, map: &str) -> u64 {
    let all = agent.capture.map_stats();
    all.into_iter().find(|m| m.name == map).unwrap().entries
}

/// Polls until it holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {SOON:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
