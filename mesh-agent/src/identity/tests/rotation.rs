//! Renewal, and authorities that are away, slow, or lie.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use futures::future::BoxFuture;
use rcgen::SanType;
use rustls_pki_types::CertificateDer;
use tokio::time::Instant;

use super::{
    super::{clock::ManualClock, *},
    support::*,
};

const HOUR: Duration = Duration::from_secs(3600);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Good,
    Down,
    Silent,
    Refusing,
    Panics,
    WrongName,
    TwoNames,
    WrongKey,
    Garbage,
    Empty,
    NoRoots,
    OtherRoots,
    Expired,
    Future,
}

/// An authority with moods. It keeps its roots to itself: no bundle file.
struct Moody {
    inner: Arc<BuiltInCa>,
    authority: Authority,
    other: Authority,
    mood: Mutex<Mood>,
    asked: AtomicUsize,
    under_way: AtomicUsize,
    most_under_way: AtomicUsize,
}

impl Moody {
    fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        let (authority, other) = (Authority::new(), Authority::new());
        other.ca();
        Arc::new(Self {
            inner: Arc::new(BuiltInCa::with_clock(authority.state(), clock).unwrap()),
            authority,
            other,
            mood: Mutex::new(Mood::Good),
            asked: AtomicUsize::new(0),
            under_way: AtomicUsize::new(0),
            most_under_way: AtomicUsize::new(0),
        })
    }

    fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    async fn answer(&self, id: &SpiffeId, csr: &str, ttl: Duration) -> Result<Signed, CaError> {
        let mood = *self.mood.lock().unwrap();
        let other: SpiffeId = "spiffe://cluster.local/ns/shop/sa/thief".parse().unwrap();
        let resign = |names: Vec<SpiffeId>, at: SystemTime| {
            let csr = rcgen::CertificateSigningRequestParams::from_pem(csr).unwrap();
            let mut params = csr.params;
            params.subject_alt_names = names
                .iter()
                .map(|id| SanType::URI(id.as_str().try_into().unwrap()))
                .collect();
            params.not_before = at.into();
            params.not_after = (at + ttl).into();
            let leaf = params
                .signed_by(&csr.public_key, &self.authority.keys().issuer)
                .unwrap();
            vec![leaf.der().clone()]
        };
        match mood {
            Mood::Down => return Err(CaError::Unavailable("connection refused".into())),
            Mood::Silent => std::future::pending().await,
            Mood::Refusing => return Err(CaError::Refused("not on this node".into())),
            Mood::Panics => panic!("an authority's client that panics"),
            _ => {}
        }
        let now = SystemTime::now();
        let mut good = self.inner.sign(id, csr, ttl).await?;
        match mood {
            Mood::WrongName => good.chain = resign(vec![other], now),
            Mood::TwoNames => good.chain = resign(vec![id.clone(), other], now),
            Mood::WrongKey => {
                let names = vec![SanType::URI(id.as_str().try_into().unwrap())];
                let uses = vec![
                    rcgen::ExtendedKeyUsagePurpose::ServerAuth,
                    rcgen::ExtendedKeyUsagePurpose::ClientAuth,
                ];
                good.chain = self.authority.keys().leaf(names, uses).chain;
            }
            Mood::Garbage => good.chain = vec![CertificateDer::from(vec![0x30, 3, 1, 2, 3])],
            Mood::Empty => good.chain.clear(),
            Mood::NoRoots => good.roots.clear(),
            Mood::OtherRoots => {
                let other = BuiltInCa::open(self.other.state()).unwrap();
                good.roots = other.sign(id, csr, ttl).await.unwrap().roots;
            }
            Mood::Expired => good.chain = resign(vec![id.clone()], now - 2 * ttl),
            Mood::Future => good.chain = resign(vec![id.clone()], now + HOUR),
            _ => {}
        }
        Ok(good)
    }
}

impl CertificateAuthority for Moody {
    fn name(&self) -> &str {
        "moody"
    }

    fn sign<'a>(
        &'a self,
        id: &'a SpiffeId,
        csr_pem: &'a str,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Signed, CaError>> {
        Box::pin(async move {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let now = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
            self.most_under_way.fetch_max(now, Ordering::SeqCst);
            struct Done<'a>(&'a AtomicUsize);
            impl Drop for Done<'_> {
                fn drop(&mut self) {
                    self.0.fetch_sub(1, Ordering::SeqCst);
                }
            }
            let _done = Done(&self.under_way);
            self.answer(id, csr_pem, ttl).await
        })
    }
}

fn node(ca: &Arc<Moody>, clock: &Arc<ManualClock>) -> Node {
    let options = IdentityOptions {
        clock: clock.clone(),
        ..IdentityOptions::default()
    };
    Node::start(ca.clone(), options)
}

fn only_status(node: &Node) -> CertificateStatus {
    let mut all = node.status().certificates;
    assert_eq!(all.len(), 1);
    all.remove(0)
}

