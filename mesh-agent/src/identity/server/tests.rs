//! Who gets what signed, and the life of the authority's folder.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::{FutureExt as _, future::BoxFuture};
use proptest::prelude::*;

use super::{
    authority::{RotationError, Step},
    placement::{Placement, Placements},
    registration::{Asked, Certified, Limit, Refusal, Registration},
    testing::{DAY, Placed, TestAuthority, csr_for, id},
    token::{NodeToken, TokenError},
    *,
};
use crate::{
    identity::{
        proto::IstioCertificateRequest,
        roots::{certificates, describe},
    },
    model::{SpiffeId, TrustDomain},
};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const DB: &str = "spiffe://cluster.local/ns/shop/sa/db";
const PLACED: &[Placed<'static>] = &[
    (Some("n1"), "shop", "web"),
    (Some("n2"), "shop", "db"),
    (None, "shop", "free"),
];

fn registration(authority: &TestAuthority, limit: Limit) -> Arc<Registration> {
    let tokens = NodeTokens::open(&authority.state, None).unwrap();
    with(authority, Arc::new(tokens), limit)
}

fn with(
    authority: &TestAuthority,
    authenticator: Arc<dyn NodeAuthenticator>,
    limit: Limit,
) -> Arc<Registration> {
    let placements = Placements::new(Arc::clone(&authority.catalog));
    let folder = authority.state.dir().to_owned();
    Arc::new(Registration::new(authenticator, placements, folder, limit).unwrap())
}

const fn limit() -> Limit {
    Limit {
        ttl_max: DAY,
        trust_domain: None,
    }
}

async fn ask(
    registration: &Arc<Registration>,
    token: &str,
    identity: &str,
    csr: &str,
) -> Result<Certified, Refusal> {
    let request = IstioCertificateRequest::for_identity(csr, 3600, identity);
    registration
        .certify(
            Some(token.to_owned()),
            request,
            SystemTime::now(),
            &mut Asked::default(),
        )
        .await
}

#[tokio::test]
async fn a_node_gets_the_identities_of_its_workloads_and_no_others() {
    let authority = TestAuthority::new(PLACED);
    let registration = registration(&authority, limit());
    let (n1, n2) = (authority.token("n1"), authority.token("n2"));
    let signed = ask(&registration, &n1, WEB, &csr_for(&id(WEB)))
        .await
        .unwrap();
    let [leaf, roots] = &*signed.chain else {
        panic!("{:?}", signed.chain)
    };
    let leaf = &certificates(leaf.as_bytes()).unwrap()[0];
    let life = describe(leaf)
        .unwrap()
        .not_after
        .duration_since(SystemTime::now())
        .unwrap();
    assert!(life <= Duration::from_secs(3600) && life > Duration::from_secs(3590));
    assert_eq!(certificates(roots.as_bytes()).unwrap().len(), 1);
    assert_eq!(signed.serial, describe(leaf).unwrap().serial);

    let free = "spiffe://cluster.local/ns/shop/sa/free";
    let other = "spiffe://cluster.local/ns/shop/sa/other";
    let foreign = "spiffe://else.where/ns/shop/sa/web";
    for (token, identity, csr, why) in [
        (
            &n2,
            WEB,
            WEB,
            "is placed on node n2: its Workloads are on another node",
        ),
        (
            &n1,
            DB,
            DB,
            "is placed on node n1: its Workloads are on another node",
        ),
        (&n1, free, free, "its Workloads name no node"),
        (
            &n1,
            other,
            other,
            "the configuration has no workload with the identity",
        ),
        (
            &n1,
            foreign,
            foreign,
            "the configuration has no workload with the identity",
        ),
        (
            &n1,
            WEB,
            DB,
            "the request asks for spiffe://cluster.local/ns/shop/sa/db, not for",
        ),
        (
            &n1,
            DB,
            WEB,
            "is placed on node n1: its Workloads are on another node",
        ),
    ] {
        let error = ask(&registration, token, identity, &csr_for(&id(csr)))
            .await
            .unwrap_err();
        assert!(error.to_string().contains(why), "{identity} {csr}: {error}");
    }
    // What is placed elsewhere goes with it.
    authority.place(&[(Some("n2"), "shop", "web")]);
    assert!(
        ask(&registration, &n1, WEB, &csr_for(&id(WEB)))
            .await
            .is_err()
    );
    assert!(
        ask(&registration, &n2, WEB, &csr_for(&id(WEB)))
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn what_is_no_request_is_refused_with_what_is_wrong() {
    let authority = TestAuthority::new(PLACED);
    let registration = registration(&authority, limit());
    let token = authority.token("n1");
    let csr = csr_for(&id(WEB));
    let altered = {
        // A bit of the signature: whoever sends it does not hold the key.
        let mut der = pem::parse(&csr).unwrap().into_contents();
        let last = der.len() - 1;
        der[last] ^= 1;
        pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", der))
    };
    for (identity, csr, why) in [
        ("", &*csr, "names no identity: set ImpersonatedIdentity"),
        ("spiffe://td/x", &csr, "is no identity of a workload"),
        (&"x".repeat(10_000), &csr, "is no identity of a workload"),
        (WEB, "", "not PKCS #10"),
        (
            WEB,
            "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----",
            "not PKCS #10",
        ),
        (WEB, &altered, "not signed by the key that it names"),
    ] {
        let error = ask(&registration, &token, identity, csr).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(why) && text.len() < 600, "{text}");
    }
    let request = IstioCertificateRequest::for_identity(&csr, 0, WEB);
    let mut asked = Asked::default();
    let now = SystemTime::now();
    let error = registration
        .certify(None, request, now, &mut asked)
        .await
        .unwrap_err();
    assert_eq!(error, Refusal::NoToken);
}

#[tokio::test]
async fn a_trust_domain_of_ones_own_is_kept_to() {
    let authority = TestAuthority::new(PLACED);
    let limit = Limit {
        trust_domain: Some(TrustDomain::new("mesh.example").unwrap()),
        ..limit()
    };
    let registration = registration(&authority, limit);
    let error = ask(
        &registration,
        &authority.token("n1"),
        WEB,
        &csr_for(&id(WEB)),
    )
    .await
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("this authority signs for trust domain mesh.example, and {WEB} is of another")
    );
}

