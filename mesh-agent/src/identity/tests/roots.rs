//! The trust bundle: files that change, and a root that is replaced while connections live.

use std::{
    fs,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::HandshakeKind;

use super::{
    super::{clock::ManualClock, *},
    support::*,
};
use crate::model::TrustDomain;

#[tokio::test]
async fn a_root_is_replaced_without_a_connection_lost() {
    let (authority, next) = (Authority::new(), Authority::new());
    next.ca();
    let clock = ManualClock::new(SystemTime::now());
    let ca = Arc::new(BuiltInCa::with_clock(authority.state(), clock.clone()).unwrap());
    let (old, new) = (authority.bundle(), next.bundle());
    let options = || IdentityOptions {
        clock: clock.clone(),
        ..IdentityOptions::default()
    };
    // Two nodes; the second renews later.
    let a = Node::start(ca.clone(), options()).with(&["web"]).await;
    let b = Node::start(ca.clone(), options()).with(&["db"]).await;
    let (web, db) = (a.of("web"), b.of("db"));
    let live = shake(&web.client, &db.server).unwrap();
    let live_client = live.server.peer_certificates().unwrap();
    let issuer = |node: &Node| {
        let of = node.status().certificates.remove(0);
        of.certificate.unwrap().issuer
    };
    let old_issuer = issuer(&a);

    // 1. Both roots are trusted, everywhere.
    let both = old.clone() + &new;
    let before = (a.trust_now(), b.trust_now());
    authority.write("roots.pem", &both);
    a.trust_after(before.0).await;
    b.trust_after(before.1).await;
    assert_eq!(b.status().bundle.roots.len(), 2);
    assert_eq!(b.standing(live_client, Role::Client), Standing::Good);

    // 2. The authority signs with the new key. Between the two files nothing fits, and the old key goes on signing.
    let file = |name: &str| fs::read_to_string(next.folder().join(name)).unwrap();
    authority.write("chain.pem", &file("chain.pem"));
    let (late, pem) = {
        let key = super::super::keys::WorkloadKey::generate().unwrap();
        let csr = super::super::csr::request(&key, &id("late")).unwrap();
        (id("late"), csr)
    };
    let signed = ca.sign(&late, &pem, DEFAULT_TTL).await.unwrap();
    a.verify_client(&signed.chain).unwrap();
    authority.write("key.pem", &file("key.pem"));

    // 3. The first node renews in its time; the second has the old one still, and they get on.
    clock.set(clock.now() + Duration::from_secs(22 * 3600));
    until("the new issuer", || issuer(&a) != old_issuer).await;
    let renewed = a.of("web");
    shake(&renewed.client, &db.server).unwrap();
    shake(&b.of("db").client, &renewed.server).unwrap();
    until("the new issuer", || issuer(&b) != old_issuer).await;

    // 4. The old root goes.
    let before = (a.trust_now(), b.trust_now());
    authority.write("roots.pem", &new);
    a.trust_after(before.0).await;
    b.trust_after(before.1).await;
    shake(&a.of("web").client, &b.of("db").server).unwrap();
    // What still has a certificate of the old root is refused; the tunnel that was made with one lives on.
    let failed = shake(&web.client, &b.of("db").server).unwrap_err();
    assert_eq!(failed.cause(), "unknown_root");
    assert_eq!(
        b.standing(live_client, Role::Client),
        Standing::Drain(PeerRefused::UnknownRoot)
    );
}

#[tokio::test]
async fn an_own_certificate_whose_root_has_left_is_replaced_at_once() {
    let (authority, next) = (Authority::new(), Authority::new());
    next.ca();
    let node = Node::start(authority.ca(), IdentityOptions::default())
        .with(&["web"])
        .await;
    let old = node.of("web");
    for name in ["chain.pem", "key.pem", "roots.pem"] {
        let contents = fs::read_to_string(next.folder().join(name)).unwrap();
        authority.write(name, &contents);
    }
    until("a certificate of the new root", || {
        node.of("web").serial() != old.serial()
            && node.verify_server(&node.of("web").certified.cert).is_ok()
    })
    .await;
    let status = node.status().certificates.remove(0);
    assert!(!status.certificate.unwrap().refused);
}

#[tokio::test]
async fn sessions_do_not_outlive_the_trust_that_they_were_made_under() {
    let authority = Authority::new();
    let node = Node::start(authority.ca(), IdentityOptions::default())
        .with(&["web", "db"])
        .await;
    let kind = || {
        let shaken = shake(&node.of("web").client, &node.of("db").server).unwrap();
        shaken.server.handshake_kind().unwrap()
    };
    assert_eq!(
        [kind(), kind()],
        [HandshakeKind::Full, HandshakeKind::Resumed]
    );
    node.set_mesh(TrustDomain::default(), vec![TrustDomain::new("x").unwrap()]);
    assert_eq!(
        [kind(), kind()],
        [HandshakeKind::Full, HandshakeKind::Resumed]
    );
    // The same again is no change.
    node.set_mesh(TrustDomain::default(), vec![TrustDomain::new("x").unwrap()]);
    assert_eq!(kind(), HandshakeKind::Resumed);
}

#[tokio::test]
async fn a_bundle_that_breaks_keeps_the_last_good_one_and_is_seen() {
    let authority = Authority::new();
    let ca = authority.ca();
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("bundle.pem");
    fs::write(&bundle, authority.bundle()).unwrap();
    let options = IdentityOptions {
        trust_bundle: Some(bundle.clone()),
        ..IdentityOptions::default()
    };
    let node = Node::start(ca, options).with(&["web", "db"]).await;
    let error = || node.status().bundle.error;
    let before = node.trust_now();
    let half = &authority.bundle()[..200];
    for broken in [
        "",
        "hello",
        half,
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        replace(&bundle, broken.as_bytes());
        until("an error", || error().is_some()).await;
        shake(&node.of("web").client, &node.of("db").server).unwrap();
        replace(&bundle, authority.bundle().as_bytes());
        until("no error", || error().is_none()).await;
    }
    assert_eq!(node.trust_now(), before, "nothing changed in the end");
    assert_eq!(node.status().bundle.errors, 4);
}

#[test]
fn a_bundle_that_cannot_be_read_at_the_start_keeps_the_agent_from_starting() {
    let authority = Authority::new();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bundle.pem");
    let start = || {
        let options = IdentityOptions {
            trust_bundle: Some(path.clone()),
            ..IdentityOptions::default()
        };
        Identities::new(authority.ca(), options).map(|_| ())
    };
    let error = start().unwrap_err().to_string();
    assert!(error.contains("bundle.pem"), "{error}");
    fs::write(&path, "nothing").unwrap();
    let error = start().unwrap_err().to_string();
    assert!(error.contains("no certificate"), "{error}");
    fs::write(&path, authority.bundle()).unwrap();
    start().unwrap();
}
