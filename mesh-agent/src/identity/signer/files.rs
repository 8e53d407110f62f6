//! The folder of an authority on disk: who may read it, how it is made, how it is read.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PublicKeyData as _,
};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::FromDer as _;
use zeroize::Zeroizing;

use super::{
    super::roots::{certificates, hex},
    SignerError,
};

/// A root lives ten years; it is replaced by putting another beside it (docs/identity.md).
const ROOT_LIFE: Duration = Duration::from_secs(3650 * 24 * 60 * 60);
const ROOT_BACKDATE: Duration = Duration::from_secs(24 * 60 * 60);
/// Longest file that is read.
const MAX_FILE: u64 = 4 * 1024 * 1024;

pub(super) fn key(dir: &Path) -> PathBuf {
    dir.join("key.pem")
}

pub(super) fn chain(dir: &Path) -> PathBuf {
    dir.join("chain.pem")
}

pub(super) fn roots(dir: &Path) -> PathBuf {
    dir.join("roots.pem")
}

pub(super) struct Files {
    pub(super) key: KeyPair,
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) roots: Vec<CertificateDer<'static>>,
}

impl Files {
    pub(super) fn read(dir: &Path) -> Result<Self, SignerError> {
        private(dir, 0o700)?;
        let path = key(dir);
        private(&path, 0o600)?;
        let pem = Zeroizing::new(read(&path)?);
        let key = std::str::from_utf8(&pem)
            .map_err(|error| error.to_string())
            .and_then(|pem| KeyPair::from_pem(pem).map_err(|error| error.to_string()))
            .map_err(|reason| SignerError::File {
                path,
                reason: format!("it is no private key in PKCS #8 PEM: {reason}"),
            })?;
        let bundle = |path: PathBuf| {
            let pem = read(&path)?;
            certificates(&pem).map_err(|error| SignerError::Bundle(path, error))
        };
        Ok(Self {
            key,
            chain: bundle(chain(dir))?,
            roots: bundle(roots(dir))?,
        })
    }
}

/// Refuses what others may read or write, and what belongs to somebody else.
pub(in crate::identity) fn private(path: &Path, want: u32) -> Result<(), SignerError> {
    let meta = fs::metadata(path).map_err(|source| io_error("read", path, source))?;
    let mode = meta.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(SignerError::Mode {
            path: path.to_owned(),
            mode,
            want,
        });
    }
    let owner = meta.uid();
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return Err(SignerError::Owner {
            path: path.to_owned(),
            owner,
        });
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, SignerError> {
    let failed = |source| io_error("read", path, source);
    if fs::metadata(path).map_err(failed)?.len() > MAX_FILE {
        return Err(failed(io::Error::other("it is larger than 4 MiB")));
    }
    fs::read(path).map_err(failed)
}

/// Makes a root when there is none. The files are written into a folder beside, which then takes the name at once: a crash
/// leaves either no authority or a whole one, and never a second root over the first.
pub(super) fn create_if_missing(dir: &Path) -> Result<(), SignerError> {
    match fs::read_dir(dir) {
        Ok(mut entries) => {
            if entries.next().is_some() {
                return Ok(());
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(io_error("read", dir, source)),
    }
    if let Some(parent) = dir.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)
            .map_err(|source| io_error("make", parent, source))?;
    }
    let (key_pem, root_pem) = make_root().map_err(|reason| SignerError::File {
        path: dir.to_owned(),
        reason,
    })?;
    let new = dir.with_extension(format!("new-{}", std::process::id()));
    let _ = fs::remove_dir_all(&new);
    let made = DirBuilder::new()
        .mode(0o700)
        .create(&new)
        .map_err(|source| io_error("make", &new, source))
        .and_then(|()| {
            write(&key(&new), key_pem.as_bytes(), 0o600)?;
            write(&chain(&new), root_pem.as_bytes(), 0o600)?;
            write(&roots(&new), root_pem.as_bytes(), 0o600)?;
            sync(&new)?;
            match fs::rename(&new, dir) {
                // Another process was faster: its authority is the one.
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
                result => result.map_err(|source| io_error("make", dir, source)),
            }
        })
        .and_then(|()| dir.parent().map_or(Ok(()), sync));
    let _ = fs::remove_dir_all(&new);
    made
}

fn write(path: &Path, contents: &[u8], mode: u32) -> Result<(), SignerError> {
    let failed = |source| io_error("write", path, source);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(failed)?;
    file.write_all(contents).map_err(failed)?;
    file.sync_all().map_err(failed)
}

fn sync(dir: &Path) -> Result<(), SignerError> {
    let dir = if dir.as_os_str().is_empty() {
        Path::new(".")
    } else {
        dir
    };
    fs::File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|source| io_error("write", dir, source))
}

/// Key and certificate of a new root. Its name is its own, so that paths through old and new roots are told apart.
fn make_root() -> Result<(Zeroizing<String>, String), String> {
    let mut unique = [0; 4];
    aws_lc_rs::rand::fill(&mut unique).map_err(|_| "the system has no random numbers")?;
    let key =
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|error| error.to_string())?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(
        DnType::CommonName,
        format!("Covet Mesh root {}", hex(&unique)),
    );
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(super::serial().map_err(|()| "the system has no random numbers")?);
    let now = SystemTime::now();
    params.not_before = now.checked_sub(ROOT_BACKDATE).unwrap_or(now).into();
    params.not_after = now.checked_add(ROOT_LIFE).unwrap_or(now).into();
    let root = params
        .self_signed(&key)
        .map_err(|error| error.to_string())?;
    Ok((Zeroizing::new(key.serialize_pem()), root.pem()))
}

/// The first certificate of the chain must be the key's, and may sign.
pub(super) fn check_pair(certificate: &CertificateDer<'_>, key: &KeyPair) -> Result<(), String> {
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate)
        .map_err(|error| error.to_string())?;
    if parsed.public_key().subject_public_key.data.as_ref() != key.der_bytes() {
        return Err("its first certificate is not that of key.pem".into());
    }
    if !parsed.is_ca() {
        return Err("its first certificate is not an authority's (basicConstraints CA)".into());
    }
    Ok(())
}

fn io_error(doing: &'static str, path: &Path, source: io::Error) -> SignerError {
    SignerError::Io {
        doing,
        path: path.to_owned(),
        source,
    }
}
