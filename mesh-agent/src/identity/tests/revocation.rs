//! Revocation lists: both sides, at the handshake and after it, and files that are broken.

use std::{
    fs,
    sync::Arc,
    time::{Duration, SystemTime},
};

use proptest::prelude::*;
use rustls::HandshakeKind;

use super::{
    super::{crl::Crls, *},
    support::*,
};

struct Scene {
    authority: Authority,
    _dir: tempfile::TempDir,
    crl: std::path::PathBuf,
    node: Node,
}

async fn scene(authority: Authority) -> Scene {
    let dir = tempfile::tempdir().unwrap();
    let crl = dir.path().join("revoked.crl");
    let ca = authority.ca();
    fs::write(&crl, authority.keys().list(&[])).unwrap();
    let options = IdentityOptions {
        crl: Some(crl.clone()),
        ..IdentityOptions::default()
    };
    let node = Node::start(ca, options).with(&["web", "db"]).await;
    Scene {
        authority,
        _dir: dir,
        crl,
        node,
    }
}

impl Scene {
    async fn publish(&self, contents: &[u8]) {
        let before = self.node.trust_now();
        replace(&self.crl, contents);
        self.node.trust_after(before).await;
    }
}

#[tokio::test]
async fn a_revoked_client_is_cut_off() {
    let scene = scene(Authority::new()).await;
    let node = &scene.node;
    let (web, db) = (node.of("web"), node.of("db"));
    let shaken = shake(&web.client, &db.server).unwrap();
    let chain = shaken.server.peer_certificates().unwrap();
    assert_eq!(node.standing(chain, Role::Client), Standing::Good);

    let list = scene.authority.keys().list(&["00ff", web.serial()]);
    scene.publish(list.as_bytes()).await;

    assert_eq!(
        node.standing(chain, Role::Client),
        Standing::Close(PeerRefused::Revoked)
    );
    // Configurations that somebody still holds: a session that was made before is resumed by rustls without a look at
    // the certificate, so it is the look afterwards that finds it.
    let resumed = shake(&web.client, &db.server).unwrap();
    assert_eq!(
        resumed.server.handshake_kind(),
        Some(HandshakeKind::Resumed)
    );
    let chain = resumed.server.peer_certificates().unwrap();
    assert_eq!(node.verify_client(chain), Err(PeerRefused::Revoked));
    // The new configuration does not know the session.
    let failed = shake(&web.client, &node.of("db").server).unwrap_err();
    assert_eq!(failed.cause(), "revoked");
}

#[tokio::test]
async fn a_revoked_server_is_not_talked_to_and_replaces_its_own_certificate() {
    let scene = scene(Authority::new()).await;
    let node = &scene.node;
    let (web, db) = (node.of("web"), node.of("db"));
    let chain = shake(&web.client, &db.server)
        .unwrap()
        .client
        .peer_certificates()
        .unwrap()
        .to_vec();
    scene
        .publish(scene.authority.keys().list(&[db.serial()]).as_bytes())
        .await;
    assert_eq!(node.verify_server(&chain), Err(PeerRefused::Revoked));
    let failed = shake(&node.of("web").client, &db.server).unwrap_err();
    assert!(matches!(failed, Failed::Client(_)));
    assert_eq!(failed.cause(), "revoked");
    // The node sees its own serial on the list and asks for another.
    until("a certificate that is not revoked", || {
        node.of("db").serial() != db.serial()
    })
    .await;
    shake(&node.of("web").client, &node.of("db").server).unwrap();
}

#[tokio::test]
async fn intermediates_revoke_and_are_revoked() {
    let scene = scene(Authority::intermediate()).await;
    let node = &scene.node;
    let (web, db) = (node.of("web"), node.of("db"));
    let chain = web.certified.cert.clone();
    assert_eq!(chain.len(), 2, "leaf and intermediate");
    shake(&web.client, &db.server).unwrap();
    let list = scene.authority.keys().list(&[web.serial()]);
    scene.publish(list.as_bytes()).await;
    assert_eq!(node.verify_client(&chain), Err(PeerRefused::Revoked));
    let failed = shake(&web.client, &node.of("db").server).unwrap_err();
    assert_eq!(failed.cause(), "revoked");

    // The root's list names the intermediate: every leaf below it falls.
    let intermediate = super::super::roots::describe(&chain[1]).unwrap().serial;
    let root = scene.authority.above.as_ref().unwrap();
    scene.publish(root.list(&["01"]).as_bytes()).await;
    assert!(node.verify_client(&chain).is_ok());
    scene.publish(root.list(&[&intermediate]).as_bytes()).await;
    assert_eq!(
        node.verify_client(&db.certified.cert),
        Err(PeerRefused::Revoked)
    );
}

