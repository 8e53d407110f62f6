//! The certificate authority for a mesh without Kubernetes, as an operator runs it, asked by Istio's own client and looked
//! at by openssl.

use std::{
    fs,
    net::{IpAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_tests::{
    Config, Node,
    agent::binary,
    bed::needs_mesh,
    ca::CaServer,
    command,
    config::Workload,
    eventually, prereq, run, tests,
    traffic::{self, End},
};

tests! {
    istio_client_gets_a_chain_that_openssl_accepts,
    refusals_say_what_to_do,
    a_node_gets_only_what_is_placed_on_it,
    the_root_is_replaced_while_it_signs,
    an_intermediate_of_the_operators_signs,
    its_port_speaks_tls_1_3_only,
    silent_connections_hold_up_nobody,
    a_crash_and_a_stop_lose_nothing,
    what_keeps_it_from_starting_is_said,
}

pub(crate) fn teardown() {}

const LONG: Duration = Duration::from_secs(30);
const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const DB: &str = "spiffe://cluster.local/ns/shop/sa/db";

/// A machine with an authority, and who is placed where: `web` on n1, `db` on n2.
struct Stage {
    node: Arc<Node>,
    config: Config,
    ca: CaServer,
    /// Where a client's files go.
    files: PathBuf,
}

fn stage() -> Stage {
    stage_with(&[])
}

fn stage_with(args: &[&str]) -> Stage {
    needs_mesh();
    prereq::programs(&["openssl"]);
    prereq::istio_peer();
    let node = Node::new();
    let config = Config::new();
    place(&config, "web", "n1", 1);
    place(&config, "db", "n2", 2);
    let ca = CaServer::start_with(&node, &config, args);
    let files = run::folder().join(run::unique());
    fs::create_dir_all(&files).unwrap();
    Stage {
        node,
        config,
        ca,
        files,
    }
}

/// A workload whose service account has its name.
fn place(config: &Config, name: &str, node: &str, host: u8) {
    let workload = Workload {
        namespace: "shop".into(),
        name: name.into(),
        labels: Vec::new(),
        node: node.into(),
        addresses: vec![IpAddr::from([10, 99, 0, host])],
        netns: None,
        service_account: Some(name.into()),
        protocol: None,
        weight: None,
        ports: Vec::new(),
    };
    config.workload(&workload);
}

fn said(out: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    )
}

impl Stage {
    /// Asks with Istio's client, as a node agent does, with the roots in `root`.
    fn ask_trusting(&self, root: &Path, token: &Path, identity: &str, more: &[&str]) -> Output {
        let mut command = Command::new(prereq::istio_peer());
        command
            .args(["ca-client", "--address", &self.ca.address().to_string()])
            .args(["--identity", identity, "--root"])
            .arg(root)
            .arg("--token-file")
            .arg(token)
            .arg("--out")
            .arg(&self.files)
            .args(more);
        command::output(&self.node, &mut command, LONG)
    }

    fn ask(&self, token: &Path, identity: &str) -> Output {
        self.ask_trusting(&self.ca.root_file(), token, identity, &["--impersonate"])
    }

    fn gets(&self, token: &Path, identity: &str) {
        let out = self.ask(token, identity);
        assert!(out.status.success(), "{identity}: {}", said(&out));
    }

    /// The reason, as Istio's client prints it.
    fn refused(&self, token: &Path, identity: &str) -> String {
        let out = self.ask(token, identity);
        assert!(!out.status.success(), "{identity} was signed");
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        text.lines().last().unwrap_or_default().to_owned()
    }

    fn openssl(&self, args: &[&str]) -> (bool, String) {
        let mut command = Command::new("openssl");
        command.args(args).current_dir(&self.files);
        let out = command::output(&self.node, &mut command, LONG);
        (out.status.success(), said(&out))
    }

    fn must_openssl(&self, args: &[&str]) -> String {
        let (good, text) = self.openssl(args);
        assert!(good, "openssl {}: {text}", args.join(" "));
        text
    }

    /// Verifies what the client got last, with these roots, as a server's and as a client's certificate.
    fn verify(&self, roots: &Path) {
        let roots = roots.display().to_string();
        for purpose in ["sslserver", "sslclient"] {
            self.must_openssl(&[
                "verify",
                "-x509_strict",
                "-purpose",
                purpose,
                "-CAfile",
                &roots,
                "-untrusted",
                "chain.pem",
                "chain.pem",
            ]);
        }
    }

    fn issuer(&self) -> String {
        self.must_openssl(&["x509", "-in", "chain.pem", "-noout", "-issuer"])
    }

    fn got_roots(&self) -> usize {
        let pem = fs::read_to_string(self.files.join("roots.pem")).unwrap();
        pem.matches("BEGIN CERTIFICATE").count()
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.files.join(name);
        fs::write(&path, content).unwrap();
        path
    }
}

fn istio_client_gets_a_chain_that_openssl_accepts() {
    let stage = stage();
    let token = stage.ca.token("n1");
    stage.gets(&token, WEB);
    stage.verify(&stage.ca.root_file());
    stage.verify(&stage.files.join("roots.pem"));
    let text = stage.must_openssl(&["x509", "-in", "chain.pem", "-noout", "-text"]);
    let names = text.split("Subject Alternative Name").nth(1).unwrap();
    assert_eq!(names.lines().nth(1).unwrap().trim(), format!("URI:{WEB}"));
    assert!(text.contains("CA:FALSE"), "{text}");
    // Istio's client asks for an hour.
    stage.must_openssl(&["x509", "-in", "chain.pem", "-noout", "-checkend", "3500"]);
    assert!(
        !stage
            .openssl(&["x509", "-in", "chain.pem", "-noout", "-checkend", "3700"])
            .0
    );
    eventually("the audit log has it", LONG, || {
        stage.ca.log().contains(" ca: signed ")
    });
    let log = stage.ca.log();
    let signed = log
        .lines()
        .find(|line| line.contains(" ca: signed "))
        .expect("an audit line");
    assert!(
        signed.contains("node=\"n1\"") && signed.contains(WEB) && signed.contains("serial="),
        "{signed}"
    );
    assert!(
        !log.contains(fs::read_to_string(&token).unwrap().trim()),
        "the token is in the log"
    );

    // As a gateway would ask, for itself.
    let out = stage.ask_trusting(&stage.ca.root_file(), &token, WEB, &[]);
    assert!(
        !out.status.success()
            && said(&out).contains("the request names no identity: set ImpersonatedIdentity")
    );
}

fn refusals_say_what_to_do() {
    let stage = stage();
    let token = fs::read_to_string(stage.ca.token("n1")).unwrap();
    let good = stage.file("good", &token);
    stage.gets(&good, WEB);
    let altered = {
        let (signed, signature) = token.trim().rsplit_once('.').unwrap();
        let (at, rest) = signature.split_at(20);
        let other = if rest.starts_with('A') { 'B' } else { 'A' };
        format!("{signed}.{at}{other}{}", &rest[1..])
    };
    let other = CaServer::start_with(&Node::new(), &stage.config, &[]);
    let foreign = fs::read_to_string(other.token("n1")).unwrap();
    for (content, why) in [
        ("", "no credential came with the request"),
        (
            "rubbish",
            "the credential is no token of `mesh-agent ca token`",
        ),
        (&altered, "the token's signature is wrong"),
        (
            &foreign,
            "which this authority does not have: make it with the --state that the authority runs with",
        ),
    ] {
        let reason = stage.refused(&stage.file("token", content), WEB);
        assert!(
            reason.contains("Unauthenticated") && reason.contains(why),
            "{reason}"
        );
    }

    let short = stage.ca.cli("token", &["--node", "n1", "--ttl", "1s"]);
    let short = stage.file("short", &short);
    eventually("the token expires", LONG, || {
        let out = stage.ask(&short, WEB);
        !out.status.success() && said(&out).contains("the token expired at ")
    });

    let made = stage.ca.cli("token", &["--node", "n1", "-o", "json"]);
    let made: serde_json::Value = serde_json::from_str(&made).unwrap();
    let one = stage.file("one", made["token"].as_str().unwrap());
    stage.gets(&one, WEB);
    stage.ca.cli("revoke", &[made["id"].as_str().unwrap()]);
    assert!(stage.refused(&one, WEB).contains("is revoked"));
    stage.gets(&good, WEB);
    stage.ca.cli("revoke", &["--node", "n1"]);
    assert!(stage.refused(&good, WEB).contains("is revoked"));
    stage.gets(&stage.ca.token("n1"), WEB);
    stage.gets(&stage.ca.token("n2"), DB);

    // A list that does not parse changes nothing, and one sees it.
    let list = stage.ca.state().join("revoked-tokens");
    let before = fs::read_to_string(&list).unwrap();
    fs::write(&list, format!("{before}not a name\n")).unwrap();
    assert!(stage.refused(&good, WEB).contains("is revoked"));
    eventually("the log says that the list is not used", LONG, || {
        stage.ca.log().contains("changed and is not used")
    });
}

fn a_node_gets_only_what_is_placed_on_it() {
    let stage = stage();
    let (n1, n2) = (stage.ca.token("n1"), stage.ca.token("n2"));
    stage.gets(&n1, WEB);
    stage.gets(&n2, DB);
    let reason = stage.refused(&n1, DB);
    assert!(
        reason.contains("PermissionDenied")
            && reason.contains("is placed on node n1: its Workloads are on another node"),
        "{reason}"
    );
    for identity in [
        "spiffe://cluster.local/ns/shop/sa/nobody",
        "spiffe://cluster.local/ns/other/sa/web",
        "spiffe://else.where/ns/shop/sa/web",
    ] {
        let reason = stage.refused(&n1, identity);
        assert!(
            reason.contains("the configuration has no workload with the identity"),
            "{reason}"
        );
    }
    assert!(
        stage
            .refused(&n1, "spiffe://cluster.local/web")
            .contains("is no identity of a workload")
    );

    // A workload that moves takes its identity along.
    place(&stage.config, "db", "n1", 2);
    eventually("db is n1's", LONG, || stage.ask(&n1, DB).status.success());
    assert!(
        stage
            .refused(&n2, DB)
            .contains("its Workloads are on another node")
    );
    // A configuration that is refused changes nothing.
    stage.config.put("broken.yaml", "kind: [");
    eventually("it is refused", LONG, || {
        stage
            .ca
            .log()
            .contains("the last good configuration stays in effect")
    });
    stage.gets(&n1, DB);
}

fn the_root_is_replaced_while_it_signs() {
    let stage = stage();
    let token = stage.ca.token("n1");
    let roots = stage.ca.root_file();
    let old = stage.file("old.pem", &fs::read_to_string(&roots).unwrap());
    stage.gets(&token, WEB);
    let old_issuer = stage.issuer();

    stage.ca.rotate("prepare");
    stage.gets(&token, WEB);
    assert_eq!((stage.issuer(), stage.got_roots()), (old_issuer.clone(), 2));
    stage.verify(&old);
    let mut early = Command::new(binary());
    early
        .args(["ca", "rotate-root", "activate", "--state"])
        .arg(stage.ca.state());
    let out = command::output(&stage.node, &mut early, LONG);
    assert!(
        out.status.code() == Some(1) && said(&out).contains("takes up to 24h; the last step was"),
        "{}",
        said(&out)
    );

    stage.ca.rotate("activate");
    eventually("the port has a certificate of the new root", LONG, || {
        let out = stage.ask_trusting(&old, &token, WEB, &["--impersonate"]);
        said(&out).contains("certificate signed by unknown authority")
    });
    stage.gets(&token, WEB);
    assert_ne!(stage.issuer(), old_issuer);
    assert_eq!(stage.got_roots(), 2);
    stage.verify(&roots);

    stage.ca.rotate("finish");
    stage.gets(&token, WEB);
    assert_eq!(stage.got_roots(), 1);
    stage.verify(&roots);
    let old = old.display().to_string();
    assert!(
        !stage.openssl(&["verify", "-CAfile", &old, "chain.pem"]).0,
        "the old root still vouches"
    );
    eventually("the log says which roots are in effect", LONG, || {
        stage.ca.log().contains("roots in effect")
    });
}

fn an_intermediate_of_the_operators_signs() {
    let stage = stage();
    let ca = [
        ("root", "/CN=operator root", ""),
        ("signer", "/CN=operator intermediate", "root"),
    ];
    for (name, subject, by) in ca {
        let (key, pem, issuer_pem, issuer_key) = (
            format!("{name}.key"),
            format!("{name}.pem"),
            format!("{by}.pem"),
            format!("{by}.key"),
        );
        let mut args = vec![
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "30",
            "-subj",
            subject,
            "-keyout",
            &key,
            "-out",
            &pem,
            "-addext",
            "keyUsage=critical,keyCertSign,cRLSign",
        ];
        if !by.is_empty() {
            args.extend(["-CA", &issuer_pem, "-CAkey", &issuer_key]);
        }
        stage.must_openssl(&args);
    }
    // As the runbook says.
    let folder = stage.ca.state().join("current");
    for (from, to) in [
        ("signer.key", "key.pem"),
        ("signer.pem", "chain.pem"),
        ("root.pem", "roots.pem"),
    ] {
        fs::copy(stage.files.join(from), folder.join(to)).unwrap();
    }
    stage.ca.restart();
    let token = stage.ca.token("n1");
    stage.gets(&token, WEB);
    let chain = fs::read_to_string(stage.files.join("chain.pem")).unwrap();
    assert_eq!(
        chain.matches("BEGIN CERTIFICATE").count(),
        2,
        "leaf and intermediate"
    );
    assert!(stage.issuer().contains("operator intermediate"));
    stage.verify(&stage.files.join("root.pem"));
}

fn its_port_speaks_tls_1_3_only() {
    let stage = stage_with(&["--dns-name", "ca.example", "--ip", "192.0.2.7"]);
    let to = stage.ca.address().to_string();
    let roots = stage.ca.root_file().display().to_string();
    let dial = |more: &[&str]| {
        let mut args = vec![
            "s_client",
            "-connect",
            &to,
            "-CAfile",
            &roots,
            "-verify_return_error",
            "-alpn",
            "h2",
        ];
        args.extend(more);
        stage.openssl(&args)
    };
    let (good, text) = dial(&["-tls1_3", "-verify_hostname", "ca.example"]);
    assert!(
        good && text.contains("ALPN protocol: h2") && text.contains("Verify return code: 0"),
        "{text}"
    );
    assert!(dial(&["-verify_ip", "192.0.2.7"]).0);
    assert!(!dial(&["-verify_hostname", "other.example"]).0);
    assert!(!dial(&["-tls1_2"]).0);
    let (_, text) = stage.openssl(&["s_client", "-connect", &to, "-alpn", "http/1.1"]);
    assert!(text.contains("no application protocol"), "{text}");
}

fn silent_connections_hold_up_nobody() {
    let stage = stage();
    let token = stage.ca.token("n1");
    let stranger = stage.node.pod("stranger");
    let silent: Vec<TcpStream> = (0..200)
        .map(|_| traffic::connect(&stranger, stage.ca.address()).unwrap())
        .collect();
    let began = Instant::now();
    stage.gets(&token, WEB);
    // A handshake may take 10 s; whoever has to wait for these to end waits that long.
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "{:?}",
        began.elapsed()
    );
    // One source has 64 places.
    let (_, end) = traffic::read_to_end(silent.last().unwrap());
    assert!(matches!(end, End::Fin | End::Reset), "{end:?}");
    drop(silent);
    eventually("the stranger has places again", LONG, || {
        let mut command = Command::new("openssl");
        let to = stage.ca.address().to_string();
        command.args(["s_client", "-connect", &to, "-alpn", "h2"]);
        command::output(&stranger, &mut command, LONG)
            .status
            .success()
    });
}

