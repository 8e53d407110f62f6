//! Peers that break the contract of the tunnel, written from it with none of the agent's code. Each gets the stated
//! outcome while a good peer goes on being served, and the agent's memory stays bounded.

use std::{
    io::{Read, Write},
    net::SocketAddr,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use mesh_tests::{
    Mesh, command, eventually, eventually_some,
    hbone::{self, GoodPeer, Peer, Refused, TunnelServer, raw},
    pki::{self, Authority, Credential, Leaf, spiffe},
    prereq,
    runner::Shared,
    tests,
    traffic::{self, End, Server},
};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

static STAGE: Shared<Stage> = Shared::new();

tests! {
    good_peer_is_served,
    unknown_root,
    wrong_trust_domain,
    expired_and_not_yet_valid,
    no_client_certificate,
    no_spiffe_name,
    tls_1_2_by_openssl,
    plain_text_to_the_tunnel_port,
    wrong_alpn,
    authority_that_was_not_dialled,
    ports_of_the_agent,
    get_instead_of_connect,
    giant_headers,
    ten_thousand_streams(deadline = 120),
    handshakes_that_never_end(deadline = 120),
    rapid_resets(deadline = 120),
    settings_and_ping_floods(deadline = 120),
    peer_that_stops_reading(deadline = 120),
    forged_headers,
    server_with_a_wrong_name,
    server_with_a_bad_certificate,
    server_that_answers_badly,
    server_that_never_answers,
}

pub(crate) fn teardown() {
    STAGE.clear();
}

/// How much memory the agent may take more under an attack. Buffers of one connection at most: windows, frames, a few
/// hundred streams.
const BOUND: u64 = 96 << 20;

/// The port of the echo server in the pod `web`.
const ECHO: u16 = 8080;
/// In the pod `web`: sends without end.
const FLOOD: u16 = 8081;

/// One node; `web` is attacked from `mallory`, whom the mesh does not know, while `good`, which it does not know
/// either, has a proper certificate.
struct Stage {
    // Servers go before the namespaces.
    _servers: Vec<Server>,
    roots: Arc<RootCertStore>,
    authority: Authority,
    good: Credential,
    mesh: Mesh,
}

fn stage() -> Arc<Stage> {
    STAGE.get(|| {
        let mesh = Mesh::plan(1)
            .pods(0, &["web", "client"])
            .outsider(0, "mallory")
            .outsider(0, "good")
            .fake(0, "fake1")
            .fake(0, "fake2")
            .fake(0, "fake3")
            .fake(0, "fake4")
            .start();
        let web = mesh.pod("web");
        let mut servers = Vec::new();
        for v6 in [false, true] {
            servers.push(Server::echo(web, web.addr(v6, ECHO)));
            servers.push(Server::start(web, web.addr(v6, FLOOD), |mut stream, _| {
                while stream.write_all(&[b'x'; 65536]).is_ok() {}
            }));
        }
        let authority = mesh.authority();
        Stage {
            roots: Authority::store(&[&authority]),
            good: authority.issue(&spiffe("cluster.local", "shop", "good")),
            authority,
            _servers: servers,
            mesh,
        }
    })
}

impl Stage {
    fn tunnel(&self) -> SocketAddr {
        self.mesh.pod("web").v4(hbone::PORT)
    }

    fn target(&self) -> SocketAddr {
        self.mesh.pod("web").v4(ECHO)
    }

    fn config(&self, credential: &Credential) -> Arc<ClientConfig> {
        Arc::new(credential.client(&self.roots))
    }

    fn proper(&self) -> Arc<ClientConfig> {
        self.config(&self.good)
    }

    /// A good peer that is served until it is finished.
    fn good_peer(&self) -> GoodPeer {
        GoodPeer::start(
            self.mesh.pod("good"),
            self.tunnel(),
            self.target(),
            self.good.client(&self.roots),
        )
    }

    /// `mallory` asks for the echo server with this configuration.
    fn ask(&self, config: &Arc<ClientConfig>) -> Result<StatusCode, Refused> {
        self.ask_for(config, self.target())
    }

    fn ask_for(
        &self,
        config: &Arc<ClientConfig>,
        target: SocketAddr,
    ) -> Result<StatusCode, Refused> {
        hbone::run(async {
            let mut peer = Peer::open(self.mesh.pod("mallory"), self.tunnel(), config).await?;
            Ok(peer.connect(target).await?.status)
        })
    }

    /// Runs `attack` beside a good peer; then the agent has not grown by more than [`BOUND`].
    fn besieged(&self, attack: impl FnOnce()) {
        let good = self.good_peer();
        let before = self.mesh.agent(0).memory();
        let most = self.mesh.agent(0).peak_memory_of(attack);
        good.finish();
        let grown = most.saturating_sub(before);
        assert!(grown < BOUND, "the agent grew by {} MiB", grown >> 20);
    }

    /// Failed handshakes of the agent as `role`.
    fn handshake_failures(&self, role: &str, cause: &str) -> f64 {
        self.mesh.agent(0).metrics().sum(
            "mesh_tls_handshake_failures_total",
            &[("role", role), ("cause", cause)],
        )
    }

    /// The credential is turned away at the handshake, no stream is ever answered, and the cause is counted.
    fn is_turned_away(&self, config: &Arc<ClientConfig>, cause: &str) {
        let before = self.handshake_failures("server", cause);
        let web = self.mesh.pod("web");
        let server = Server::echo(web, web.v4(0));
        match self.ask_for(config, server.addr) {
            Err(refused) => assert!(refused.is_connection(), "{cause}: {refused}"),
            Ok(status) => panic!("{cause}: answered with {status}"),
        }
        eventually(
            &format!("a handshake failure with the cause {cause}"),
            Duration::from_secs(5),
            || self.handshake_failures("server", cause) >= before + 1.0,
        );
        assert_eq!(server.count(), 0, "{cause}: it was let through");
    }
}

/// The proof that what follows is refused for what it is: the same peer with nothing wrong is served.
fn good_peer_is_served() {
    let stage = stage();
    for v6 in [false, true] {
        let web = stage.mesh.pod("web");
        let answered = hbone::run(async {
            let mut peer = Peer::open(
                stage.mesh.pod("mallory"),
                web.addr(v6, hbone::PORT),
                &stage.proper(),
            )
            .await?;
            assert_eq!(peer.server, [stage.mesh.identity("web")]);
            let answer = peer.connect(web.addr(v6, ECHO)).await?;
            assert_eq!(answer.status, StatusCode::OK);
            assert!(
                answer.headers.contains_key("baggage"),
                "{:?}",
                answer.headers
            );
            answer.round_trip(b"well behaved").await
        });
        assert_eq!(answered.unwrap(), b"well behaved");
    }
    // An intermediate between root and leaf changes nothing.
    let below = stage
        .authority
        .intermediate("below")
        .intermediate("and below that");
    let leaf = below.issue(&spiffe("cluster.local", "shop", "deep"));
    assert_eq!(stage.ask(&stage.config(&leaf)).unwrap(), StatusCode::OK);
    // Of several names those of another form are ignored.
    let several = Leaf::of("https://example.com/").and(spiffe("cluster.local", "shop", "several"));
    let leaf = stage.authority.leaf(&several);
    assert_eq!(stage.ask(&stage.config(&leaf)).unwrap(), StatusCode::OK);
}

fn unknown_root() {
    let stage = stage();
    let other = Authority::root("another mesh");
    let leaf = other.issue(&spiffe("cluster.local", "shop", "client"));
    let good = stage.good_peer();
    stage.is_turned_away(&stage.config(&leaf), "unknown_root");
    good.finish();
}

fn wrong_trust_domain() {
    let stage = stage();
    let leaf = stage
        .authority
        .issue(&spiffe("elsewhere.example", "shop", "client"));
    stage.is_turned_away(&stage.config(&leaf), "trust_domain");
}

fn expired_and_not_yet_valid() {
    let stage = stage();
    let id = spiffe("cluster.local", "shop", "client");
    let expired = stage.authority.leaf(&Leaf::of(&id).expired());
    stage.is_turned_away(&stage.config(&expired), "expired");
    let early = stage.authority.leaf(&Leaf::of(&id).not_yet());
    stage.is_turned_away(&stage.config(&early), "not_yet_valid");
}

fn no_client_certificate() {
    let stage = stage();
    let nobody = Arc::new(pki::anonymous(&stage.roots));
    stage.is_turned_away(&nobody, "no_certificate");
}

fn no_spiffe_name() {
    let stage = stage();
    for uri in [
        "https://shop.example/client",
        "spiffe://cluster.local/workload/client",
        "spiffe://cluster.local/ns/shop/sa/client/extra",
        "spiffe://cluster.local/ns/shop/sa/../sa/client",
    ] {
        let leaf = stage.authority.issue(uri);
        stage.is_turned_away(&stage.config(&leaf), "no_identity");
    }
}

/// From outside, by another implementation: TLS 1.3 with the certificate is served, TLS 1.2 is not spoken.
fn tls_1_2_by_openssl() {
    prereq::programs(&["openssl"]);
    let stage = stage();
    let files = stage.good.files(&stage.authority);
    let ask = |version: &str| {
        let args = format!(
            "openssl s_client -connect {} {version} -alpn h2 -cert {cert} -cert_chain {cert} -key {key} -CAfile {root} -verify_return_error -brief </dev/null",
            stage.tunnel(),
            cert = files.cert.display(),
            key = files.key.display(),
            root = files.root.display(),
        );
        let out = command::output(
            stage.mesh.pod("mallory"),
            Command::new("sh").args(["-c", &args]),
            Duration::from_secs(20),
        );
        (
            out.status.success(),
            String::from_utf8_lossy(&out.stderr).into_owned(),
        )
    };
    let (good, said) = ask("-tls1_3");
    assert!(good && said.contains("TLSv1.3"), "{said}");
    assert!(said.contains("Verification: OK"), "{said}");
    let before = stage.handshake_failures("server", "incompatible");
    for (version, says) in [("-tls1_2", "protocol version"), ("-tls1_1", "")] {
        let (good, said) = ask(version);
        assert!(!good && said.contains(says), "{version}: {said}");
        assert!(
            !said.contains("CONNECTION ESTABLISHED"),
            "{version}: {said}"
        );
    }
    eventually("the cause is counted", Duration::from_secs(5), || {
        stage.handshake_failures("server", "incompatible") > before
    });
}

fn plain_text_to_the_tunnel_port() {
    let stage = stage();
    let good = stage.good_peer();
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: web\r\n\r\n"[..],
        raw::PREFACE,
        &[0xff; 4096],
    ] {
        let mut stream = traffic::connect(stage.mesh.pod("mallory"), stage.tunnel()).unwrap();
        stream.write_all(bytes).unwrap();
        let (got, end) = traffic::read_to_end(&stream);
        // At most an alert.
        assert!(got.len() <= 7, "answered with {got:?}");
        assert_ne!(end, End::Hang, "{bytes:?}");
    }
    good.finish();
}

