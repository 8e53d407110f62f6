//! The two files that trust comes from: bundle and revocation lists. One that cannot be used keeps the last good one.

use std::{path::PathBuf, sync::Arc};

use super::{crl::Crls, file::Watched, roots::Roots};

/// Why the agent does not start: a file that it was told to trust by cannot be used, and to go on without would be
/// to trust more than it was told.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{what} {path} cannot be used: {reason}")]
pub struct FileError {
    pub what: &'static str,
    pub path: PathBuf,
    pub reason: String,
}

#[derive(Debug)]
pub(super) struct TrustFiles {
    pub(super) bundle: Option<Watched>,
    pub(super) crl: Option<Watched>,
}

/// What changed since the last look. An error keeps being reported until it is gone.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) bundle: Option<Result<Arc<Roots>, FileError>>,
    pub(super) crl: Option<Result<Arc<Crls>, FileError>>,
}

impl TrustFiles {
    /// Blocks.
    pub(super) fn poll(&mut self) -> Seen {
        Seen {
            bundle: self.bundle.as_mut().and_then(|file| {
                poll(file, "the trust bundle", |bytes| {
                    Roots::from_pem(bytes).map_err(|error| error.to_string())
                })
            }),
            crl: self.crl.as_mut().and_then(|file| {
                poll(file, "the revocation list", |bytes| {
                    Crls::read(bytes).map_err(|error| error.to_string())
                })
            }),
        }
    }
}

fn poll<T>(
    file: &mut Watched,
    what: &'static str,
    parse: impl FnOnce(&[u8]) -> Result<T, String>,
) -> Option<Result<Arc<T>, FileError>> {
    let result = match file.poll() {
        Ok(None) => return None,
        Ok(Some(bytes)) => parse(&bytes),
        Err(error) => Err(error.to_string()),
    };
    Some(result.map(Arc::new).map_err(|reason| FileError {
        what,
        path: file.path().to_owned(),
        reason,
    }))
}