fn a_crash_and_a_stop_lose_nothing() {
    let stage = stage();
    let token = stage.ca.token("n1");
    stage.gets(&token, WEB);
    let roots = fs::read_to_string(stage.ca.root_file()).unwrap();
    stage.ca.restart();
    stage.gets(&token, WEB);
    assert_eq!(
        fs::read_to_string(stage.ca.root_file()).unwrap(),
        roots,
        "the root is the same"
    );
    assert_eq!(stage.ca.stop(), Some(0), "{}", stage.ca.log());
    let out = stage.ask(&token, WEB);
    assert!(
        !out.status.success() && said(&out).contains("connection refused"),
        "{}",
        said(&out)
    );
}

fn what_keeps_it_from_starting_is_said() {
    let stage = stage();
    let try_serve = |state: &Path, config: &Path, more: &[&str]| {
        let mut command = Command::new(binary());
        command
            .args(["ca", "serve", "--state"])
            .arg(state)
            .arg("--config")
            .arg(config)
            .args(more);
        let out = command::output(&stage.node, &mut command, LONG);
        (out.status.code(), said(&out))
    };
    let good = stage.config.path();
    let fresh = stage.files.join("fresh");
    let own = stage.ca.address().to_string();
    let broken = stage.files.join("broken");
    fs::create_dir(&broken).unwrap();
    fs::write(broken.join("x.yaml"), "kind: [").unwrap();
    for (state, config, more, code, why) in [
        (
            &*fresh,
            &*stage.files.join("none"),
            &[][..],
            2,
            "is not a directory",
        ),
        (&fresh, &broken, &[], 1, "the configuration is refused"),
        (
            &fresh,
            good,
            &["--revoked-tokens", "/nonexistent"],
            1,
            "/nonexistent: No such file",
        ),
        (&fresh, good, &["--listen", &own], 1, "cannot listen on"),
        (
            &fresh,
            good,
            &["--dns-name", "\u{e9}"],
            1,
            "no certificate for the port",
        ),
    ] {
        let (is, text) = try_serve(state, config, more);
        assert!(
            is == Some(code) && text.contains(why),
            "{why}: {is:?} {text}"
        );
    }
    let open = stage.files.join("open");
    fs::create_dir(&open).unwrap();
    let (is, text) = try_serve(&open, good, &[]);
    assert!(is == Some(1) && text.contains("chmod 700"), "{text}");
}
