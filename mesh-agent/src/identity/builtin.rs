//! The certificate authority inside the agent, for one node, and the folder of a signer that is read again.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::future::BoxFuture;

use super::{
    CaError, CertificateAuthority, Signed,
    clock::{Clock, SystemClock},
    csr::Csr,
    file::Watched,
    signer::{Signer, SignerError},
};
use crate::model::SpiffeId;

/// A [`Signer`] whose folder may be edited while it is in use: another key, a new root in the bundle.
#[derive(Debug)]
pub struct SignerFolder {
    dir: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    signer: Arc<Signer>,
    files: Vec<Watched>,
    /// Why the folder as it is now is not used; the signer is the one of before.
    error: Option<String>,
}

impl SignerFolder {
    /// Opens the folder; makes a root there when it is missing or empty. Blocks.
    ///
    /// # Errors
    /// What is there cannot be used, or may be read by others.
    pub fn open(dir: &Path) -> Result<Self, SignerError> {
        // Made first, then marked as seen, then read: a change in between is seen by the next look.
        Signer::open(dir)?;
        let mut files: Vec<_> = Signer::files(dir).into_iter().map(Watched::new).collect();
        for file in &mut files {
            let _ = file.poll();
        }
        let signer = Signer::load(dir)?;
        Ok(Self {
            dir: dir.to_owned(),
            state: Mutex::new(State {
                signer: Arc::new(signer),
                files,
                error: None,
            }),
        })
    }

    /// The signer as the folder says now, or the last good one. Reads files when they changed: a few `stat` calls
    /// otherwise.
    pub fn signer(&self) -> Arc<Signer> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = false;
        for file in &mut state.files {
            changed |= !matches!(file.poll(), Ok(None));
        }
        if changed {
            match Signer::load(&self.dir) {
                Ok(signer) => {
                    state.signer = Arc::new(signer);
                    state.error = None;
                }
                Err(error) => {
                    let error = error.to_string();
                    if state.error.as_ref() != Some(&error) {
                        tracing::error!(dir = %self.dir.display(), error, "the authority's folder is not used; signing goes on with what it held before");
                        state.error = Some(error);
                    }
                }
            }
        }
        state.signer.clone()
    }

    /// Why the folder as it is now is not used.
    pub fn error(&self) -> Option<String> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.error.clone()
    }
}

/// Signs for the agent that it is part of. Its root is trusted by nobody else, so it is for a mesh of one node; several nodes
/// need `mesh-agent ca serve` or istiod.
#[derive(Debug)]
pub struct BuiltInCa {
    folder: Arc<SignerFolder>,
    bundle: PathBuf,
    clock: Arc<dyn Clock>,
}

impl BuiltInCa {
    /// The authority in `STATE/ca`, made on the first run. Blocks.
    ///
    /// # Errors
    /// What is there cannot be used, or may be read by others.
    pub fn open(state: &Path) -> Result<Self, SignerError> {
        Self::with_clock(state, Arc::new(SystemClock))
    }

    /// The same by another clock.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn with_clock(state: &Path, clock: Arc<dyn Clock>) -> Result<Self, SignerError> {
        let dir = state.join("ca");
        let folder = Arc::new(SignerFolder::open(&dir)?);
        Ok(Self {
            folder,
            bundle: Signer::bundle_file(&dir),
            clock,
        })
    }
}

impl CertificateAuthority for BuiltInCa {
    fn name(&self) -> &str {
        "built-in"
    }

    fn bundle_file(&self) -> Option<&Path> {
        Some(&self.bundle)
    }

    fn sign<'a>(
        &'a self,
        id: &'a SpiffeId,
        csr_pem: &'a str,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Signed, CaError>> {
        Box::pin(async move {
            let refused =
                |error: &dyn std::fmt::Display| CaError::Refused(error.to_string().into());
            let csr = Csr::from_pem(csr_pem).map_err(|error| refused(&error))?;
            csr.asks_only_for(id).map_err(|error| refused(&error))?;
            let folder = self.folder.clone();
            let signer = tokio::task::spawn_blocking(move || folder.signer())
                .await
                .map_err(|error| CaError::Unavailable(error.to_string().into()))?;
            let chain = signer
                .sign(&csr, id, ttl, self.clock.now())
                .map_err(|error| refused(&error))?;
            Ok(Signed {
                chain,
                roots: signer.roots().to_vec(),
            })
        })
    }
}