#[tokio::test]
async fn a_token_is_good_until_it_is_revoked_and_a_bad_list_changes_nothing() {
    let authority = TestAuthority::new(PLACED);
    let registration = registration(&authority, limit());
    let (one, two) = (authority.token("n1"), authority.token("n1"));
    let good = async |token: &str| ask(&registration, token, WEB, &csr_for(&id(WEB))).await;
    assert!(good(&one).await.is_ok() && good(&two).await.is_ok());
    let issued = authority.state.issued().unwrap();
    let list = authority.state.revoked_tokens();
    let names = [issued[0].id.clone()];
    assert_eq!(authority.state.revoke(&list, &names).unwrap(), names);
    assert_eq!(authority.state.revoke(&list, &names).unwrap(), [""; 0]);
    let refused = good(&one).await.unwrap_err();
    assert!(
        matches!(refused, Refusal::Token(TokenError::Revoked(_))),
        "{refused}"
    );
    assert!(good(&two).await.is_ok());

    fs::write(&list, "no name of a token\n").unwrap();
    assert!(good(&one).await.is_err() && good(&two).await.is_ok());
    fs::remove_file(&list).unwrap();
    assert!(
        good(&one).await.is_err(),
        "a list that is gone revives nobody"
    );
    fs::write(&list, "").unwrap();
    assert!(good(&one).await.is_ok());
    assert!(authority.state.revoke(&list, &["a b".to_owned()]).is_err());
}

#[tokio::test]
async fn a_live_review_can_refuse_but_its_absence_does_not() {
    struct Reviewed(NodeTokens, Review);
    impl NodeAuthenticator for Reviewed {
        fn verify(&self, token: &str, now: SystemTime) -> Result<NodeToken, TokenError> {
            self.0.verify(token, now)
        }

        fn review<'a>(&'a self, _: &'a str, _: &'a NodeToken) -> BoxFuture<'a, Review> {
            std::future::ready(self.1.clone()).boxed()
        }
    }
    let authority = TestAuthority::new(PLACED);
    let token = authority.token("n1");
    for (review, good) in [
        (Review::Stands, true),
        (Review::Unanswered("no route to host".into()), true),
        (Review::Withdrawn("deleted".into()), false),
    ] {
        let tokens = NodeTokens::open(&authority.state, None).unwrap();
        let registration = with(
            &authority,
            Arc::new(Reviewed(tokens, review.clone())),
            limit(),
        );
        let result = ask(&registration, &token, WEB, &csr_for(&id(WEB))).await;
        assert_eq!(result.is_ok(), good, "{review:?}");
    }
}

