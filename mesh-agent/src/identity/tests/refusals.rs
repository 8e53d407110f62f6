//! Peers that must not get through, and what they are counted as.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{ExtendedKeyUsagePurpose, SanType};
use rustls::{HandshakeKind, NamedGroup, crypto::CryptoProvider};

use super::{
    super::{clock::ManualClock, *},
    support::*,
};
use crate::model::TrustDomain;

const HOUR: Duration = Duration::from_secs(3600);

fn uri(name: &str) -> SanType {
    SanType::URI(name.try_into().unwrap())
}

fn both() -> Vec<ExtendedKeyUsagePurpose> {
    vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ]
}

/// The server refuses; the client is told with an alert.
#[track_caller]
fn server_refuses(result: Result<Shaken, Failed>, cause: &str) {
    let failed = result.unwrap_err();
    assert!(matches!(failed, Failed::Server(_)), "{failed:?}");
    assert_eq!(failed.cause(), cause, "{failed:?}");
}

#[track_caller]
fn client_refuses(result: Result<Shaken, Failed>, cause: &str) {
    let failed = result.unwrap_err();
    assert!(matches!(failed, Failed::Client(_)), "{failed:?}");
    assert_eq!(failed.cause(), cause, "{failed:?}");
}

#[tokio::test]
async fn roots_that_are_not_ours() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let here = Node::start(ours.ca(), IdentityOptions::default())
        .with(&["web"])
        .await;
    let there = Node::start(theirs.ca(), IdentityOptions::default())
        .with(&["web"])
        .await;
    client_refuses(
        shake(&here.of("web").client, &there.of("web").server),
        "unknown_root",
    );
    let rogue = theirs.keys().leaf(vec![uri(id("web").as_str())], both());
    server_refuses(
        shake(&rogue.client(), &here.of("web").server),
        "unknown_root",
    );
}

#[tokio::test]
async fn trust_domains() {
    let authority = Authority::new();
    let node = Node::start(authority.ca(), IdentityOptions::default())
        .with(&["db"])
        .await;
    let stranger = || {
        let names = vec![uri("spiffe://partner.example/ns/shop/sa/web")];
        authority.keys().leaf(names, both()).client()
    };
    let domain = |name| TrustDomain::new(name).unwrap();
    server_refuses(shake(&stranger(), &node.of("db").server), "trust_domain");

    let before = node.trust_now();
    node.set_mesh(TrustDomain::default(), vec![domain("partner.example")]);
    assert_ne!(node.trust_now(), before);
    let shaken = shake(&stranger(), &node.of("db").server).unwrap();
    let chain = shaken.server.peer_certificates().unwrap();
    let peer = node.verify_client(chain).unwrap();
    assert_eq!(peer.id.trust_domain().as_str(), "partner.example");
    assert_eq!(node.standing(chain, Role::Client), Standing::Good);

    // The alias goes: new ones are refused, and the tunnel that lives must end.
    node.set_mesh(TrustDomain::default(), vec![]);
    server_refuses(shake(&stranger(), &node.of("db").server), "trust_domain");
    let refused = PeerRefused::TrustDomain(domain("partner.example"));
    assert_eq!(
        node.standing(chain, Role::Client),
        Standing::Close(refused.clone())
    );
    assert_eq!(node.verify_client(chain), Err(refused));
    // Of a server the caller knows the identity that it expects.
    assert!(node.verify_server(chain).is_ok());
}

#[tokio::test]
async fn expired_and_not_yet_valid() {
    let authority = Authority::new();
    let now = SystemTime::now();
    let (at_web, at_db) = (ManualClock::new(now), ManualClock::new(now));
    let web = Node::start(
        authority.ca(),
        IdentityOptions {
            ttl: HOUR,
            clock: at_web.clone(),
            ..IdentityOptions::default()
        },
    )
    .with(&["web"])
    .await;
    let db = Node::start(
        authority.ca(),
        IdentityOptions {
            ttl: 3 * HOUR,
            clock: at_db.clone(),
            ..IdentityOptions::default()
        },
    )
    .with(&["db"])
    .await;
    let (client, server) = (web.of("web"), db.of("db"));
    let shaken = shake(&client.client, &server.server).unwrap();
    let chain = shaken.server.peer_certificates().unwrap();

    at_db.set(now + HOUR + Duration::from_secs(60));
    client.forget(&server_name());
    server_refuses(shake(&client.client, &server.server), "expired");
    assert_eq!(db.verify_client(chain), Err(PeerRefused::Expired));
    assert_eq!(
        db.standing(chain, Role::Client),
        Standing::Drain(PeerRefused::Expired)
    );

    at_db.set(now - HOUR);
    server_refuses(shake(&client.client, &server.server), "not_yet_valid");
    at_web.set(now - HOUR);
    client_refuses(shake(&client.client, &server.server), "not_yet_valid");
}

