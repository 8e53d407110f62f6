//! Steady load on a service while a test does something to it.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use super::{Ask, Connection, Speaks};
use crate::{node::Pod, runner, wait::eventually};

/// What the clients saw.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub good: u64,
    /// What went wrong, each as often as it did: no answer, a broken one, or a status that is not 200.
    pub bad: BTreeMap<String, u64>,
    /// Good answers by pod.
    pub pods: BTreeMap<String, u64>,
}

/// Clients that ask one after another on connections that they keep; a lost connection counts only with a request on it.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    outcome: Arc<Mutex<Outcome>>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    pub fn start(pod: &Arc<Pod>, to: SocketAddr, clients: &[Speaks], ask: &Ask) -> Load {
        let (stop, count, outcome) =
            <(Arc<AtomicBool>, Arc<AtomicU64>, Arc<Mutex<Outcome>>)>::default();
        let owner = runner::current();
        let threads = clients.iter().map(|speaks| {
            let (pod, ask, speaks) = (Arc::clone(pod), ask.clone(), *speaks);
            let (stop, count) = (Arc::clone(&stop), Arc::clone(&count));
            let outcome = Arc::clone(&outcome);
            std::thread::spawn(move || {
                runner::adopt(owner);
                let mut own = Outcome::default();
                let mut kept = None;
                while !stop.load(Ordering::Relaxed) {
                    one(&pod, to, speaks, &ask, &mut kept, &mut own);
                    count.fetch_add(1, Ordering::Relaxed);
                }
                let mut all = outcome.lock().unwrap_or_else(PoisonError::into_inner);
                all.good += own.good;
                for (what, times) in own.bad {
                    *all.bad.entry(what).or_default() += times;
                }
                for (pod, times) in own.pods {
                    *all.pods.entry(pod).or_default() += times;
                }
            })
        });
        let threads = threads.collect();
        Load {
            stop,
            count,
            outcome,
            threads,
        }
    }

    /// Requests so far.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Waits until so many more were sent.
    pub fn wait(&self, more: u64) {
        let until = self.count() + more;
        eventually("the load goes on", Duration::from_secs(60), || {
            self.count() >= until
        });
    }

    pub fn finish(mut self) -> Outcome {
        self.end();
        self.outcome
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

fn one(
    pod: &Pod,
    to: SocketAddr,
    speaks: Speaks,
    ask: &Ask,
    kept: &mut Option<Connection>,
    own: &mut Outcome,
) {
    let connection = match kept.take() {
        Some(connection) => Ok(connection),
        None => Connection::open(pod, to, speaks),
    };
    let answer = connection.and_then(|mut connection| {
        let answer = connection.send(ask)?;
        // A server may end a connection in order; the next request takes a new one.
        let closes = answer
            .header("connection")
            .is_some_and(|value| value.eq_ignore_ascii_case("close"));
        if answer.broken.is_none() && !closes {
            *kept = Some(connection);
        }
        Ok(answer)
    });
    let what = match answer {
        Err(e) => format!("no answer: {e}"),
        Ok(answer) => match &answer.broken {
            Some(why) => format!("broken: {why}"),
            None if answer.status != 200 => {
                let reason = answer.reason().unwrap_or_default();
                format!("{} {reason}", answer.status)
            }
            None => {
                own.good += 1;
                *own.pods.entry(answer.pod()).or_default() += 1;
                return;
            }
        },
    };
    *own.bad.entry(what).or_default() += 1;
}