fn wrong_alpn() {
    let stage = stage();
    for (n, alpn) in [&[b"http/1.1".to_vec()][..], &[b"h3".to_vec()], &[]]
        .into_iter()
        .enumerate()
    {
        let mut config = stage.good.client(&stage.roots);
        config.alpn_protocols = alpn.to_vec();
        match stage.ask(&Arc::new(config)) {
            Err(refused) => assert!(refused.is_connection(), "{alpn:?}: {refused}"),
            Ok(status) => panic!("{alpn:?}: answered with {status}"),
        }
        eventually("the cause is counted", Duration::from_secs(5), || {
            stage.handshake_failures("server", "alpn") >= (n + 1) as f64
        });
    }
}

/// The status of a CONNECT of a proper peer, for several authorities over one connection.
fn statuses(stage: &Stage, authorities: &[String]) -> Vec<(String, String)> {
    hbone::run(async {
        let mut out = Vec::new();
        let mut peer = Peer::open(stage.mesh.pod("mallory"), stage.tunnel(), &stage.proper())
            .await
            .unwrap();
        for authority in authorities {
            let said = match peer.connect(authority).await {
                Ok(answer) => answer.status.as_str().to_owned(),
                Err(refused) => refused.to_string(),
            };
            out.push((authority.clone(), said));
        }
        // The connection is as good as before.
        let answer = peer.connect(stage.target()).await.unwrap();
        assert_eq!(answer.status, StatusCode::OK);
        out
    })
}

