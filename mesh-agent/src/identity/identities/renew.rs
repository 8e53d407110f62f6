//! The task that keeps certificates fresh and follows the files of trust.

use std::{sync::Arc, time::Duration};

use rustls::sign::CertifiedKey;
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior},
};

use super::{Entry, Identities};
use crate::identity::{
    CaError,
    answer::{self, Checked},
    csr,
    keys::WorkloadKey,
    moment::moment,
    rotation::{self, Held, Need},
    tls::TlsIdentity,
};

/// Validity is compared with the wall clock, and the files are looked at, this often: a clock that jumped is noticed within it.
const TICK: Duration = Duration::from_secs(1);

impl Identities {
    /// Renews certificates and follows the files, until it is dropped.
    pub async fn run(self: Arc<Self>) {
        let mut files = self
            .writer()
            .files
            .take()
            .filter(|files| files.bundle.is_some() || files.crl.is_some());
        let mut signing = JoinSet::new();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            for entry in self.due(self.options.concurrency.saturating_sub(signing.len())) {
                entry.progress().in_flight = true;
                let identities = self.clone();
                signing.spawn(async move { identities.renew(entry).await });
            }
            tokio::select! {
                Some(ended) = signing.join_next(), if !signing.is_empty() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a request for a certificate ended in a panic");
                    }
                }
                () = self.wake.notified() => {}
                _ = ticks.tick() => {
                    if let Some(mut mine) = files.take() {
                        // Only lost if a parser panics; what was read last stays then.
                        files = tokio::task::spawn_blocking(move || {
                            let seen = mine.poll();
                            (mine, seen)
                        })
                        .await
                        .map_err(|error| tracing::error!(%error, "trust bundle and revocation lists are no longer followed"))
                        .ok()
                        .map(|(mine, seen)| {
                            self.take_files(seen);
                            mine
                        });
                    }
                }
            }
        }
    }

    /// The identities that need a certificate now, the most urgent first.
    fn due(&self, most: usize) -> Vec<Arc<Entry>> {
        if most == 0 {
            return Vec::new();
        }
        let (wall, now) = (self.options.clock.now(), Instant::now());
        let entries = self.entries.load();
        let mut due: Vec<(Need, u32, &Arc<Entry>)> = entries
            .values()
            .filter_map(|entry| {
                let need = entry.need(wall, now)?;
                Some((need, entry.progress().failures, entry))
            })
            .collect();
        // Those that failed come after those that were not asked for yet, or a slow authority would be asked for a few only.
        due.sort_by_key(|(need, failures, _)| (*need, *failures));
        due.into_iter()
            .take(most)
            .map(|(_, _, entry)| entry.clone())
            .collect()
    }

    async fn renew(&self, entry: Arc<Entry>) {
        let guard = InFlight(&entry);
        let result = self.ask(&entry).await;
        let result = result.and_then(|(key, checked)| self.install(&entry, key, checked));
        let now = self.options.clock.now();
        {
            let mut writer = self.writer();
            writer.requests.count(&result);
            match &result {
                Ok(()) => {
                    writer.last_signed = Some(now);
                    writer.last_error = None;
                }
                Err(error) => writer.last_error = Some((now, error.clone())),
            }
        }
        if let Err(error) = result {
            entry.failed(&error, &self.ca_name, now);
        }
        drop(guard);
        self.arrivals.send_modify(|n| *n += 1);
    }

    async fn ask(&self, entry: &Entry) -> Result<(WorkloadKey, Checked), CaError> {
        let ours = |error: String| CaError::Unavailable(error.into());
        let key = WorkloadKey::generate().map_err(|error| ours(error.to_string()))?;
        let csr = csr::request(&key, &entry.id).map_err(|error| ours(error.to_string()))?;
        let answer = self.ca.sign(&entry.id, &csr, self.options.ttl);
        let signed = tokio::time::timeout(self.options.request_deadline, answer)
            .await
            .map_err(|_| {
                ours(format!(
                    "no answer within {:?}",
                    self.options.request_deadline
                ))
            })??;
        let trust = self.trust.get();
        let has_file = self.writer().bundle_file.is_some();
        let checked = answer::check(
            signed,
            &entry.id,
            &key,
            has_file.then_some(&*trust),
            &trust,
            self.options.clock.now(),
        )?;
        Ok((key, checked))
    }

    fn install(
        &self,
        entry: &Arc<Entry>,
        key: WorkloadKey,
        checked: Checked,
    ) -> Result<(), CaError> {
        let mut writer = self.writer();
        if !self
            .entries
            .load()
            .get(&entry.id)
            .is_some_and(|now| Arc::ptr_eq(now, entry))
        {
            // Not wanted any more.
            return Ok(());
        }
        let trust = self.trust.get();
        if writer.bundle_file.is_none() && !checked.roots.same(&trust.roots) {
            tracing::info!(
                roots = checked.roots.certificates().len(),
                "the authority's roots have changed"
            );
            self.change_trust(&mut writer, trust.with_roots(checked.roots.clone()));
        }
        let now = self.options.clock.now();
        let (serial, end) = (checked.leaf.serial.clone(), checked.leaf.not_after);
        let refused = super::trusting::refuses(&self.trust.get(), &checked.chain, now).is_some();
        let certified = Arc::new(CertifiedKey::new(checked.chain, Arc::new(key)));
        let tls = TlsIdentity::new(
            entry.id.clone(),
            certified,
            checked.leaf,
            &self.trust,
            &self.options.clock,
        )
        .map_err(|error| CaError::Unavailable(format!("no TLS configuration: {error}").into()))?;
        let renew_at = rotation::renew_at(now, end, rand::random());
        {
            let mut progress = entry.progress();
            progress.renew_at = Some(renew_at);
            progress.refused = refused;
            // A signed answer that our trust refuses all the same must not be asked for in a loop.
            progress.failures = 0;
            progress.retry_at = Some(Instant::now() + rotation::backoff(1, 1.0));
            progress.last_error = None;
        }
        entry.tls.store(Some(Arc::new(tls)));
        tracing::info!(id = %entry.id, serial, ends = moment(end), renewal = moment(renew_at), "certificate signed");
        Ok(())
    }
}