#[tokio::test]
async fn certificates_that_say_too_little() {
    let authority = Authority::new();
    let node = Node::start(authority.ca(), IdentityOptions::default())
        .with(&["db"])
        .await;
    let keys = authority.keys();
    let db = node.of("db");
    let refused = |names, uses, cause: &str| {
        server_refuses(shake(&keys.leaf(names, uses).client(), &db.server), cause);
    };
    let web = uri(id("web").as_str());

    let nobody = rogue_client(provider()).with_no_client_auth();
    server_refuses(shake(&Arc::new(nobody), &db.server), "no_certificate");

    refused(vec![], both(), "no_identity");
    refused(
        vec![SanType::DnsName("web".try_into().unwrap())],
        both(),
        "no_identity",
    );
    refused(
        vec![uri("spiffe://cluster.local/web")],
        both(),
        "no_identity",
    );
    let server_only = vec![ExtendedKeyUsagePurpose::ServerAuth];
    refused(vec![web.clone()], server_only, "wrong_usage");

    let client_only = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let server = keys.leaf(vec![web.clone()], client_only).server();
    client_refuses(shake(&db.client, &server), "wrong_usage");
    let server = keys.leaf(vec![], both()).server();
    client_refuses(shake(&db.client, &server), "no_identity");

    // Names of other forms are passed over; the first that is well-formed is who it is.
    let names = vec![
        SanType::DnsName("web.shop".try_into().unwrap()),
        uri("https://web.shop/"),
        uri(id("first").as_str()),
        web,
    ];
    let shaken = shake(&keys.leaf(names, both()).client(), &db.server).unwrap();
    let peer = node
        .verify_client(shaken.server.peer_certificates().unwrap())
        .unwrap();
    assert_eq!(peer.id, id("first"));
    assert_eq!(peer.ids, [id("first"), id("web")]);
    assert!(peer.is(&id("web")) && !peer.is(&id("db")));
}

#[tokio::test]
async fn key_exchange_falls_back_without_another_round_trip() {
    let authority = Authority::new();
    let node = Node::start(authority.ca(), IdentityOptions::default())
        .with(&["db"])
        .await;
    let keys = authority.keys();
    let classic = Arc::new(CryptoProvider {
        kx_groups: vec![rustls::crypto::aws_lc_rs::kx_group::X25519],
        ..(*provider()).clone()
    });
    let leaf = || keys.leaf(vec![uri(id("web").as_str())], both());

    let Rogue { chain, key } = leaf();
    let client = rogue_client(classic.clone())
        .with_client_auth_cert(chain, key)
        .unwrap();
    let shaken = shake(&Arc::new(client), &node.of("db").server).unwrap();
    let group = shaken.server.negotiated_key_exchange_group().unwrap();
    assert_eq!(group.name(), NamedGroup::X25519);

    let Rogue { chain, key } = leaf();
    let server = rustls::ServerConfig::builder_with_provider(classic)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let shaken = shake(&node.of("db").client, &Arc::new(server)).unwrap();
    let group = shaken.client.negotiated_key_exchange_group().unwrap();
    assert_eq!(group.name(), NamedGroup::X25519);
    assert_eq!(shaken.client.handshake_kind(), Some(HandshakeKind::Full));
}

#[tokio::test]
async fn another_protocol_inside_is_refused() {
    let authority = Authority::new();
    let node = Node::start(authority.ca(), IdentityOptions::default())
        .with(&["db"])
        .await;
    let rogue = authority.keys().leaf(vec![uri(id("web").as_str())], both());
    let mut client = (*rogue.client()).clone();
    client.alpn_protocols = vec![b"http/1.1".to_vec()];
    server_refuses(shake(&Arc::new(client), &node.of("db").server), "alpn");
}