fn authority_that_was_not_dialled() {
    let stage = stage();
    let (web, client, good) = (
        stage.mesh.pod("web"),
        stage.mesh.pod("client"),
        stage.mesh.pod("good"),
    );
    let bystander = [
        Server::echo(client, client.v4(ECHO)),
        Server::echo(good, good.v4(ECHO)),
        Server::echo(web, ([127, 0, 0, 1], 7777).into()),
    ];
    let port = ECHO;
    let authorities = [
        client.v4(port).to_string(),
        good.v4(port).to_string(),
        web.v6(port).to_string(),
        "127.0.0.1:7777".into(),
        "[::1]:7777".into(),
        format!("0.0.0.0:{port}"),
        format!("[::]:{port}"),
        "169.254.169.254:80".into(),
        format!("web.shop.svc.cluster.local:{port}"),
        "localhost:7777".into(),
        web.v4.to_string(),
        format!("{}:0", web.v4),
    ];
    for (authority, said) in statuses(&stage, &authorities) {
        assert_eq!(said, "400", "{authority}");
    }
    for server in &bystander {
        assert_eq!(server.count(), 0, "forwarded to {}", server.addr);
    }
}

/// The agent's ports, and every port that its own sockets have inside the pod.
fn ports_of_the_agent() {
    let stage = stage();
    let web = stage.mesh.pod("web");
    for port in [15001, 15006, 15008] {
        let asked = statuses(&stage, &[web.v4(port).to_string()]);
        assert_eq!(asked[0].1, "400", "{}", asked[0].0);
    }
    let listening = command::stdout(web, "ss", &["-Htln"], Duration::from_secs(5));
    let mine = [ECHO, FLOOD];
    let others: Vec<String> = listening
        .lines()
        .filter_map(|line| {
            line.split_whitespace()
                .nth(3)?
                .rsplit(':')
                .next()?
                .parse()
                .ok()
        })
        .filter(|port: &u16| !mine.contains(port))
        .chain([15100, 15150, 15163, 15020])
        .map(|port| web.v4(port).to_string())
        .collect();
    assert!(others.len() >= 4 + 4, "the agent's listeners: {listening}");
    for (authority, said) in statuses(&stage, &others) {
        assert!(said == "400" || said == "503", "{authority}: {said}");
    }
}

