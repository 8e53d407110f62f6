//! The folder of an authority, requests, and certificates that are signed.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    time::{Duration, SystemTime},
};

use proptest::prelude::*;

use super::{
    super::{csr, keys::WorkloadKey, roots, *},
    support::*,
};

fn request(account: &str) -> (WorkloadKey, String) {
    let key = WorkloadKey::generate().unwrap();
    let csr = csr::request(&key, &id(account)).unwrap();
    (key, csr)
}

#[test]
fn the_first_run_makes_a_root_that_only_its_owner_reads() {
    let authority = Authority::new();
    let first = Signer::open(&authority.folder()).unwrap();
    let mode = |path| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!(mode(authority.folder()), 0o700);
    assert_eq!(mode(authority.folder().join("key.pem")), 0o600);
    let again = Signer::open(&authority.folder()).unwrap();
    assert_eq!(first.roots(), again.roots(), "the second run keeps it");
    let others = fs::read_dir(authority.state()).unwrap().count();
    assert_eq!(others, 1, "nothing is left beside it");
}

#[test]
fn rights_that_are_too_wide_are_refused_with_what_to_do() {
    let authority = Authority::new();
    Signer::open(&authority.folder()).unwrap();
    let key = authority.folder().join("key.pem");
    for (path, wide, right) in [
        (authority.folder(), 0o750, 0o700),
        (key.clone(), 0o640, 0o600),
        (key, 0o604, 0o600),
    ] {
        fs::set_permissions(&path, fs::Permissions::from_mode(wide)).unwrap();
        let error = Signer::open(&authority.folder()).unwrap_err().to_string();
        let advice = format!("chmod {right:o} {}", path.display());
        assert!(error.contains(&advice), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(right)).unwrap();
    }
    Signer::open(&authority.folder()).unwrap();
}

#[test]
fn folders_that_do_not_fit_together_are_refused() {
    let (authority, other) = (Authority::new(), Authority::new());
    Signer::open(&authority.folder()).unwrap();
    Signer::open(&other.folder()).unwrap();
    let keep = |name: &str| fs::read_to_string(authority.folder().join(name)).unwrap();
    let (key, chain, roots) = (keep("key.pem"), keep("chain.pem"), keep("roots.pem"));
    let refused = |name: &str, contents: &str, good: &str, says: &str| {
        authority.write(name, contents);
        let error = Signer::load(&authority.folder()).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        authority.write(name, good);
    };
    refused(
        "roots.pem",
        &other.bundle(),
        &roots,
        "does not lead to a root",
    );
    refused("roots.pem", "", &roots, "no certificate");
    refused("chain.pem", &other.bundle(), &chain, "not that of key.pem");
    refused("key.pem", "garbage", &key, "no private key");
    fs::remove_file(authority.folder().join("chain.pem")).unwrap();
    let error = Signer::open(&authority.folder()).unwrap_err().to_string();
    assert!(
        error.contains("chain.pem"),
        "no new root over an old key: {error}"
    );
}

#[test]
fn what_is_signed_is_what_was_asked_and_no_more() {
    let authority = Authority::intermediate();
    let signer = Signer::open(&authority.folder()).unwrap();
    let (_, pem) = request("web");
    let csr = Csr::from_pem(&pem).unwrap();
    csr.asks_only_for(&id("web")).unwrap();
    assert!(csr.asks_only_for(&id("db")).is_err());
    let now = SystemTime::now();
    let chain = signer.sign(&csr, &id("web"), DEFAULT_TTL, now).unwrap();
    assert_eq!(chain.len(), 2, "leaf and intermediate, no root");
    let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
    assert_eq!(leaf.subject().iter().count(), 0);
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical);
    assert_eq!(names.value.general_names.len(), 1);
    assert!(!leaf.is_ca());
    let uses = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(uses.server_auth && uses.client_auth && !uses.any);
    let described = roots::describe(&chain[0]).unwrap();
    let second = Duration::from_secs(1);
    assert!(described.not_before <= now - BACKDATE + second);
    assert!(
        described.not_after <= now + DEFAULT_TTL
            && described.not_after > now + DEFAULT_TTL - second
    );

    // Never longer than the authority itself; and an authority that has ended says so.
    let ages = Duration::from_secs(1_000_000 * 24 * 3600);
    let long = signer.sign(&csr, &id("web"), ages, now).unwrap();
    let own = roots::describe(&chain[1]).unwrap().not_after;
    assert_eq!(roots::describe(&long[0]).unwrap().not_after, own);
    let error = signer.sign(&csr, &id("web"), DEFAULT_TTL, own).unwrap_err();
    assert!(error.to_string().contains("expired"), "{error}");
}

#[tokio::test]
async fn the_built_in_authority_signs_only_what_the_request_names() {
    let authority = Authority::new();
    let ca = authority.ca();
    let (_, pem) = request("web");
    ca.sign(&id("web"), &pem, DEFAULT_TTL).await.unwrap();
    let error = ca.sign(&id("db"), &pem, DEFAULT_TTL).await.unwrap_err();
    assert!(matches!(error, CaError::Refused(_)), "{error}");
    let error = ca
        .sign(&id("db"), "rubbish", DEFAULT_TTL)
        .await
        .unwrap_err();
    assert!(matches!(error, CaError::Refused(_)), "{error}");
}

#[test]
fn requests_are_read_strictly() {
    let (_, pem) = request("web");
    let (_, der) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
    // A bit of the signature, of the name, of the key.
    let text = String::from_utf8_lossy(&der.contents).into_owned();
    for at in [der.contents.len() - 3, text.find("cluster").unwrap()] {
        let mut bent = der.contents.clone();
        bent[at] ^= 1;
        let error = Csr::from_pem(&pem_of("CERTIFICATE REQUEST", &bent)).unwrap_err();
        assert!(matches!(error, CsrError::Signature), "{error}");
    }
    assert!(Csr::from_pem("").is_err());
    assert!(Csr::from_pem(&"x".repeat(100_000)).is_err());

    // Names beside the identity.
    let key = WorkloadKey::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["web.shop".to_owned()]).unwrap();
    params
        .subject_alt_names
        .push(csr::uri_name(&id("web")).unwrap());
    let csr = params.serialize_request(&key).unwrap().pem().unwrap();
    let csr = Csr::from_pem(&csr).unwrap();
    assert_eq!(csr.uris(), [id("web").to_string()]);
    assert!(csr.asks_only_for(&id("web")).is_err());
}

fn pem_of(label: &str, der: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in der.chunks(3) {
        let n = group.iter().fold(0u32, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - group.len()));
        for digit in 0..4 {
            if digit <= group.len() {
                text.push(DIGITS[(n >> (18 - 6 * digit)) as usize & 63] as char);
            } else {
                text.push('=');
            }
        }
    }
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}

proptest! {
    #[test]
    fn nothing_that_is_read_panics(text in ".{0,300}", bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Csr::from_pem(&text);
        let _ = Csr::from_pem(&pem_of("CERTIFICATE REQUEST", &bytes));
        let _ = roots::Roots::from_pem(text.as_bytes());
        let _ = roots::Roots::from_pem(pem_of("CERTIFICATE", &bytes).as_bytes());
    }
}