#[tokio::test]
async fn a_node_that_asks_without_end_is_slowed_and_the_others_are_not() {
    let authority = TestAuthority::new(PLACED);
    let registration = registration(&authority, limit());
    let (n1, n2) = (authority.token("n1"), authority.token("n2"));
    let mut slowed = None;
    for _ in 0..3000 {
        if let Err(error @ Refusal::TooMany(..)) = ask(&registration, &n1, WEB, "").await {
            slowed = Some(error);
            break;
        }
    }
    let slowed = slowed.expect("it was never slowed").to_string();
    assert!(
        slowed.starts_with("node n1 asks for too many certificates"),
        "{slowed}"
    );
    assert!(ask(&registration, &n2, DB, &csr_for(&id(DB))).await.is_ok());
}

#[tokio::test]
async fn roots_are_replaced_while_it_signs() {
    let authority = TestAuthority::new(PLACED);
    let registration = registration(&authority, limit());
    let token = authority.token("n1");
    let state = &authority.state;
    let issuer_and_roots = async || {
        let signed = ask(&registration, &token, WEB, &csr_for(&id(WEB)))
            .await
            .unwrap();
        let leaf = certificates(signed.chain[0].as_bytes()).unwrap();
        let bundle = signed.chain.last().unwrap();
        assert_eq!(&fs::read_to_string(state.bundle_file()).unwrap(), bundle);
        let roots = certificates(bundle.as_bytes()).unwrap();
        let subject = |root| describe(root).unwrap().subject;
        (
            describe(&leaf[0]).unwrap().issuer,
            roots.iter().map(subject).collect::<Vec<_>>(),
        )
    };
    let step = |step, wait| state.rotate(step, wait, SystemTime::now());
    let (old, roots) = issuer_and_roots().await;
    assert_eq!(roots, std::slice::from_ref(&old));
    for (wrong, why) in [
        (Step::Activate, "no new root"),
        (Step::Finish, "no old root"),
    ] {
        let error = step(wrong, Duration::ZERO).unwrap_err().to_string();
        assert!(error.starts_with(why), "{error}");
    }

    step(Step::Prepare, DAY).unwrap();
    let (signs, roots) = issuer_and_roots().await;
    assert_eq!((&signs, roots.len()), (&old, 2));
    let new = roots.into_iter().find(|root| *root != old).unwrap();
    assert!(matches!(
        step(Step::Prepare, DAY),
        Err(RotationError::Prepared(_))
    ));
    assert!(matches!(
        step(Step::Finish, DAY),
        Err(RotationError::Prepared(_))
    ));
    let error = step(Step::Activate, DAY).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("takes up to 24h; the last step was"),
        "{error}"
    );
    assert_eq!(issuer_and_roots().await.0, old);

    state
        .rotate(Step::Activate, DAY, SystemTime::now() + DAY)
        .unwrap();
    let (signs, roots) = issuer_and_roots().await;
    assert_eq!((&signs, roots.len()), (&new, 2));
    assert!(matches!(
        step(Step::Prepare, DAY),
        Err(RotationError::Activated(..))
    ));
    assert!(matches!(
        step(Step::Finish, DAY),
        Err(RotationError::TooSoon { .. })
    ));

    step(Step::Finish, Duration::ZERO).unwrap();
    assert_eq!(issuer_and_roots().await, (new.clone(), vec![new]));
    assert!(!state.dir().join("ca-1").exists(), "the old key is gone");
    assert_eq!(step(Step::Prepare, DAY).unwrap().next.unwrap(), "ca-3");
}

