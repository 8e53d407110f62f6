//! Our client against Istio's own certificate authority: its gRPC service and its authorization of node agents, from
//! tests/peers/istio.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use mesh_agent::{
    identity::{CaError, CertificateAuthority, IstioCa, IstioCaOptions, Signed},
    model::SpiffeId,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData as _, SanType};
use rustls_pki_types::CertificateDer;
use x509_parser::{extensions::GeneralName, prelude::FromDer as _};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const HOUR: Duration = Duration::from_secs(3600);

/// A running authority; killed by its id on drop.
struct Peer {
    child: Child,
    dir: tempfile::TempDir,
    address: String,
}

impl Peer {
    /// `None`, with a word on standard error, where the peer is not built. In CI that is a failure.
    fn start(args: &[&str]) -> Option<Peer> {
        // .../target/debug/deps/istio_ca-HASH
        let test = std::env::current_exe().unwrap();
        let program = test.ancestors().nth(3).unwrap().join("peers/istio-peer");
        if !program.is_file() {
            let ci = std::env::var("CI").is_ok_and(|v| v == "true" || v == "1");
            assert!(!ci, "missing on a CI machine: {}", program.display());
            eprintln!("skipped: needs istio-peer, which `cargo xtask deps test` builds");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        fs::write(
            dir.path().join("token"),
            "the agent's token\n".replace(' ', "-"),
        )
        .unwrap();
        let mut child = Command::new(program)
            .args([
                "ca-server",
                "--pod",
                "shop/web",
                "--cluster",
                "east",
                "--dir",
            ])
            .arg(dir.path())
            .arg("--token-file")
            .arg(dir.path().join("token"))
            .args(args)
            .stdout(Stdio::piped())
            .stderr(fs::File::create(dir.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address = line.trim().strip_prefix("listening ");
        let address = address
            .unwrap_or_else(|| panic!("{}", fs::read_to_string(dir.path().join("log")).unwrap()));
        Some(Peer {
            address: address.to_owned(),
            child,
            dir,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn options(&self) -> IstioCaOptions {
        let mut options = IstioCaOptions::new(self.address.clone());
        options.root_file = Some(self.path("root.pem"));
        options.token_file = Some(self.path("token"));
        options.cluster_id = "east".to_owned();
        // Other tests may have the machine's two cores.
        options.connect_timeout = Duration::from_secs(20);
        options.call_timeout = Duration::from_secs(20);
        options
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn csr(identity: &str) -> (KeyPair, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.try_into().unwrap())];
    let csr = params.serialize_request(&key).unwrap().pem().unwrap();
    (key, csr)
}

async fn ask(options: IstioCaOptions, identity: &str) -> Result<(KeyPair, Signed), CaError> {
    let ca = IstioCa::new(options).unwrap();
    let id: SpiffeId = identity.parse().unwrap();
    let (key, csr) = csr(identity);
    ca.sign(&id, &csr, HOUR).await.map(|signed| (key, signed))
}

/// The leaf is for the key and the identity, and the chain leads to one of the roots.
fn check(key: &KeyPair, signed: &Signed, dir: &Path) {
    let (_, leaf) = x509_parser::certificate::X509Certificate::from_der(&signed.chain[0]).unwrap();
    assert_eq!(leaf.public_key().raw, key.subject_public_key_info());
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(matches!(&*names.value.general_names, [GeneralName::URI(uri)] if *uri == WEB));
    let life = leaf.validity().time_to_expiration().unwrap();
    assert!((3500..=3600).contains(&life.whole_seconds()), "{life}");

    let write = |name: &str, certificates: &[CertificateDer<'_>]| {
        let sections = certificates
            .iter()
            .map(|der| pem::encode(&pem::Pem::new("CERTIFICATE", der.as_ref())));
        let path = dir.join(name);
        fs::write(&path, sections.collect::<String>()).unwrap();
        path
    };
    let (leaf, above, roots) = (
        write("leaf", &signed.chain[..1]),
        write("above", &signed.chain),
        write("roots", &signed.roots),
    );
    let verified = Command::new("openssl")
        .args(["verify", "-CAfile"])
        .arg(roots)
        .arg("-untrusted")
        .args([above, leaf])
        .output();
    match verified {
        Ok(out) => assert!(out.status.success(), "{out:?}"),
        Err(error) => eprintln!("openssl does not look at the chain: {error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn istio_signs_for_a_pod_of_the_node() {
    let Some(peer) = Peer::start(&[]) else { return };
    let (key, signed) = ask(peer.options(), WEB).await.unwrap();
    assert_eq!((signed.chain.len(), signed.roots.len()), (1, 1));
    check(&key, &signed, peer.dir.path());
    // By the name that istiod has in a cluster, dialled by address.
    let mut options = peer.options();
    options.server_name = Some("istiod.istio-system.svc".to_owned());
    ask(options, WEB).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn istio_signs_with_an_intermediate() {
    let Some(peer) = Peer::start(&["--intermediate"]) else {
        return;
    };
    let (key, signed) = ask(peer.options(), WEB).await.unwrap();
    // Istio's chain ends with the root, which is no part of ours.
    assert_eq!((signed.chain.len(), signed.roots.len()), (2, 1));
    check(&key, &signed, peer.dir.path());
}

#[tokio::test(flavor = "multi_thread")]
async fn istio_refuses_and_we_say_so() {
    let Some(peer) = Peer::start(&["--max-ttl", "2h"]) else {
        return;
    };
    let refused = async |options, identity| match ask(options, identity).await {
        Err(CaError::Refused(why)) => why.to_string(),
        other => panic!("{other:?}"),
    };
    // Istio does not say why, so that nobody learns who is where.
    let why = refused(peer.options(), "spiffe://cluster.local/ns/shop/sa/db").await;
    assert!(
        why.contains("request impersonation authentication failure"),
        "{why}"
    );
    let mut elsewhere = peer.options();
    elsewhere.cluster_id = "west".to_owned();
    let why = refused(elsewhere, WEB).await;
    assert!(
        why.contains("request impersonation authentication failure"),
        "{why}"
    );
    fs::write(peer.path("other"), "another").unwrap();
    let mut other = peer.options();
    other.token_file = Some(peer.path("other"));
    let why = refused(other, WEB).await;
    assert!(
        why.contains("request authenticate failure (the credential is in"),
        "{why}"
    );
    let ca = IstioCa::new(peer.options()).unwrap();
    let id: SpiffeId = WEB.parse().unwrap();
    let (_, csr) = csr(WEB);
    let error = ca
        .sign(&id, &csr, 100 * HOUR)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("is greater than the max allowed TTL"),
        "{error}"
    );
    // The same client goes on.
    ca.sign(&id, &csr, HOUR).await.unwrap();
}