fn get_instead_of_connect() {
    let stage = stage();
    hbone::run(async {
        let mut peer = Peer::open(stage.mesh.pod("mallory"), stage.tunnel(), &stage.proper())
            .await
            .unwrap();
        for method in [Method::GET, Method::POST, Method::OPTIONS] {
            let request = Request::builder()
                .method(method.clone())
                .uri(format!("http://{}/", stage.target()))
                .body(())
                .unwrap();
            let answer = peer.request(request).await.unwrap();
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{method}");
        }
        let answer = peer.connect(stage.target()).await.unwrap();
        assert_eq!(
            answer.status,
            StatusCode::OK,
            "the connection is as good as before"
        );
    });
}

fn giant_headers() {
    let stage = stage();
    stage.besieged(|| {
        hbone::run(async {
            // One header block of 8 MiB in CONTINUATION frames, ten times over.
            for _ in 0..10 {
                let mut peer =
                    hbone::tls(stage.mesh.pod("mallory"), stage.tunnel(), &stage.proper())
                        .await
                        .unwrap();
                let mut block = raw::connect(&stage.target().to_string());
                // Literal without indexing, new name: "x-filler: aaaa...".
                let mut field = vec![0x00, 8];
                field.extend_from_slice(b"x-filler");
                field.extend_from_slice(&[0x7e]);
                field.extend_from_slice(&[b'a'; 126]);
                let mut bytes = raw::PREFACE.to_vec();
                bytes.extend(raw::frame(raw::SETTINGS, 0, 0, &[]));
                while block.len() < 16_000 {
                    block.extend_from_slice(&field);
                }
                bytes.extend(raw::frame(raw::HEADERS, 0, 1, &block));
                let more = raw::frame(raw::CONTINUATION, 0, 1, &field.repeat(116));
                let mut refused = peer.write_all(&bytes).await.is_err();
                for _ in 0..512 {
                    if refused {
                        break;
                    }
                    refused = peer.write_all(&more).await.is_err();
                }
                // Whether the writes failed or not: what comes back ends with the connection.
                let mut answer = Vec::new();
                let end = tokio::time::timeout(traffic::PATIENCE, peer.read_to_end(&mut answer));
                assert!(end.await.is_ok(), "the connection goes on");
            }
        });
    });
    // A header list that is large but sane is served.
    hbone::run(async {
        let mut peer = Peer::open(stage.mesh.pod("mallory"), stage.tunnel(), &stage.proper())
            .await
            .unwrap();
        let value = "a".repeat(4000);
        let request = hbone::connect_request(&stage.target(), &[("x-filler", value.as_str())]);
        assert_eq!(peer.request(request).await.unwrap().status, StatusCode::OK);
    });
}

