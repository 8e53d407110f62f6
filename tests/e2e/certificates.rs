//! Certificates come, are renewed and are revoked while connections live; authorities are down, slow and lie.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use http::StatusCode;
use mesh_tests::{
    Agent, FakeCa, Mesh, Pod, eventually, eventually_some,
    fake_ca::Does,
    hbone::{self, Peer},
    pki::{Authority, Leaf, spiffe},
    run, tests,
    traffic::{self, Server},
};
use serde_json::Value;

use crate::common::{must_be_reset, must_echo, ping};

tests! {
    renewal_under_load(deadline = 200),
    root_rotation_under_load(deadline = 400),
    authority_down(deadline = 240),
    authority_that_lies(deadline = 240),
    authority_of_another_root,
    token_that_is_revoked(deadline = 120),
    identities_of_another_node_are_refused(deadline = 120),
    revoked_peer_is_cut_off(deadline = 120),
    intermediate_of_the_operator,
    keys_stay_in_memory,
}

pub(crate) fn teardown() {}

/// `certs -o json` of an identity.
fn certificate(agent: &Agent, identity: &str) -> Value {
    let certs = agent.json(&["certs"]);
    certs["identities"]
        .as_array()
        .and_then(|list| list.iter().find(|c| c["identity"] == identity))
        .cloned()
        .unwrap_or_else(|| panic!("{identity} is not listed: {certs}"))
}

fn serial(agent: &Agent, identity: &str) -> String {
    let cert = certificate(agent, identity);
    cert["serial"].as_str().unwrap_or_default().to_owned()
}

