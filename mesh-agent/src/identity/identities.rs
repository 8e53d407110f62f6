//! The certificates of this node's identities, and whom it trusts.
//!
//! Readers take no lock: the map, each certificate and the state of trust stand behind an `ArcSwap`. Everything that changes them
//! goes through one mutex that is never held across an await.

mod renew;
mod report;
mod trusting;

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::{
    CaError, CertificateAuthority,
    bundle::{FileError, TrustFiles},
    clock::{Clock, SystemClock},
    file::Watched,
    moment::moment,
    roots::Roots,
    signer::DEFAULT_TTL,
    status::{Missing, NoCertificate, RequestCounts},
    tls::TlsIdentity,
    trust::{Trust, TrustCell},
};
use crate::model::SpiffeId;

/// How [`Identities`] behave.
#[derive(Clone, Debug)]
pub struct IdentityOptions {
    /// Life asked for; 24 h.
    pub ttl: Duration,
    /// PEM file of roots, read again when it changes. `None`: the authority's own file if it has one on this node, else
    /// the roots that came with its last answer.
    pub trust_bundle: Option<PathBuf>,
    /// File of revocation lists, PEM or DER, read again when it changes.
    pub crl: Option<PathBuf>,
    /// An authority that has not answered by then is away; 10 s.
    pub request_deadline: Duration,
    /// Requests under way at once; 8.
    pub concurrency: usize,
    pub clock: Arc<dyn Clock>,
}

impl Default for IdentityOptions {
    fn default() -> Self {
        Self {
            ttl: DEFAULT_TTL,
            trust_bundle: None,
            crl: None,
            request_deadline: Duration::from_secs(10),
            concurrency: 8,
            clock: Arc::new(SystemClock),
        }
    }
}

/// Certificates, trust and TLS of this node. One an agent; [`Self::run`] is its task.
pub struct Identities {
    ca: Arc<dyn CertificateAuthority>,
    ca_name: Arc<str>,
    options: IdentityOptions,
    trust: Arc<TrustCell>,
    entries: ArcSwap<HashMap<SpiffeId, Arc<Entry>>>,
    writer: Mutex<Writer>,
    /// Counts states of trust.
    trust_version: watch::Sender<u64>,
    /// Counts certificates that arrived, and failures to get one.
    arrivals: watch::Sender<u64>,
    wake: Notify,
}

/// What only writers touch.
struct Writer {
    /// Taken by `run`.
    files: Option<TrustFiles>,
    bundle_file: Option<PathBuf>,
    bundle: Health,
    crl: Health,
    crl_loaded: SystemTime,
    requests: RequestCounts,
    last_signed: Option<SystemTime>,
    last_error: Option<(SystemTime, CaError)>,
}

/// How reading a file went.
#[derive(Clone, Default)]
struct Health {
    error: Option<(SystemTime, String)>,
    errors: u64,
}

/// One identity.
struct Entry {
    id: SpiffeId,
    tls: ArcSwapOption<TlsIdentity>,
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    renew_at: Option<SystemTime>,
    refused: bool,
    retry_at: Option<Instant>,
    failures: u32,
    failures_total: u64,
    last_error: Option<(SystemTime, CaError)>,
    in_flight: bool,
}