/// Reads frames until the connection ends or `until` says so; gives the kinds of the frames with their payloads.
async fn read_frames<S: tokio::io::AsyncRead + Unpin>(
    stream: &mut S,
    mut until: impl FnMut(u8, &[u8]) -> bool,
) {
    loop {
        let mut head = [0_u8; 9];
        if stream.read_exact(&mut head).await.is_err() {
            return;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0_u8; length];
        if stream.read_exact(&mut payload).await.is_err() || until(head[3], &payload) {
            return;
        }
    }
}

/// 10,000 streams at once on one connection, against the announced limit: those above are refused.
fn ten_thousand_streams() {
    let stage = stage();
    stage.besieged(|| {
        hbone::run(async {
            let peer = hbone::tls(stage.mesh.pod("mallory"), stage.tunnel(), &stage.proper())
                .await
                .unwrap();
            let (mut read, mut write) = tokio::io::split(peer);
            let block = raw::connect(&stage.target().to_string());
            let writer = tokio::spawn(async move {
                let mut bytes = raw::PREFACE.to_vec();
                bytes.extend(raw::frame(raw::SETTINGS, 0, 0, &[]));
                for n in 0..10_000_u32 {
                    bytes.extend(raw::frame(
                        raw::HEADERS,
                        raw::END_HEADERS,
                        2 * n + 1,
                        &block,
                    ));
                }
                let _ = write.write_all(&bytes).await;
                write
            });
            let (mut accepted, mut refused, mut closed) = (0_u32, 0_u32, true);
            let frames = read_frames(&mut read, |kind, payload| {
                match kind {
                    raw::HEADERS => accepted += 1,
                    // REFUSED_STREAM or ENHANCE_YOUR_CALM.
                    raw::RST_STREAM => refused += u32::from(matches!(payload[3], 7 | 11)),
                    _ => {}
                }
                closed = accepted + refused < 10_000;
                !closed
            });
            let _ = tokio::time::timeout(Duration::from_secs(60), frames).await;
            assert!(accepted <= 1000, "{accepted} streams at once");
            assert!(
                refused + accepted == 10_000 || closed,
                "{refused} refused, {accepted} accepted, and no end"
            );
            drop(writer.await);
        });
    });
    // One after the other they are no attack.
    hbone::run(async {
        let mut peer = Peer::open(stage.mesh.pod("mallory"), stage.tunnel(), &stage.proper())
            .await
            .unwrap();
        for n in 0..500 {
            let answer = peer.connect(stage.target()).await.unwrap();
            let echo = answer.round_trip(b"again").await;
            assert_eq!(echo.unwrap_or_else(|e| panic!("stream {n}: {e}")), b"again");
        }
    });
}

/// TCP connections that say half a ClientHello, or nothing, and stay.
fn handshakes_that_never_end() {
    let stage = stage();
    let began = Instant::now();
    let before = stage.handshake_failures("server", "timeout");
    stage.besieged(|| {
        let mut idle: Vec<_> = (0..600)
            .map(|n| {
                let mut stream =
                    traffic::connect(stage.mesh.pod("mallory"), stage.tunnel()).unwrap();
                if n % 2 == 0 {
                    let _ = stream.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]);
                }
                stream
            })
            .collect();
        // Every one of them is closed by the agent, within its deadline.
        for stream in &mut idle {
            stream
                .set_read_timeout(Some(Duration::from_secs(40)))
                .unwrap();
            let mut buffer = [0_u8; 64];
            loop {
                match stream.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(e) => {
                        assert_eq!(End::of(&e), End::Reset, "still open: {e}");
                        break;
                    }
                }
            }
        }
    });
    assert!(
        began.elapsed() < Duration::from_secs(60),
        "{:?}",
        began.elapsed()
    );
    let counted = stage.handshake_failures("server", "timeout") - before;
    let refused = closed_or_refused(&stage, "handshake_limit");
    assert!(
        counted + refused >= 600.0,
        "{counted} counted, {refused} refused"
    );
}

fn closed_or_refused(stage: &Stage, reason: &str) -> f64 {
    let metrics = stage.mesh.agent(0).metrics();
    metrics.sum("mesh_connections_refused_total", &[("reason", reason)])
}