impl Entry {
    fn need(&self, wall: std::time::SystemTime, now: Instant) -> Option<Need> {
        let progress = self.progress();
        if progress.in_flight {
            return None;
        }
        let tls = self.tls.load();
        let held = tls.as_ref().map(|tls| Held {
            not_before: tls.described.not_before,
            not_after: tls.not_after,
            renew_at: progress.renew_at.unwrap_or(tls.not_after),
            refused: progress.refused,
        });
        rotation::need(held.as_ref(), progress.retry_at, wall, now)
    }

    fn failed(&self, error: &CaError, ca: &str, at: std::time::SystemTime) {
        let mut progress = self.progress();
        progress.failures = progress.failures.saturating_add(1);
        progress.failures_total += 1;
        let wait = rotation::backoff(progress.failures, rand::random());
        progress.retry_at = Some(Instant::now() + wait);
        progress.last_error = Some((at, error.clone()));
        // An authority that is away for hours must not fill the log: the 1st, 2nd, 4th, 8th failure ... says it.
        if progress.failures.is_power_of_two() {
            tracing::warn!(id = %self.id, ca, %error, failures = progress.failures, retry_in_ms = wait.as_millis(), "no new certificate");
        } else {
            tracing::debug!(id = %self.id, ca, %error, failures = progress.failures, "no new certificate");
        }
    }
}

/// A request under way; whichever way it ends, another may follow.
struct InFlight<'a>(&'a Entry);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let mut progress = self.0.progress();
        progress.in_flight = false;
        if progress.retry_at.is_none_or(|at| at <= Instant::now()) {
            // It panicked: neither success nor failure set a moment.
            progress.retry_at = Some(Instant::now() + rotation::backoff(1, 1.0));
        }
    }
}
