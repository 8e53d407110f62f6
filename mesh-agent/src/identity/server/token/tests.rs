use proptest::prelude::*;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn key() -> TokenKey {
    TokenKey::from_pem(&TokenKey::generate().unwrap()).unwrap()
}

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// A token with claims of one's own.
fn signed(key: &TokenKey, change: impl FnOnce(&mut Claims, &mut Header)) -> String {
    let mut claims = Claims {
        iss: ISSUER.into(),
        sub: "n1".into(),
        aud: AUDIENCE.into(),
        iat: seconds(now()),
        nbf: seconds(now()),
        exp: seconds(now()) + 3600,
        jti: "0a".into(),
        node: "n1".into(),
    };
    let mut header = Header::new(Algorithm::ES256);
    header.kid = Some(key.id.clone());
    change(&mut claims, &mut header);
    jsonwebtoken::encode(&header, &claims, &key.signing).unwrap()
}

#[test]
fn a_token_names_its_node_until_it_expires() {
    let key = key();
    let (token, made) = key.issue("n1", now(), HOUR).unwrap();
    assert_eq!(made.node, "n1");
    for (when, good) in [
        (now(), true),
        (now() - Duration::from_secs(60), true),
        (now() - Duration::from_secs(61), false),
        (now() + HOUR - Duration::from_secs(1), true),
        (now() + HOUR, false),
    ] {
        assert_eq!(key.verify(&token, when).is_ok(), good, "{when:?}");
    }
    assert_eq!(key.verify(&token, now()).unwrap(), made);
    assert_eq!(
        key.verify(&token, now() + HOUR).unwrap_err().to_string(),
        "the token expired at 2027-01-15T09:00:00Z: make a new one with `mesh-agent ca token`"
    );
    let (other, _) = key.issue("n1", now(), HOUR).unwrap();
    assert_ne!(
        key.verify(&other, now()).unwrap().id,
        made.id,
        "each has a name of its own"
    );
}

#[test]
fn each_claim_counts() {
    let key = key();
    assert!(key.verify(&signed(&key, |_, _| {}), now()).is_ok());
    type Change = fn(&mut Claims, &mut Header);
    let changes: [(Change, TokenError); 9] = [
        (|c, _| c.iss = "x".into(), TokenError::Audience),
        (|c, _| c.aud = "x".into(), TokenError::Audience),
        (|c, _| c.sub = "n2".into(), TokenError::Malformed),
        (|c, _| c.node = "n2".into(), TokenError::Malformed),
        (
            |c, _| (c.node, c.sub) = (String::new(), String::new()),
            TokenError::Malformed,
        ),
        (|c, _| c.jti = String::new(), TokenError::Malformed),
        (|_, h| h.kid = None, TokenError::Malformed),
        (
            |_, h| h.kid = Some("k2".into()),
            TokenError::UnknownKey("k2".into()),
        ),
        (
            |c, _| (c.exp, c.nbf, c.iat) = (u64::MAX, u64::MAX, 0),
            TokenError::NotYet("9999-12-31T23:59:59Z".into()),
        ),
    ];
    for (change, error) in changes {
        assert_eq!(key.verify(&signed(&key, change), now()), Err(error));
    }
}

#[test]
fn another_key_or_algorithm_is_refused() {
    let (ours, theirs) = (key(), key());
    let forged = signed(&theirs, |_, h| h.kid = Some(ours.id.clone()));
    assert_eq!(ours.verify(&forged, now()), Err(TokenError::Signature));
    // The oldest attack on JWT: a public key used as the secret of a symmetric algorithm.
    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some(ours.id.clone());
    let claims = serde_json::json!({"iss": ISSUER});
    let secret = EncodingKey::from_secret(ours.id.as_bytes());
    let token = jsonwebtoken::encode(&header, &claims, &secret).unwrap();
    assert_eq!(ours.verify(&token, now()), Err(TokenError::Malformed));
    let (token, _) = ours.issue("n1", now(), HOUR).unwrap();
    let unsigned = token.rsplit_once('.').unwrap().0.to_owned() + ".";
    assert!(ours.verify(&unsigned, now()).is_err());
}

#[test]
fn a_key_is_known_by_its_public_half() {
    let pem = TokenKey::generate().unwrap();
    let id = TokenKey::from_pem(&pem).unwrap().id;
    assert_eq!(TokenKey::from_pem(&pem).unwrap().id, id);
    assert_ne!(key().id, id);
    for bad in [
        "",
        "x",
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    ] {
        assert!(TokenKey::from_pem(bad).is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn an_altered_token_is_refused(at in any::<prop::sample::Index>(), with in "[A-Za-z0-9_.-]") {
        let key = key();
        let (token, _) = key.issue("n1", now(), HOUR).unwrap();
        let mut altered: Vec<char> = token.chars().collect();
        let at = at.index(altered.len());
        let with = with.chars().next().unwrap();
        prop_assume!(altered[at] != with);
        altered[at] = with;
        let altered: String = altered.into_iter().collect();
        // The last character of base64 carries bits that mean nothing; a strict decoder refuses those as well.
        prop_assert!(key.verify(&altered, now()).is_err());
    }

    #[test]
    fn anything_is_refused_without_a_panic(text in "\\PC{0,200}") {
        prop_assert!(key().verify(&text, now()).is_err());
    }
}