/// A stream opened and reset at once, over and over (CVE-2023-44487).
fn rapid_resets() {
    let stage = stage();
    stage.besieged(|| {
        hbone::run(async {
            let peer = hbone::tls(stage.mesh.pod("mallory"), stage.tunnel(), &stage.proper())
                .await
                .unwrap();
            let (mut read, mut write) = tokio::io::split(peer);
            let reader = tokio::spawn(async move {
                let mut goaway = false;
                read_frames(&mut read, |kind, _| {
                    goaway |= kind == raw::GOAWAY;
                    false
                })
                .await;
                goaway
            });
            let block = raw::connect(&stage.target().to_string());
            let mut bytes = raw::PREFACE.to_vec();
            bytes.extend(raw::frame(raw::SETTINGS, 0, 0, &[]));
            let mut sent = 0_u32;
            let mut closed = false;
            while sent < 100_000 && !closed {
                for n in sent..sent + 100 {
                    let stream = 2 * n + 1;
                    bytes.extend(raw::frame(raw::HEADERS, raw::END_HEADERS, stream, &block));
                    bytes.extend(raw::frame(raw::RST_STREAM, 0, stream, &[0, 0, 0, 8]));
                }
                sent += 100;
                closed = write.write_all(&bytes).await.is_err();
                bytes.clear();
            }
            drop(write);
            let said = tokio::time::timeout(traffic::PATIENCE, reader).await;
            assert!(closed || said.is_ok(), "100,000 resets and no end");
        });
    });
}

fn settings_and_ping_floods() {
    let stage = stage();
    for (kind, payload) in [
        (raw::SETTINGS, &[0, 3, 0, 0, 0, 100][..]),
        (raw::SETTINGS, &[]),
        (raw::PING, &[7; 8]),
    ] {
        stage.besieged(|| {
            hbone::run(async {
                let mut peer =
                    hbone::tls(stage.mesh.pod("mallory"), stage.tunnel(), &stage.proper())
                        .await
                        .unwrap();
                let mut bytes = raw::PREFACE.to_vec();
                bytes.extend(raw::frame(raw::SETTINGS, 0, 0, &[]));
                let flood = raw::frame(kind, 0, 0, payload).repeat(1000);
                peer.write_all(&bytes).await.unwrap();
                // The answers are never read: either the agent ends the connection, or it stops reading.
                for _ in 0..2000 {
                    let write =
                        tokio::time::timeout(Duration::from_secs(3), peer.write_all(&flood));
                    if !matches!(write.await, Ok(Ok(()))) {
                        break;
                    }
                }
            });
        });
    }
}

/// Streams whose answers are never read: their windows fill, the application's sending stops, the agent stays small.
fn peer_that_stops_reading() {
    let stage = stage();
    let web = stage.mesh.pod("web");
    stage.besieged(|| {
        hbone::run(async {
            let mut builder = h2::client::Builder::new();
            builder
                .initial_window_size(1 << 20)
                .initial_connection_window_size(16 << 20);
            let mut peer = Peer::open_with(
                stage.mesh.pod("mallory"),
                stage.tunnel(),
                &stage.proper(),
                &builder,
            )
            .await
            .unwrap();
            let mut held = Vec::new();
            for _ in 0..64 {
                let answer = peer.connect(web.v4(FLOOD)).await.unwrap();
                assert_eq!(answer.status, StatusCode::OK);
                held.push(answer);
            }
            // Another connection that does not even read its socket, with windows as large as they can be.
            let mut deaf = hbone::tls(stage.mesh.pod("mallory"), stage.tunnel(), &stage.proper())
                .await
                .unwrap();
            let mut bytes = raw::PREFACE.to_vec();
            bytes.extend(raw::frame(
                raw::SETTINGS,
                0,
                0,
                &[0, 4, 0x7f, 0xff, 0xff, 0xff],
            ));
            bytes.extend(raw::frame(8, 0, 0, &[0x7f, 0xfe, 0, 0]));
            let block = raw::connect(&web.v4(FLOOD).to_string());
            for n in 0..64 {
                bytes.extend(raw::frame(
                    raw::HEADERS,
                    raw::END_HEADERS,
                    2 * n + 1,
                    &block,
                ));
            }
            deaf.write_all(&bytes).await.unwrap();
            // As long as it takes to fill every buffer at link speed, several times over.
            tokio::time::sleep(Duration::from_secs(8)).await;
            drop(held);
        });
    });
}

