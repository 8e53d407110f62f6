//! What is to be checked when, and what the results come to. Pure: time and chance are arguments.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    model::{HealthCheck, ResourceName},
    resilience::Health,
};

/// One endpoint of one port of one service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub service: ResourceName,
    /// Of the service.
    pub port: u16,
    pub endpoint: SocketAddr,
}

/// How one check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Good,
    Bad,
    /// It says nothing.
    Unknown,
}

/// A check that is due.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Due {
    pub(super) key: Key,
    pub(super) check: HealthCheck,
    /// To be handed back with the result.
    pub(super) ticket: u64,
}

/// Every endpoint that is checked.
#[derive(Debug)]
pub(super) struct Plan {
    entries: HashMap<Key, Entry>,
    /// Those that wait, soonest first.
    waiting: BTreeSet<(Instant, Key)>,
    running: usize,
    /// Checks at once.
    most: usize,
    tickets: u64,
}

#[derive(Debug)]
struct Entry {
    check: HealthCheck,
    streak: Streak,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Waiting(Instant),
    Running(u64),
}

impl Plan {
    pub(super) fn new(most: usize) -> Self {
        Self {
            entries: HashMap::new(),
            waiting: BTreeSet::new(),
            running: 0,
            most: most.max(1),
            tickets: 0,
        }
    }

    /// Follows what is wanted now. New endpoints are first checked within one interval, each at a moment of its own, so
    /// that neither a restart nor a new policy makes all checks at once. `random` gives numbers in [0, 1).
    pub(super) fn follow(
        &mut self,
        wanted: HashMap<Key, HealthCheck>,
        now: Instant,
        mut random: impl FnMut() -> f64,
    ) {
        let waiting = &mut self.waiting;
        self.entries.retain(|key, entry| {
            let stays = wanted.contains_key(key);
            if let (State::Waiting(at), false) = (entry.state, stays) {
                waiting.remove(&(at, key.clone()));
            }
            stays
        });
        for (key, check) in wanted {
            let first = now + check.interval.mul_f64(random());
            match self.entries.get_mut(&key) {
                Some(entry) if entry.check == check => {}
                Some(entry) => {
                    // What was known of it stands until the new check has said otherwise.
                    entry.streak.begin_again();
                    if let State::Waiting(at) = entry.state {
                        waiting.remove(&(at, key.clone()));
                    }
                    // The result of the old check, if one is under way, has no ticket any more.
                    entry.state = State::Waiting(first);
                    entry.check = check;
                    waiting.insert((first, key));
                }
                None => {
                    waiting.insert((first, key.clone()));
                    let entry = Entry {
                        check,
                        streak: Streak::default(),
                        state: State::Waiting(first),
                    };
                    self.entries.insert(key, entry);
                }
            }
        }
    }

    /// The next check that is due, if there is room for one more.
    pub(super) fn take(&mut self, now: Instant) -> Option<Due> {
        if self.running >= self.most || self.waiting.first()?.0 > now {
            return None;
        }
        let (_, key) = self.waiting.pop_first()?;
        let entry = self.entries.get_mut(&key)?;
        self.tickets += 1;
        entry.state = State::Running(self.tickets);
        self.running += 1;
        Some(Due {
            check: entry.check.clone(),
            ticket: self.tickets,
            key,
        })
    }

    /// When [`Self::take`] is to be asked again; `None`: after the next result or change.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        if self.running >= self.most {
            return None;
        }
        self.waiting.first().map(|(at, _)| *at)
    }

    /// A check that [`Self::take`] gave has ended. Returns the endpoint's health where that changes it. Every ticket is
    /// to be handed back once.
    pub(super) fn finished(
        &mut self,
        key: &Key,
        ticket: u64,
        outcome: Outcome,
        now: Instant,
        random: f64,
    ) -> Option<Health> {
        self.running = self.running.saturating_sub(1);
        let entry = self.entries.get_mut(key)?;
        if !matches!(entry.state, State::Running(own) if own == ticket) {
            return None;
        }
        let next = now + jittered(entry.check.interval, random);
        entry.state = State::Waiting(next);
        self.waiting.insert((next, key.clone()));
        entry.streak.observe(outcome, &entry.check)
    }

    pub(super) fn health(&self, key: &Key) -> Health {
        self.entries
            .get(key)
            .map_or(Health::Unknown, |entry| entry.streak.health)
    }
}

/// A tenth of the interval either way, so that agents that began together do not stay together.
fn jittered(interval: Duration, random: f64) -> Duration {
    interval.mul_f64(0.9 + 0.2 * random.clamp(0.0, 1.0))
}

/// Results in a row.
#[derive(Debug, Default)]
struct Streak {
    health: Health,
    good: u32,
    bad: u32,
}

impl Streak {
    fn begin_again(&mut self) {
        self.good = 0;
        self.bad = 0;
    }

    /// The first good check makes an endpoint healthy of which nothing was known; it was in use meanwhile.
    fn observe(&mut self, outcome: Outcome, check: &HealthCheck) -> Option<Health> {
        let good = match outcome {
            Outcome::Unknown => return None,
            Outcome::Good => true,
            Outcome::Bad => false,
        };
        if good {
            self.good = self.good.saturating_add(1);
            self.bad = 0;
        } else {
            self.bad = self.bad.saturating_add(1);
            self.good = 0;
        }
        let next = match self.health {
            Health::Unknown if good => Health::Healthy,
            Health::Unhealthy if self.good >= check.healthy_threshold => Health::Healthy,
            Health::Unknown | Health::Healthy if self.bad >= check.unhealthy_threshold => {
                Health::Unhealthy
            }
            same => same,
        };
        (std::mem::replace(&mut self.health, next) != next).then_some(next)
    }
}