#[test]
fn a_step_that_was_cut_short_is_done_again() {
    let authority = TestAuthority::new(&[]);
    let state = &authority.state;
    let link = |name: &str, to: &str| {
        let path = state.dir().join(name);
        let _ = fs::remove_file(&path);
        symlink(to, path).unwrap();
    };
    let step = |step| state.rotate(step, Duration::ZERO, SystemTime::now());
    step(Step::Prepare).unwrap();
    // Killed within activate, before and after the new root signs.
    link("previous", "ca-1");
    assert_eq!(state.ensure_authority().unwrap().previous, None);
    let is = step(Step::Activate).unwrap();
    assert_eq!(
        (&*is.current, is.next, is.previous.as_deref()),
        ("ca-2", None, Some("ca-1"))
    );
    link("next", "ca-2");
    let is = state.ensure_authority().unwrap();
    assert_eq!((is.next, is.previous.as_deref()), (None, Some("ca-1")));
    // Killed within prepare, before the link: the folder is left, and another one is made.
    step(Step::Finish).unwrap();
    fs::create_dir(state.dir().join("ca-7")).unwrap();
    assert_eq!(step(Step::Prepare).unwrap().next.as_deref(), Some("ca-8"));
    for bad in ["../elsewhere", "/etc", "ca-1/../x", "roots.pem"] {
        link("current", bad);
        assert!(state.ensure_authority().is_err(), "{bad}");
    }
}

#[test]
fn secrets_that_others_may_read_are_not_used() {
    let authority = TestAuthority::new(&[]);
    let state = &authority.state;
    let mode = |path: &std::path::Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    let key = state.dir().join("token.key");
    assert_eq!(key.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    mode(&key, 0o640);
    let error = NodeTokens::open(state, None).err().unwrap();
    assert!(error.contains("chmod 600"), "{error}");
    mode(state.dir(), 0o755);
    let error = State::open(state.dir()).unwrap_err().to_string();
    assert!(error.contains("chmod 700"), "{error}");
}

#[test]
fn notes_of_tokens_say_which_node_has_which() {
    let authority = TestAuthority::new(&[]);
    let state = &authority.state;
    let now = SystemTime::now();
    let (_, gone) = state.issue("n1", now, Duration::from_secs(1)).unwrap();
    let (_, kept) = state.issue("n2", now, DAY).unwrap();
    let later = now + Duration::from_secs(10);
    let (_, last) = state.issue("n1", later, DAY).unwrap();
    let ids: Vec<_> = state
        .issued()
        .unwrap()
        .into_iter()
        .map(|i| (i.node, i.id))
        .collect();
    assert_eq!(ids, [("n2".into(), kept.id), ("n1".into(), last.id)]);
    assert!(!ids.iter().any(|(_, id)| *id == gone.id));
    fs::write(state.dir().join("issued-tokens"), "a b\n").unwrap();
    let error = state.issued().unwrap_err().to_string();
    assert!(
        error.ends_with("issued-tokens: line 1: expected JTI NODE SECONDS"),
        "{error}"
    );
}

proptest! {
    /// Against the sentence itself: there is a Workload with this identity whose spec.node is this node.
    #[test]
    fn who_may_have_what(
        workloads in prop::collection::vec((prop::option::of(0..3_u8), 0..3_u8, 0..3_u8), 0..12),
        node in 0..4_u8,
        namespace in 0..4_u8,
        account in 0..4_u8,
        foreign in any::<bool>(),
    ) {
        let names: Vec<(Option<String>, String, String)> = workloads
            .iter()
            .map(|(n, ns, sa)| (n.map(|n| format!("n{n}")), format!("ns{ns}"), format!("sa{sa}")))
            .collect();
        let placed: Vec<Placed<'_>> = names
            .iter()
            .map(|(n, ns, sa)| (n.as_deref(), &**ns, &**sa))
            .collect();
        let catalog = crate::catalog::Catalog::new("");
        testing::place(&catalog, catalog.register(), &placed);
        let trust_domain = TrustDomain::new(if foreign { "else.where" } else { "cluster.local" }).unwrap();
        let wanted = SpiffeId::new(&trust_domain, &format!("ns{namespace}"), &format!("sa{account}")).unwrap();
        let allowed = !foreign && workloads.contains(&(Some(node), namespace, account));
        let result = Placement::of(&catalog.snapshot()).allows(&format!("n{node}"), &wanted);
        prop_assert_eq!(result.is_ok(), allowed, "{:?}", result);
    }
}