/// What a peer says about its client is not who it is: neither the address nor the identity.
fn forged_headers() {
    let stage = stage();
    let mallory = stage.mesh.pod("mallory");
    let victim = stage.mesh.identity("client");
    let web = stage.mesh.pod("web");
    let server = Server::echo(web, web.v4(0));
    hbone::run(async {
        let mut peer = Peer::open(mallory, stage.tunnel(), &stage.proper())
            .await
            .unwrap();
        let forged = [
            "for=\"10.9.8.7:4444\";host=web".to_owned(),
            format!("for=\"{}\"", stage.mesh.pod("client").v4(1234)),
            "for=127.0.0.1".into(),
            "for=\"[::1]:1\"".into(),
            "for=\"\"\"\"\";;;=".into(),
            "for=unknown, for=_hidden;by=\u{7f}".into(),
            "=".repeat(3000),
        ];
        for text in &forged {
            let headers = [
                ("forwarded", text.as_str()),
                ("x-forwarded-client-cert", victim.as_str()),
                (
                    "baggage",
                    "k8s.namespace.name=shop,service.name=client,%%%=,=;=\u{1f}",
                ),
                ("traceparent", "00-zz-zz"),
            ];
            let headers: Vec<_> = headers
                .iter()
                .map(|(k, v)| (*k, v.replace(['\u{7f}', '\u{1f}'], "")))
                .collect();
            let headers: Vec<_> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
            let request = hbone::connect_request(&server.addr, &headers);
            let mut answer = peer.request(request).await.unwrap();
            assert_eq!(answer.status, StatusCode::OK, "{text:.40}");
            answer.ping().await.unwrap();
            let rows = stage.mesh.agent(0).json(&["connections"]);
            let rows = rows.as_array().cloned().unwrap_or_default();
            assert!(
                !rows
                    .iter()
                    .any(|row| row["source_principal"] == victim.as_str()),
                "{text:.40}: {rows:?}"
            );
        }
    });
    let seen = server.seen();
    assert_eq!(seen.len(), 7, "{seen:?}");
    for accepted in seen {
        assert_eq!(accepted.peer.ip(), mallory.v4, "{accepted:?}");
        assert_eq!(accepted.getpeername.ip(), mallory.v4, "{accepted:?}");
    }
}

/// Outbound: how the agent ended connections, by reason.
fn closed(stage: &Stage, reason: &str) -> f64 {
    let metrics = stage.mesh.agent(0).metrics();
    metrics.sum(
        "mesh_connections_closed_total",
        &[("reporter", "source"), ("reason", reason)],
    ) + metrics.sum("mesh_connections_refused_total", &[("reason", reason)])
}

/// `client` dials a fake workload: reset without a byte, the reason is counted.
fn outbound_is_refused(stage: &Stage, fake: &str, reason: &str) {
    let before = closed(stage, reason);
    let dialled = traffic::connect(stage.mesh.pod("client"), stage.mesh.pod(fake).v4(80));
    // An RST is told once: to the connect or the write if it came before them.
    let (got, end) = match dialled {
        Err(e) => (Vec::new(), End::of(&e)),
        Ok(mut stream) => match stream.write_all(b"secret") {
            Err(e) => (Vec::new(), End::of(&e)),
            Ok(()) => traffic::read_to_end(&stream),
        },
    };
    assert_eq!((got.as_slice(), end), (&b""[..], End::Reset), "{reason}");
    eventually_some(
        &format!("the reason {reason} counted"),
        Duration::from_secs(5),
        || {
            if closed(stage, reason) > before {
                Ok(())
            } else {
                let rows = stage.mesh.agent(0).json(&["connections", "--closed"]);
                Err(format!("{rows}"))
            }
        },
    );
}

/// The right chain, but another workload's name: nothing is sent to it, not even whom one wants.
fn server_with_a_wrong_name() {
    let stage = stage();
    let fake = stage.mesh.pod("fake1");
    // First the right one, so that the refusal after it means what it says.
    let right = stage.mesh.credential("fake1");
    let server = TunnelServer::echo(fake, fake.v4.into(), right.server(&stage.roots));
    crate::common::must_echo(stage.mesh.pod("client"), fake.v4(80));
    let asked = server.asked();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!(asked[0].method, Method::CONNECT);
    assert_eq!(asked[0].authority, fake.v4(80).to_string());
    assert_eq!(asked[0].client, [stage.mesh.identity("client")]);
    assert_eq!(asked[0].from.ip(), stage.mesh.pod("client").v4);
    assert!(asked[0].headers["baggage"].contains("k8s.namespace.name=shop"));
    assert!(
        asked[0].headers["forwarded"].contains(&stage.mesh.pod("client").v4.to_string()),
        "{asked:?}"
    );
    drop(server);
    for (uri, reason) in [
        (spiffe("cluster.local", "shop", "other"), "peer_identity"),
        (spiffe("cluster.local", "other", "fake"), "peer_identity"),
        (spiffe("elsewhere.example", "shop", "fake"), "peer_identity"),
        // No identity of a workload at all.
        ("https://shop.example/fake".into(), "tls_failed"),
    ] {
        let wrong = stage.authority.issue(&uri);
        let server = TunnelServer::echo(fake, fake.v4.into(), wrong.server(&stage.roots));
        outbound_is_refused(&stage, "fake1", reason);
        assert!(server.asked().is_empty(), "{uri}: {:?}", server.asked());
    }
    // One of several names is enough.
    let several =
        Leaf::of(spiffe("cluster.local", "shop", "other")).and(stage.mesh.identity("fake1"));
    let leaf = stage.authority.leaf(&several);
    let _server = TunnelServer::echo(fake, fake.v4.into(), leaf.server(&stage.roots));
    crate::common::must_echo(stage.mesh.pod("client"), fake.v4(80));
}