impl Entry {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Identities {
    /// Reads the trust bundle and the revocation lists; spawns nothing.
    ///
    /// # Errors
    /// A file that was named cannot be read or does not parse. The agent must not start then: it would trust more than
    /// it was told to.
    pub fn new(
        ca: Arc<dyn CertificateAuthority>,
        options: IdentityOptions,
    ) -> Result<Arc<Self>, FileError> {
        let bundle_file = options
            .trust_bundle
            .clone()
            .or_else(|| ca.bundle_file().map(ToOwned::to_owned));
        let mut files = TrustFiles {
            bundle: bundle_file.clone().map(Watched::new),
            crl: options.crl.clone().map(Watched::new),
        };
        let seen = files.poll();
        let trust = Trust::new(
            seen.bundle
                .transpose()?
                .unwrap_or_else(|| Arc::new(Roots::none())),
            seen.crl.transpose()?.unwrap_or_default(),
            Arc::default(),
        );
        trusting::report_disowned(&trust);
        Ok(Arc::new(Self {
            ca_name: ca.name().into(),
            ca,
            trust: TrustCell::new(trust),
            entries: ArcSwap::default(),
            writer: Mutex::new(Writer {
                files: Some(files),
                bundle_file,
                bundle: Health::default(),
                crl: Health::default(),
                crl_loaded: options.clock.now(),
                requests: RequestCounts::default(),
                last_signed: None,
                last_error: None,
            }),
            trust_version: watch::Sender::new(1),
            arrivals: watch::Sender::new(0),
            wake: Notify::new(),
            options,
        }))
    }

    /// The identities that this node has from now on. Certificates of new ones are asked for, those of gone ones dropped.
    pub fn want(&self, ids: BTreeSet<SpiffeId>) {
        let _writer = self.writer();
        let old = self.entries.load();
        if old.len() == ids.len() && ids.iter().all(|id| old.contains_key(id)) {
            return;
        }
        let new = ids
            .into_iter()
            .map(|id| {
                let entry = old.get(&id).cloned().unwrap_or_else(|| {
                    Arc::new(Entry {
                        id: id.clone(),
                        tls: ArcSwapOption::empty(),
                        progress: Mutex::default(),
                    })
                });
                (id, entry)
            })
            .collect();
        self.entries.store(Arc::new(new));
        self.wake.notify_one();
        self.arrivals.send_modify(|n| *n += 1);
    }

    /// The TLS configurations of an identity. Takes no lock.
    ///
    /// # Errors
    /// There is no certificate, or it has expired; the error says why. Nothing may be sent in plain text instead.
    pub fn tls(&self, id: &SpiffeId) -> Result<Arc<TlsIdentity>, NoCertificate> {
        let entries = self.entries.load();
        let Some(entry) = entries.get(id) else {
            return Err(self.missing(id, Missing::NotHere, None));
        };
        match entry.tls.load_full() {
            Some(tls) if self.options.clock.now() < tls.not_after => Ok(tls),
            Some(tls) => Err(self.missing(id, Missing::Expired(tls.not_after), Some(entry))),
            None => Err(self.missing(id, Missing::NotYet, Some(entry))),
        }
    }

    /// As [`Self::tls`], but waits for the first certificate of an identity. Does not wait when the last one has expired and the
    /// authority has failed since: that may take hours.
    ///
    /// # Errors
    /// As [`Self::tls`], by the deadline.
    pub async fn tls_by(
        &self,
        id: &SpiffeId,
        deadline: Instant,
    ) -> Result<Arc<TlsIdentity>, NoCertificate> {
        let mut arrivals = self.arrivals.subscribe();
        loop {
            arrivals.borrow_and_update();
            let missing = match self.tls(id) {
                Ok(tls) => return Ok(tls),
                Err(missing) => missing,
            };
            if let (Missing::Expired(end), Some((at, _))) =
                (missing.why, missing.last_error.as_deref())
                && *at >= end
            {
                return Err(missing);
            }
            if tokio::time::timeout_at(deadline, arrivals.changed())
                .await
                .is_err()
            {
                return self.tls(id);
            }
        }
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn missing(&self, id: &SpiffeId, why: Missing, entry: Option<&Arc<Entry>>) -> NoCertificate {
        NoCertificate {
            id: id.clone(),
            why,
            ca: self.ca_name.clone(),
            last_error: entry
                .and_then(|entry| entry.progress().last_error.clone())
                .map(Box::new),
        }
    }
}

impl std::fmt::Debug for Identities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identities")
            .field("ca", &self.ca_name)
            .field("since", &moment(self.options.clock.now()))
            .finish_non_exhaustive()
    }
}
