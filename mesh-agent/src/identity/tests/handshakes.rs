//! Who gets through a handshake, and who is told what.

use rustls::{HandshakeKind, NamedGroup};

use super::{super::*, support::*};

#[tokio::test]
async fn two_identities_meet() {
    let authority = Authority::new();
    let node = Node::start(authority.ca(), IdentityOptions::default())
        .with(&["web", "db"])
        .await;
    let shaken = shake(&node.of("web").client, &node.of("db").server).unwrap();
    let at_client = shaken.client.peer_certificates().unwrap();
    let at_server = shaken.server.peer_certificates().unwrap();
    let server = node.verify_server(at_client).unwrap();
    let client = node.verify_client(at_server).unwrap();
    assert_eq!((server.id, client.id), (id("db"), id("web")));
    assert_eq!(shaken.server.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(shaken.server.handshake_kind(), Some(HandshakeKind::Full));
    assert_eq!(
        shaken
            .client
            .negotiated_key_exchange_group()
            .unwrap()
            .name(),
        NamedGroup::X25519MLKEM768
    );
    let suite = shaken.client.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(suite, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    assert_eq!(shaken.server.server_name(), None, "no SNI");
}

#[tokio::test]
async fn a_resumed_handshake_shows_whom_it_was_made_with() {
    let authority = Authority::new();
    let node = Node::start(authority.ca(), IdentityOptions::default())
        .with(&["web", "db", "other"])
        .await;
    let (web, db) = (node.of("web"), node.of("db"));
    for round in 0..4 {
        let shaken = shake(&web.client, &db.server).unwrap();
        let kind = if round == 0 {
            HandshakeKind::Full
        } else {
            HandshakeKind::Resumed
        };
        assert_eq!(shaken.client.handshake_kind(), Some(kind));
        assert_eq!(shaken.server.handshake_kind(), Some(kind));
        let server = node.verify_server(shaken.client.peer_certificates().unwrap());
        let client = node.verify_client(shaken.server.peer_certificates().unwrap());
        assert_eq!(
            (server.unwrap().id, client.unwrap().id),
            (id("db"), id("web"))
        );
    }
    // Another identity at the same address does not know the session, nor does another client.
    let other = shake(&web.client, &node.of("other").server).unwrap();
    assert_eq!(other.client.handshake_kind(), Some(HandshakeKind::Full));
    let other = shake(&node.of("other").client, &db.server).unwrap();
    assert_eq!(other.client.handshake_kind(), Some(HandshakeKind::Full));
    // Forgotten sessions are made anew.
    shake(&web.client, &db.server).unwrap();
    web.forget(&server_name());
    let again = shake(&web.client, &db.server).unwrap();
    assert_eq!(again.client.handshake_kind(), Some(HandshakeKind::Full));
}

/// What handshakes cost, both ends together; `cargo test -p mesh-agent --lib identity -- --ignored --nocapture cost`.
#[tokio::test]
#[ignore = "measures"]
async fn cost() {
    let authority = Authority::new();
    let node = Node::start(authority.ca(), IdentityOptions::default())
        .with(&["web", "db"])
        .await;
    let (web, db) = (node.of("web"), node.of("db"));
    let chain = web.certified.cert.clone();
    let time = |what: &str, mut work: Box<dyn FnMut()>| {
        let mut rounds: Vec<_> = (0..15)
            .map(|_| {
                let begun = std::time::Instant::now();
                (0..100).for_each(|_| work());
                begun.elapsed() / 100
            })
            .collect();
        rounds.sort();
        println!(
            "{what}: {:?} ({:?} to {:?})",
            rounds[7], rounds[0], rounds[14]
        );
    };
    time("full handshake", {
        let (web, db) = (web.clone(), db.clone());
        Box::new(move || {
            web.forget(&server_name());
            let shaken = shake(&web.client, &db.server).unwrap();
            assert_eq!(shaken.server.handshake_kind(), Some(HandshakeKind::Full));
        })
    });
    shake(&web.client, &db.server).unwrap();
    time("resumed handshake", {
        let (web, db) = (web.clone(), db.clone());
        Box::new(move || {
            let shaken = shake(&web.client, &db.server).unwrap();
            assert_eq!(shaken.server.handshake_kind(), Some(HandshakeKind::Resumed));
        })
    });
    time("verification afterwards, one end", {
        let node = node.identities.clone();
        Box::new(move || drop(node.verify_client(&chain).unwrap()))
    });
    time("two configurations", {
        let node = node.identities.clone();
        let mut n = 0;
        Box::new(move || {
            n += 1;
            let alias = crate::model::TrustDomain::new(&format!("n{n}")).unwrap();
            node.set_mesh(crate::model::TrustDomain::default(), vec![alias]);
        })
    });
}