#[tokio::test(start_paused = true)]
async fn renewed_in_the_last_half_of_its_life_and_swapped() {
    let clock = ManualClock::new(SystemTime::now());
    let ca = Moody::new(clock.clone());
    let node = node(&ca, &clock).with(&["web", "db"]).await;
    let (begun, first) = (clock.now(), node.of("web"));
    let live = shake(&first.client, &node.of("db").server).unwrap();

    clock.set(begun + Duration::from_secs(12 * 3600 - 60));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((node.of("web").serial(), ca.asked()), (first.serial(), 2));

    clock.set(begun + Duration::from_secs(22 * 3600));
    until("a new certificate", || {
        node.of("web").serial() != first.serial()
    })
    .await;
    assert_ne!(
        node.of("web").certified.cert[0],
        first.certified.cert[0],
        "and a new key"
    );
    // What was made with the old one is as good as before.
    let chain = live.server.peer_certificates().unwrap();
    assert_eq!(node.standing(chain, Role::Client), Standing::Good);
    shake(&first.client, &node.of("db").server).unwrap();
}

#[tokio::test(start_paused = true)]
async fn while_the_authority_is_away_certificates_serve_until_they_expire() {
    let clock = ManualClock::new(SystemTime::now());
    let ca = Moody::new(clock.clone());
    let node = node(&ca, &clock).with(&["web"]).await;
    let (begun, first) = (clock.now(), node.of("web"));
    ca.set(Mood::Down);
    clock.set(begun + Duration::from_secs(23 * 3600));
    tokio::time::sleep(Duration::from_secs(3600)).await;
    // An hour of failures: back-off of a minute at most, of half a minute at least.
    let asked = ca.asked();
    assert!((50..160).contains(&asked), "{asked}");
    assert_eq!(node.of("web").serial(), first.serial());
    let status = only_status(&node);
    assert!(status.usable && status.failures > 50, "{status:?}");
    assert!(
        status
            .last_error
            .unwrap()
            .message
            .contains("connection refused")
    );

    clock.set(begun + Duration::from_secs(24 * 3600));
    let error = node.tls(&id("web")).unwrap_err();
    assert!(matches!(error.why, Missing::Expired(_)));
    let text = error.to_string();
    for part in [
        "expired on 20",
        "connection refused",
        "moody",
        id("web").as_str(),
    ] {
        assert!(text.contains(part), "{text}");
    }
    // Nobody is kept waiting for an authority that is known to be away.
    tokio::time::sleep(Duration::from_secs(120)).await;
    let asking = Instant::now();
    let far = asking + Duration::from_secs(3600);
    assert!(node.tls_by(&id("web"), far).await.is_err());
    assert_eq!(asking.elapsed(), Duration::ZERO);
    assert!(!only_status(&node).usable);

    ca.set(Mood::Good);
    let back = Instant::now();
    until("it is back", || node.tls(&id("web")).is_ok()).await;
    assert!(
        back.elapsed() <= Duration::from_secs(62),
        "{:?}",
        back.elapsed()
    );
    let status = only_status(&node);
    assert!(status.failures == 0 && status.last_error.is_none() && status.failures_total > 50);
    assert!(node.status().last_error.is_none());
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_starts_while_the_authority_is_away_has_no_tls_and_says_why() {
    let clock = ManualClock::new(SystemTime::now());
    let ca = Moody::new(clock.clone());
    ca.set(Mood::Down);
    let node = node(&ca, &clock);
    node.want(only("web"));
    let error = node
        .tls_by(&id("web"), Instant::now() + Duration::from_secs(5))
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("not been one yet") && text.contains("connection refused"),
        "{text}"
    );
    let elsewhere = node.tls(&id("elsewhere")).unwrap_err();
    assert_eq!(elsewhere.why, Missing::NotHere);
    ca.set(Mood::Good);
    node.first("web").await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_authority_is_given_up_after_the_deadline() {
    let clock = ManualClock::new(SystemTime::now());
    let ca = Moody::new(clock.clone());
    ca.set(Mood::Silent);
    let node = node(&ca, &clock);
    node.want((0..50).map(|n| id(&format!("w{n}"))).collect());
    tokio::time::sleep(Duration::from_secs(35)).await;
    assert_eq!(ca.most_under_way.load(Ordering::SeqCst), 8);
    // The slow are not asked again before the others had their turn.
    assert!((24..=40).contains(&ca.asked()), "{}", ca.asked());
    let failed = node.status().certificates.into_iter();
    let failed: Vec<_> = failed.filter_map(|c| c.last_error).collect();
    assert!(
        failed
            .iter()
            .all(|error| error.message.contains("no answer within 10s"))
    );
    assert!(failed.len() >= 16, "{}", failed.len());
    let most = |node: &Node| {
        let failures = node.status().certificates.into_iter();
        failures.map(|c| c.failures).max()
    };
    assert_eq!(most(&node), Some(1));
    ca.set(Mood::Good);
    until("all fifty", || {
        node.status().certificates.iter().all(|c| c.usable)
    })
    .await;
    assert_eq!(ca.most_under_way.load(Ordering::SeqCst), 8);
}

#[tokio::test(start_paused = true)]
async fn rubbish_is_refused_and_the_old_certificate_stays() {
    let clock = ManualClock::new(SystemTime::now());
    let ca = Moody::new(clock.clone());
    let node = node(&ca, &clock).with(&["web"]).await;
    let first = node.of("web");
    let trust = node.trust_now();
    for (mood, says) in [
        (Mood::WrongName, "sa/thief, not for"),
        (Mood::TwoNames, "2 names"),
        (Mood::WrongKey, "another key"),
        (Mood::Garbage, "cannot be read"),
        (Mood::Empty, "no certificate"),
        (Mood::NoRoots, "roots that cannot be used"),
        (Mood::OtherRoots, "does not lead to a root"),
        (Mood::Expired, "is the clock of this node right"),
        (Mood::Future, "is the clock of this node right"),
        (Mood::Refusing, "refused: not on this node"),
    ] {
        ca.set(mood);
        // A new identity is asked for at once.
        node.want([id("web"), id("db")].into());
        until("an answer", || {
            let status = node.status();
            let db = status.certificates.iter().find(|c| c.id.ends_with("db"));
            db.unwrap().failures > 0
        })
        .await;
        let error = node.tls(&id("db")).unwrap_err().to_string();
        assert!(error.contains(says), "{mood:?}: {error}");
        node.want(only("web"));
    }
    assert_eq!(node.of("web").serial(), first.serial());
    assert_eq!(node.trust_now(), trust, "no lie has changed whom we trust");
    let counts = node.status().requests;
    assert!(counts.rubbish >= 9 && counts.refused >= 1, "{counts:?}");
}

#[tokio::test(start_paused = true)]
async fn an_authority_that_panics_is_asked_again() {
    let clock = ManualClock::new(SystemTime::now());
    let ca = Moody::new(clock.clone());
    ca.set(Mood::Panics);
    let node = node(&ca, &clock);
    node.want(only("web"));
    until("asked twice", || ca.asked() >= 2).await;
    ca.set(Mood::Good);
    node.first("web").await;
}

#[tokio::test(start_paused = true)]
async fn the_clock_jumps() {
    let clock = ManualClock::new(SystemTime::now());
    let ca = Moody::new(clock.clone());
    let node = node(&ca, &clock).with(&["web"]).await;
    let (begun, first) = (clock.now(), node.of("web"));

    // Ahead, with an authority that has the right time: what it signs is over already. Nothing works, and it says why.
    ca.set(Mood::Expired);
    clock.set(begun + Duration::from_secs(365 * 24 * 3600));
    assert!(node.tls(&id("web")).is_err());
    until("a failure", || only_status(&node).failures > 0).await;
    let error = node.tls(&id("web")).unwrap_err().to_string();
    assert!(error.contains("is the clock of this node right"), "{error}");

    // And right again: the certificate is still there.
    clock.set(begun);
    assert_eq!(node.of("web").serial(), first.serial());

    // Ahead, with an authority whose clock jumped along.
    ca.set(Mood::Good);
    clock.set(begun + Duration::from_secs(365 * 24 * 3600));
    until("a certificate of that year", || {
        node.tls(&id("web")).is_ok()
    })
    .await;
    let ahead = node.of("web");

    // Back: it is from the future, so that peers refuse it. It is replaced within seconds, not within a year.
    clock.set(begun);
    let jumped = Instant::now();
    until("a certificate of this year", || {
        node.of("web").serial() != ahead.serial()
    })
    .await;
    assert!(jumped.elapsed() < Duration::from_secs(5));
    assert!(node.verify_server(&node.of("web").certified.cert).is_ok());
}

#[tokio::test(start_paused = true)]
async fn identities_come_and_go() {
    let clock = ManualClock::new(SystemTime::now());
    let ca = Moody::new(clock.clone());
    let node = node(&ca, &clock).with(&["web", "db"]).await;
    let web = node.of("web");
    node.want(only("web"));
    assert_eq!(node.of("web").serial(), web.serial(), "kept as it was");
    assert_eq!(node.tls(&id("db")).unwrap_err().why, Missing::NotHere);
    node.want([id("web"), id("db")].into());
    assert_eq!(node.tls(&id("db")).unwrap_err().why, Missing::NotYet);
    node.first("db").await;
    let status = node.status();
    assert_eq!(
        (status.ca.as_str(), status.certificates.len()),
        ("moody", 2)
    );
    assert_eq!(status.bundle.roots.len(), 1);
    assert_eq!(status.bundle.file, None);
    assert_eq!(status.requests.signed, 3);
    let web_status = status.certificates[1].certificate.clone().unwrap();
    assert_eq!(web_status.serial, web.serial());
    assert!(web_status.rotation_ms > web_status.not_before_ms + 12 * 3600 * 1000);
    assert!(web_status.rotation_ms < web_status.not_after_ms);
}