fn server_with_a_bad_certificate() {
    let stage = stage();
    let fake = stage.mesh.pod("fake2");
    let id = stage.mesh.identity("fake2");
    let other = Authority::root("another mesh");
    for (what, credential) in [
        ("unknown root", other.issue(&id)),
        ("expired", stage.authority.leaf(&Leaf::of(&id).expired())),
        (
            "not yet valid",
            stage.authority.leaf(&Leaf::of(&id).not_yet()),
        ),
    ] {
        let server = TunnelServer::echo(fake, fake.v4.into(), credential.server_for_anybody());
        outbound_is_refused(&stage, "fake2", "tls_failed");
        assert!(server.asked().is_empty(), "{what}: {:?}", server.asked());
    }
    // And one that speaks no HTTP/2.
    let mut config = stage.mesh.credential("fake2").server(&stage.roots);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let server = TunnelServer::echo(fake, fake.v4.into(), config);
    outbound_is_refused(&stage, "fake2", "tls_failed");
    assert!(server.asked().is_empty());
    drop(server);
    // No server at all.
    outbound_is_refused(&stage, "fake2", "tunnel_unreachable");
}

fn server_that_answers_badly() {
    let stage = stage();
    let fake = stage.mesh.pod("fake3");
    let credential = stage.mesh.credential("fake3");
    for (status, reason) in [
        (StatusCode::UNAUTHORIZED, "denied_by_peer"),
        (StatusCode::SERVICE_UNAVAILABLE, "unreachable_by_peer"),
        (StatusCode::BAD_REQUEST, "tunnel_protocol"),
        (StatusCode::FOUND, "tunnel_protocol"),
        (StatusCode::NO_CONTENT, "tunnel_protocol"),
    ] {
        let _server = TunnelServer::status(
            fake,
            fake.v4.into(),
            credential.server(&stage.roots),
            status,
        );
        outbound_is_refused(&stage, "fake3", reason);
    }
    // 200 and then a reset of the stream, and 200 and then the end of the connection, are resets.
    let server = TunnelServer::start(
        fake,
        fake.v4.into(),
        credential.server(&stage.roots),
        |_, mut respond| {
            if let Ok(mut send) = respond.send_response(Response::new(()), false) {
                let _ = send.send_data(Bytes::from_static(b"hello"), false);
                send.send_reset(h2::Reason::INTERNAL_ERROR);
            }
        },
    );
    let stream = traffic::connect(stage.mesh.pod("client"), fake.v4(80)).unwrap();
    let (_, end) = traffic::read_to_end(&stream);
    assert_eq!(end, End::Reset);
    drop(server);
}

/// A handshake, then silence: the connect deadline ends it.
fn server_that_never_answers() {
    let stage = stage();
    let fake = stage.mesh.pod("fake4");
    let credential = stage.mesh.credential("fake4");
    let held = std::sync::Mutex::new(Vec::new());
    let _server = TunnelServer::start(
        fake,
        fake.v4.into(),
        credential.server(&stage.roots),
        move |request, respond| held.lock().unwrap().push((request, respond)),
    );
    let began = Instant::now();
    let stream = traffic::connect(stage.mesh.pod("client"), fake.v4(80)).unwrap();
    let (got, end) = traffic::read_to_end(&stream);
    assert_eq!((got.as_slice(), end), (&b""[..], End::Reset));
    let took = began.elapsed();
    assert!(
        (Duration::from_secs(5)..Duration::from_secs(20)).contains(&took),
        "{took:?}"
    );
}