#[tokio::test]
async fn a_broken_list_keeps_the_last_good_one_and_is_seen() {
    let scene = scene(Authority::new()).await;
    let node = &scene.node;
    let (web, db) = (node.of("web"), node.of("db"));
    let keys = scene.authority.keys();
    let good = keys.list(&[web.serial()]);
    scene.publish(good.as_bytes()).await;
    let revoked = |node: &Node| {
        shake(&web.client, &node.of("db").server)
            .unwrap_err()
            .cause()
    };
    let error = || node.status().revocation.unwrap().error;
    assert_eq!((revoked(node), error().is_none()), ("revoked", true));

    let half = &good[..good.len() / 2];
    for broken in [&b"hello"[..], half.as_bytes(), b"", &[0x30, 0x82, 0xff]] {
        replace(&scene.crl, broken);
        until("an error", || error().is_some()).await;
        assert_eq!(revoked(node), "revoked");
        replace(&scene.crl, good.as_bytes());
        until("no error", || error().is_none()).await;
    }
    fs::remove_file(&scene.crl).unwrap();
    until("an error", || error().is_some()).await;
    assert_eq!(revoked(node), "revoked");
    assert!(node.status().revocation.unwrap().errors >= 4);

    // Several lists of one issuer add up, in whatever order; and an overdue one counts.
    let yesterday = SystemTime::now() - Duration::from_secs(7200);
    let both = keys.list(&[]) + &keys.list_until(&[web.serial()], yesterday);
    replace(&scene.crl, both.as_bytes());
    until("two lists", || {
        node.status().revocation.unwrap().lists.len() == 2
    })
    .await;
    assert_eq!((revoked(node), error().is_none()), ("revoked", true));
    assert!(node.status().revocation.unwrap().lists[1].overdue);
    drop(db);
}

#[tokio::test]
async fn a_list_that_another_key_signed_has_no_effect_and_is_seen() {
    let scene = scene(Authority::new()).await;
    let node = &scene.node;
    let web = node.of("web");
    // The same name, another key.
    let (_, root) = x509_parser::pem::parse_x509_pem(scene.authority.bundle().as_bytes()).unwrap();
    let name = root.parse_x509().unwrap();
    let name = name.subject().iter_common_name().next().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let forged = ca_params(name.as_str().unwrap()).self_signed(&key).unwrap();
    let forged = Keys {
        issuer: rcgen::Issuer::from_ca_cert_der(forged.der(), key).unwrap(),
    };
    scene.publish(forged.list(&[web.serial()]).as_bytes()).await;
    assert!(node.verify_client(&web.certified.cert).is_ok());
    let error = node.status().revocation.unwrap().error.unwrap();
    assert!(
        error.message.contains("not signed by the root"),
        "{error:?}"
    );

    // Someone else's list says nothing of ours, and is no error: it may be of an intermediate that was not met yet.
    let other = Authority::new();
    other.ca();
    scene
        .publish(other.keys().list(&[web.serial()]).as_bytes())
        .await;
    assert!(node.verify_client(&web.certified.cert).is_ok());
    assert!(node.status().revocation.unwrap().error.is_none());
}

#[tokio::test]
async fn a_list_that_cannot_be_read_at_the_start_keeps_the_agent_from_starting() {
    let authority = Authority::new();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("revoked.crl");
    let start = || {
        let options = IdentityOptions {
            crl: Some(path.clone()),
            ..IdentityOptions::default()
        };
        Identities::new(authority.ca(), options).map(|_| ())
    };
    let error = start().unwrap_err().to_string();
    assert!(
        error.contains("revoked.crl") && error.contains("No such file"),
        "{error}"
    );
    fs::write(&path, "-----BEGIN X509 CRL-----\n????").unwrap();
    let error = start().unwrap_err().to_string();
    assert!(error.contains("cannot be used"), "{error}");
    authority.ca();
    fs::write(&path, authority.keys().list(&[])).unwrap();
    start().unwrap();
}

#[test]
fn lists_are_read_in_pem_and_der() {
    let authority = Authority::new();
    authority.ca();
    let pem = authority.keys().list(&["0102"]);
    let (_, der) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
    for bytes in [pem.as_bytes(), &der.contents] {
        let crls = Crls::read(bytes).unwrap();
        assert_eq!((crls.lists().len(), crls.lists()[0].revoked), (1, 1));
    }
    let trailing = [&der.contents[..], &[0]].concat();
    assert!(Crls::read(&trailing).is_err());
}

proptest! {
    #[test]
    fn no_list_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..400, with: u8) {
        static GOOD: std::sync::LazyLock<Arc<Vec<u8>>> = std::sync::LazyLock::new(|| {
            let authority = Authority::new();
            authority.ca();
            let pem = authority.keys().list(&["0102", "0304"]);
            Arc::new(x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap().1.contents)
        });
        let _ = Crls::read(&bytes);
        let mut bent = (**GOOD).clone();
        let at = at % bent.len();
        bent[at] = with;
        let _ = Crls::read(&bent);
        bent.truncate(at);
        let _ = Crls::read(&bent);
    }
}