/// Connections old and new from a client to an echo server, until it is finished: no error is tolerated.
struct Load {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    failures: Arc<Mutex<Vec<String>>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    fn start(client: &Arc<Pod>, to: SocketAddr) -> Load {
        let mut load = Load {
            stop: Arc::default(),
            rounds: Arc::default(),
            failures: Arc::default(),
            threads: Vec::new(),
        };
        for keeps in [true, false] {
            let kept = keeps.then(|| traffic::connect(client, to).unwrap());
            let client = Arc::clone(client);
            let (stop, rounds, failures) = (
                Arc::clone(&load.stop),
                Arc::clone(&load.rounds),
                Arc::clone(&load.failures),
            );
            load.threads.push(std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let done = match &kept {
                        Some(stream) => ping(stream),
                        None => traffic::connect(&client, to).and_then(|s| ping(&s)),
                    };
                    match done {
                        Ok(()) => drop(rounds.fetch_add(1, Ordering::Relaxed)),
                        Err(e) => {
                            let which = if keeps { "kept" } else { "new" };
                            failures.lock().unwrap().push(format!("{which}: {e}"));
                            if keeps {
                                return;
                            }
                        }
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
            }));
        }
        load
    }

    fn more(&self) {
        let before = self.rounds.load(Ordering::Relaxed);
        eventually("the load goes on", Duration::from_secs(10), || {
            self.rounds.load(Ordering::Relaxed) > before + 20
        });
    }

    fn finish(mut self) {
        self.more();
        self.end();
        let failures = self.failures.lock().unwrap().clone();
        assert!(failures.is_empty(), "{failures:?}");
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

fn refused(agent: &Agent, reason: &str) -> f64 {
    let metrics = agent.metrics();
    metrics.sum("mesh_connections_refused_total", &[("reason", reason)])
        + metrics.sum("mesh_connections_closed_total", &[("reason", reason)])
}

/// The shortest life that an agent asks for: certificates change twice and nobody notices.
fn renewal_under_load() {
    let mesh = Mesh::plan(2)
        .pod(0, "client")
        .pod(1, "web")
        .strict()
        .args(&["--cert-ttl", "1m"])
        .start();
    let server = Server::echo(mesh.pod("web"), mesh.pod("web").v4(8080));
    let load = Load::start(mesh.pod("client"), server.addr);
    let mut serials = BTreeMap::new();
    for pod in ["client", "web"] {
        serials.insert(pod, vec![serial(mesh.agent_of(pod), &mesh.identity(pod))]);
    }
    for _ in 0..2 {
        for (pod, known) in &mut serials {
            let agent = mesh.agent_of(pod);
            eventually_some("another certificate", Duration::from_secs(70), || {
                let now = serial(agent, &mesh.identity(pod));
                if known.contains(&now) {
                    return Err(certificate(agent, &mesh.identity(pod)).to_string());
                }
                known.push(now);
                Ok(())
            });
        }
        load.more();
    }
    load.finish();
}

/// Old root, both, new root: under load, and at the end the old root is worth nothing.
fn root_rotation_under_load() {
    let mesh = Mesh::plan(2)
        .pod(0, "client")
        .pod(1, "web")
        .outsider(0, "peer")
        .strict()
        .args(&["--cert-ttl", "1m"])
        .start();
    let ca = mesh.ca.as_ref().unwrap();
    let old = mesh.authority();
    let server = Server::echo(mesh.pod("web"), mesh.pod("web").v4(8080));
    let load = Load::start(mesh.pod("client"), server.addr);
    let web = mesh.pod("web");
    let ask = |authority: &Authority, trust: &[&Authority]| {
        let credential = authority.issue(&spiffe("cluster.local", "shop", "peer"));
        let config = Arc::new(credential.client(&Authority::store(trust)));
        hbone::run(async {
            let mut peer = Peer::open(mesh.pod("peer"), web.v4(hbone::PORT), &config).await?;
            Ok::<_, hbone::Refused>(peer.connect(server.addr).await?.status)
        })
    };
    let roots = |pod: &str| {
        let certs = mesh.agent_of(pod).json(&["certs"]);
        certs["roots"].as_array().map_or(0, Vec::len)
    };
    let all_trust = |n: usize| {
        for pod in ["client", "web"] {
            eventually_some(
                &format!("{pod} trusts {n}"),
                Duration::from_secs(70),
                || match roots(pod) {
                    got if got == n => Ok(()),
                    got => Err(format!("{got} roots")),
                },
            );
        }
        load.more();
    };
    assert_eq!(ask(&old, &[&old]).unwrap(), StatusCode::OK);
    ca.rotate("prepare");
    all_trust(2);
    let before = ["client", "web"].map(|pod| serial(mesh.agent_of(pod), &mesh.identity(pod)));
    ca.rotate("activate");
    let new = mesh.authority();
    assert_ne!(new.root_der(), old.root_der());
    for (pod, before) in ["client", "web"].iter().zip(before) {
        eventually("signed by the new root", Duration::from_secs(70), || {
            serial(mesh.agent_of(pod), &mesh.identity(pod)) != before
        });
    }
    load.more();
    for root in [&old, &new] {
        assert_eq!(ask(root, &[&new]).unwrap(), StatusCode::OK);
    }
    ca.rotate("finish");
    all_trust(1);
    assert_eq!(ask(&new, &[&new]).unwrap(), StatusCode::OK);
    let refused = ask(&old, &[&new]).expect_err("the old root is worth nothing");
    assert!(refused.is_connection(), "{refused}");
    load.finish();
}

/// The authority goes away: who has a certificate is served until it ends, who is new is refused and told why; an agent
/// that starts meanwhile is closed and says so. The authority comes back and so does everything.
fn authority_down() {
    let mut mesh = Mesh::plan(2)
        .pods(0, &["client", "late"])
        .pod(1, "web")
        .strict()
        .prepare();
    mesh.config.remove("workload-shop-late.yaml");
    // Certificates end half a minute after they are made, whatever agents ask for.
    mesh.ca = None;
    let ca =
        mesh_tests::CaServer::start_with(mesh.node(0), &mesh.config, &["--cert-ttl-max", "30s"]);
    mesh.ca = Some(ca);
    for node in [0, 1] {
        mesh.run_agent(node, &[]);
    }
    for node in [0, 1] {
        mesh.agent(node).wait_ready();
    }
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    let server = Server::echo(web, web.v4(8080));
    eventually("served", Duration::from_secs(20), || {
        traffic::connect(client, server.addr).is_ok_and(|s| ping(&s).is_ok())
    });
    mesh.ca.as_ref().unwrap().kill();
    let down = Instant::now();
    // A new identity.
    mesh.config.workload(&mesh.workload("late"));
    let late = mesh.identity("late");
    let agent = mesh.agent(0);
    eventually_some(
        "the reason of the missing one",
        Duration::from_secs(20),
        || {
            let certs = agent.json(&["certs"]);
            let found = certs["identities"]
                .as_array()
                .and_then(|list| list.iter().find(|c| c["identity"] == late.as_str()));
            match found {
                Some(cert) if cert["state"] == "missing" && cert["last_error"].is_string() => {
                    Ok(())
                }
                other => Err(format!("{other:?}")),
            }
        },
    );
    agent.wait_enrolled(&[mesh.name_of("late")]);
    let before = refused(agent, "no_certificate");
    must_be_reset(mesh.pod("late"), server.addr, Duration::from_secs(15));
    eventually("counted", Duration::from_secs(5), || {
        refused(agent, "no_certificate") > before
    });
    // The old ones are served, as long as theirs lives.
    if down.elapsed() < Duration::from_secs(15) {
        must_echo(client, server.addr);
    }
    eventually_some("they end", Duration::from_secs(60), || {
        let cert = certificate(agent, &mesh.identity("client"));
        if cert["state"] == "expired" {
            Ok(())
        } else {
            Err(cert.to_string())
        }
    });
    let before = refused(agent, "no_certificate");
    must_be_reset(client, server.addr, Duration::from_secs(15));
    eventually("counted", Duration::from_secs(5), || {
        refused(agent, "no_certificate") > before
    });
    let served = server.count();
    // Restarted without an authority: closed, not ready, and the log says what is missing.
    agent.kill();
    agent.run();
    eventually_some(
        "not ready, with the reason",
        Duration::from_secs(20),
        || match agent.get("/readyz") {
            Ok((503, body)) if body.contains("certificate") => Ok(()),
            other => Err(format!("{other:?}")),
        },
    );
    eventually("enrolled all the same", Duration::from_secs(20), || {
        agent.workload_state(&mesh.name_of("client")).as_deref() == Some("enrolled")
    });
    must_be_reset(client, server.addr, Duration::from_secs(15));
    assert!(
        agent
            .log()
            .lines()
            .any(
                |line| line.contains("certificate authority") && line.contains("ERROR")
                    || line.contains("WARN")
            ),
        "the log says nothing of the authority"
    );
    assert_eq!(server.count(), served, "something got through");
    // Back.
    mesh.ca.as_ref().unwrap().run();
    eventually("served again", Duration::from_secs(60), || {
        traffic::connect(client, server.addr).is_ok_and(|s| ping(&s).is_ok())
    });
    agent.wait_ready();
}

/// Whatever it answers, it is not taken for a certificate, nothing panics, and the reason is told.
fn authority_that_lies() {
    let mut mesh = Mesh::plan(1)
        .pods(0, &["client", "web"])
        .outsider(0, "ext")
        .strict()
        .prepare();
    let fake = FakeCa::start(mesh.node(0), Does::Nothing);
    let args = fake.agent_args();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    mesh.run_agent(0, &args);
    let agent = mesh.agent(0);
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    let server = Server::echo(web, web.v4(8080));
    let id = mesh.identity("client");
    let other = Authority::root("somebody else");
    let mine = fake.authority();
    let chain = |authority: &Authority, leaf: &Leaf| {
        vec![authority.leaf(leaf).chain_pem(), authority.root_pem()]
    };
    for (what, does) in [
        ("silence", Does::Nothing),
        ("a refusal", Does::Status(7, "not for you")),
        ("unavailable", Does::Status(14, "come back later")),
        ("no message", Does::Garbage),
        ("no gRPC", Does::NotGrpc),
        ("no chain", Does::Chain(Vec::new())),
        ("no PEM", Does::Chain(vec!["hello".into(), "world".into()])),
        ("another key", Does::Chain(chain(mine, &Leaf::of(&id)))),
        ("another root", Does::Chain(chain(&other, &Leaf::of(&id)))),
        (
            "expired",
            Does::Chain(chain(mine, &Leaf::of(&id).expired())),
        ),
        (
            "another identity",
            Does::Chain(chain(mine, &Leaf::of(mesh.identity("web")))),
        ),
        ("megabytes", Does::Chain(vec!["x".repeat(1 << 20); 8])),
    ] {
        // A new agent asks at once; an old one waits longer from time to time.
        agent.kill();
        fake.now(does);
        agent.run();
        eventually_some(what, Duration::from_secs(30), || {
            let out = agent.cli(&["certs", "-o", "json"]);
            let certs: Value = serde_json::from_slice(&out.stdout).map_err(|e| e.to_string())?;
            let found = certs["identities"]
                .as_array()
                .and_then(|list| list.iter().find(|c| c["identity"] == id.as_str()).cloned())
                .unwrap_or_default();
            assert_ne!(found["state"], "valid", "{what}: {found}");
            match found["last_error"].as_str() {
                Some(_) => Ok(()),
                None => Err(found.to_string()),
            }
        });
        assert!(agent.is_running(), "{what}");
    }
    agent.wait_enrolled(&[mesh.name_of("client"), mesh.name_of("web")]);
    must_be_reset(client, server.addr, Duration::from_secs(15));
    must_be_reset(mesh.pod("ext"), server.addr, Duration::from_secs(15));
    assert_eq!(server.count(), 0, "something got through");
    assert!(!agent.log().contains("panicked"));
}

/// The authority's own certificate is checked: one with another root gets no token.
fn authority_of_another_root() {
    let mut mesh = Mesh::plan(1).pods(0, &["client"]).prepare();
    let fake = FakeCa::start(mesh.node(0), Does::Nothing);
    let other = run::folder().join(run::unique());
    fs::write(&other, Authority::root("not this one").root_pem()).unwrap();
    let mut args = fake.agent_args();
    args[5] = other.display().to_string();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    mesh.run_agent(0, &args);
    let agent = mesh.agent(0);
    eventually_some("the reason", Duration::from_secs(30), || {
        match agent.get("/readyz") {
            Ok((503, body)) if body.contains("certificate") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    assert_eq!(fake.asked(), 0, "it was told the token");
}

fn token_that_is_revoked() {
    let mut mesh = Mesh::plan(2)
        .pod(0, "client")
        .pods(1, &["web", "late"])
        .prepare();
    mesh.config.remove("workload-shop-late.yaml");
    for node in [0, 1] {
        mesh.run_agent(node, &[]);
        mesh.agent(node).wait_ready();
    }
    let ca = mesh.ca.as_ref().unwrap();
    ca.cli("revoke", &["--node", mesh.node(1).name()]);
    mesh.config.workload(&mesh.workload("late"));
    let late = mesh.identity("late");
    eventually_some("refused", Duration::from_secs(20), || {
        let certs = mesh.agent(1).json(&["certs"]);
        let found = certs["identities"]
            .as_array()
            .and_then(|list| list.iter().find(|c| c["identity"] == late.as_str()));
        match found {
            Some(cert) if cert["state"] != "valid" && cert["last_error"].is_string() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    // A new credential in the same file heals it.
    ca.token(mesh.node(1).name());
    eventually_some("signed", Duration::from_secs(60), || {
        let cert = certificate(mesh.agent(1), &late);
        if cert["state"] == "valid" {
            Ok(())
        } else {
            Err(cert.to_string())
        }
    });
}

/// A node's credential is good for the workloads that the configuration places there, and for no others.
fn identities_of_another_node_are_refused() {
    let mut mesh = Mesh::plan(2).pod(0, "client").pod(1, "web").prepare();
    // Node 0 is shown a configuration in which `web` is its own; the authority has the true one.
    let lie = mesh_tests::Config::new();
    lie.namespace("shop", true);
    lie.workload(&mesh.workload("client"));
    let mut stolen = mesh.workload("web");
    stolen.node = mesh.node(0).name().to_owned();
    lie.workload(&stolen);
    let agent = mesh.prepare_agent_with(0, &lie, &[]);
    agent.run();
    eventually_some("refused", Duration::from_secs(30), || {
        let out = agent.cli(&["certs", "-o", "json"]);
        let certs: Value = serde_json::from_slice(&out.stdout).map_err(|e| e.to_string())?;
        let of = |identity: &str| {
            certs["identities"]
                .as_array()
                .and_then(|list| list.iter().find(|c| c["identity"] == identity).cloned())
                .unwrap_or_default()
        };
        let (own, other) = (of(&mesh.identity("client")), of(&mesh.identity("web")));
        if own["state"] == "valid" && other["state"] == "refused" {
            Ok(())
        } else {
            Err(format!("{own} {other}"))
        }
    });
    assert!(mesh.ca.as_ref().unwrap().log().contains("shop/sa/web"));
    drop(agent);
    mesh.ca = None;
}

/// Its serial number on the list: streams that live are cut off within seconds, new connections are refused with the
/// cause. An agent whose own certificate is on the list has another one signed.
fn revoked_peer_is_cut_off() {
    let list = run::folder().join(run::unique());
    let mut mesh = Mesh::plan(2)
        .pods(0, &["client", "other"])
        .pod(1, "web")
        .outsider(0, "peer")
        .strict()
        .prepare();
    let ca = mesh.ca.as_ref().unwrap();
    let authority = ca.authority();
    fs::write(&list, authority.crl(1, &[])).unwrap();
    let args = ["--crl", list.to_str().unwrap()];
    for node in [0, 1] {
        mesh.run_agent(node, &args);
    }
    for node in [0, 1] {
        mesh.agent(node).wait_ready();
    }
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    let server = Server::echo(web, web.v4(8080));
    let load = Load::start(mesh.pod("other"), server.addr);
    let agent = mesh.agent_of("web");
    let state = || agent.json(&["certs"])["revocation_list"].clone();
    let leaf = Leaf::of(spiffe("cluster.local", "shop", "peer")).serial(0x1234_5678);
    let config = Arc::new(
        authority
            .leaf(&leaf)
            .client(&Authority::store(&[&authority])),
    );
    hbone::run(async {
        let mut peer = Peer::open(mesh.pod("peer"), web.v4(hbone::PORT), &config)
            .await
            .unwrap();
        let mut live = peer.connect(server.addr).await.unwrap();
        live.ping().await.unwrap();
        // A list that cannot be read changes nothing, and one sees it.
        let garbled = "-----BEGIN X509 CRL-----\nnonsense\n-----END X509 CRL-----\n";
        fs::write(&list, garbled).unwrap();
        eventually_some("the error is shown", Duration::from_secs(20), || {
            let now = state();
            if now["error"].is_string() {
                Ok(())
            } else {
                Err(now.to_string())
            }
        });
        live.ping().await.unwrap();
        let began = Instant::now();
        fs::write(&list, authority.crl(2, &[hex("12345678")])).unwrap();
        while live.ping().await.is_ok() {
            assert!(began.elapsed() < Duration::from_secs(8), "it lives on");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let again = Peer::open(mesh.pod("peer"), web.v4(hbone::PORT), &config).await;
        let refused = match again {
            Err(refused) => refused,
            Ok(mut peer) => peer.connect(server.addr).await.expect_err("it is revoked"),
        };
        assert!(refused.is_connection(), "{refused}");
    });
    let now = state();
    assert_eq!(
        (&now["revoked"], &now["error"]),
        (&Value::from(1), &Value::Null)
    );
    eventually("the cause is counted", Duration::from_secs(5), || {
        let labels = [("role", "server"), ("cause", "revoked")];
        agent
            .metrics()
            .sum("mesh_tls_handshake_failures_total", &labels)
            >= 1.0
    });
    // The list garbled again: the last good one stays.
    fs::write(&list, "").unwrap();
    eventually("the error is shown again", Duration::from_secs(20), || {
        state()["error"].is_string()
    });
    let status = hbone::run(async {
        let mut peer = Peer::open(mesh.pod("peer"), web.v4(hbone::PORT), &config).await?;
        Ok::<_, hbone::Refused>(peer.connect(server.addr).await?.status)
    });
    assert!(status.is_err_and(|refused| refused.is_connection()));
    // An agent's own.
    must_echo(client, server.addr);
    let id = mesh.identity("client");
    let old = serial(mesh.agent_of("client"), &id);
    fs::write(&list, authority.crl(3, &[hex("12345678"), hex(&old)])).unwrap();
    eventually("another certificate", Duration::from_secs(20), || {
        serial(mesh.agent_of("client"), &id) != old
    });
    eventually("served with it", Duration::from_secs(10), || {
        traffic::connect(client, server.addr).is_ok_and(|s| ping(&s).is_ok())
    });
    load.finish();
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len() / 2)
        .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).expect("hexadecimal"))
        .collect()
}

/// An operator's own root with an intermediate in the agent's folder: it signs below it, peers see the whole chain.
fn intermediate_of_the_operator() {
    let mut mesh = Mesh::plan(1)
        .pods(0, &["client", "web"])
        .outsider(0, "peer")
        .prepare();
    let root = Authority::root("the operator's");
    let below = root.intermediate("of this mesh");
    let agent = mesh.prepare_agent(0, &[]);
    agent.seed_authority(&below);
    mesh.start_prepared(0, agent);
    let web = mesh.pod("web");
    let server = Server::echo(web, web.v4(8080));
    must_echo(mesh.pod("client"), server.addr);
    // A peer that trusts the root alone.
    let config = Arc::new(
        below
            .issue(&spiffe("cluster.local", "shop", "peer"))
            .client(&Authority::store(&[&root])),
    );
    let status = hbone::run(async {
        let mut peer = Peer::open(mesh.pod("peer"), web.v4(hbone::PORT), &config).await?;
        Ok::<_, hbone::Refused>(peer.connect(server.addr).await?.status)
    });
    assert_eq!(status.unwrap(), StatusCode::OK);
}

/// No private key of a workload is in the state folder or the log; the authority's is readable by its owner alone.
fn keys_stay_in_memory() {
    use std::os::unix::fs::MetadataExt;
    let mesh = Mesh::plan(1).pods(0, &["client", "web"]).start();
    let agent = mesh.agent(0);
    must_echo_own(&mesh);
    let mut keys = 0;
    let mut folders = vec![agent.state_folder()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
                continue;
            }
            let text = fs::read(entry.path()).unwrap();
            if String::from_utf8_lossy(&text).contains("PRIVATE KEY") {
                keys += 1;
                assert_eq!(entry.metadata().unwrap().mode() & 0o777, 0o600);
            }
        }
    }
    assert_eq!(keys, 1, "the authority's own");
    assert!(!agent.log().contains("PRIVATE KEY"));
}

fn must_echo_own(mesh: &Mesh) {
    let web = mesh.pod("web");
    let server = Server::echo(web, web.v4(8080));
    must_echo(mesh.pod("client"), server.addr);
}
