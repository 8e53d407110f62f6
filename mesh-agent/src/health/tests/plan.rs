//! The plan: never more at once than allowed, nobody twice at once, nobody forgotten, thresholds as a naive reading has
//! them.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use proptest::prelude::*;
use tokio::time::Instant;

use super::check;
use crate::{
    health::plan::{Due, Key, Outcome, Plan},
    model::{HealthCheck, HealthProbe, ResourceName},
    resilience::Health,
};

fn key(n: u16) -> Key {
    Key {
        service: ResourceName::new("shop", "web"),
        port: 80,
        endpoint: ([10, 0, 0, 1], n).into(),
    }
}

fn every(seconds: u64) -> HealthCheck {
    let interval = Duration::from_secs(seconds);
    check(HealthProbe::Tcp, interval, interval)
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        Just(Outcome::Good),
        Just(Outcome::Bad),
        Just(Outcome::Unknown)
    ]
}

#[derive(Clone, Debug)]
enum Step {
    /// Endpoints with the seconds of their interval.
    Follow(Vec<(u16, u64)>),
    Pass(u64),
    Finish(usize, Outcome, f64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => prop::collection::vec((0..8u16, 1..4u64), 0..8).prop_map(Step::Follow),
        3 => (0..3000u64).prop_map(Step::Pass),
        3 => (any::<usize>(), outcome(), 0.0..1.0).prop_map(|(n, o, r)| Step::Finish(n, o, r)),
    ]
}

proptest! {
    #[test]
    fn bounded_and_fair(
        most in 1..4usize,
        seeds in prop::collection::vec(0.0..1.0f64, 1..10),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut plan = Plan::new(most);
        let mut now = Instant::now();
        let mut wanted: HashMap<Key, HealthCheck> = HashMap::new();
        let mut running: Vec<Due> = Vec::new();
        // When each endpoint's last check ended.
        let mut ended: HashMap<Key, Instant> = HashMap::new();
        // Of checks that began after the last change.
        let mut tickets = HashSet::new();
        let mut turn = 0;
        for step in steps {
            match step {
                Step::Follow(list) => {
                    wanted = list.into_iter().map(|(n, s)| (key(n), every(s))).collect();
                    plan.follow(wanted.clone(), now, || {
                        turn += 1;
                        seeds[turn % seeds.len()]
                    });
                    ended.clear();
                    tickets.clear();
                }
                Step::Pass(millis) => now += Duration::from_millis(millis),
                Step::Finish(..) if running.is_empty() => {}
                Step::Finish(n, outcome, random) => {
                    let due = running.remove(n % running.len());
                    plan.finished(&due.key, due.ticket, outcome, now, random);
                    if tickets.contains(&due.ticket) {
                        ended.insert(due.key, now);
                    }
                }
            }
            while let Some(due) = plan.take(now) {
                prop_assert!(wanted.get(&due.key) == Some(&due.check), "a check that nobody wants");
                if let Some(before) = ended.get(&due.key) {
                    let waited = now - *before;
                    prop_assert!(waited >= due.check.interval.mul_f64(0.9), "checked too soon: {waited:?}");
                }
                tickets.insert(due.ticket);
                running.push(due);
            }
            prop_assert!(running.len() <= most);
            let current: Vec<&Due> = running
                .iter()
                .filter(|due| wanted.get(&due.key) == Some(&due.check))
                .collect();
            if let Some(at) = plan.wake_at() {
                prop_assert!(at > now, "what is due was not taken");
                prop_assert!(running.len() < most);
            } else {
                // Full, or everybody is being checked.
                let busy: HashSet<&Key> = current.iter().map(|due| &due.key).collect();
                prop_assert!(running.len() == most || busy.len() == wanted.len(), "somebody was forgotten");
            }
        }
        // Whatever happened, everybody's turn comes.
        for due in running.drain(..) {
            plan.finished(&due.key, due.ticket, Outcome::Good, now, 0.5);
        }
        let mut seen = HashSet::new();
        for _ in 0..200 {
            now += Duration::from_millis(100);
            while let Some(due) = plan.take(now) {
                plan.finished(&due.key, due.ticket, Outcome::Good, now, 0.5);
                seen.insert(due.key);
            }
        }
        prop_assert_eq!(seen, wanted.keys().cloned().collect::<HashSet<_>>());
    }

    /// Against the words of the reference.
    #[test]
    fn thresholds(outcomes in prop::collection::vec(outcome(), 0..40), good in 1..5u32, bad in 1..5u32) {
        let policy = HealthCheck { healthy_threshold: good, unhealthy_threshold: bad, ..every(1) };
        let mut plan = Plan::new(1);
        let mut now = Instant::now();
        plan.follow(HashMap::from([(key(1), policy)]), now, || 0.0);
        let mut told: Vec<Outcome> = Vec::new();
        let mut health = Health::Unknown;
        for outcome in outcomes {
            now += Duration::from_secs(2);
            let due = plan.take(now).unwrap();
            let change = plan.finished(&due.key, due.ticket, outcome, now, 0.5);
            if outcome != Outcome::Unknown {
                told.push(outcome);
            }
            let last = |n: u32, what: Outcome| {
                told.len() >= n as usize && told.iter().rev().take(n as usize).all(|o| *o == what)
            };
            let before = health;
            health = match health {
                _ if outcome == Outcome::Unknown => health,
                Health::Unknown if last(1, Outcome::Good) => Health::Healthy,
                Health::Unhealthy if last(good, Outcome::Good) => Health::Healthy,
                Health::Unknown | Health::Healthy if last(bad, Outcome::Bad) => Health::Unhealthy,
                same => same,
            };
            prop_assert_eq!(change, (before != health).then_some(health));
            prop_assert_eq!(plan.health(&key(1)), health);
        }
    }
}

#[test]
fn first_checks_are_spread_over_one_interval() {
    let mut plan = Plan::new(100);
    let now = Instant::now();
    let wanted = (0..100).map(|n| (key(n), every(10))).collect();
    let mut n = 0.0;
    plan.follow(wanted, now, || {
        n += 0.01;
        n - 0.01
    });
    let mut taken = Vec::new();
    for second in 0..10 {
        let at = now + Duration::from_secs(second) + Duration::from_millis(999);
        taken.push(std::iter::from_fn(|| plan.take(at)).count());
    }
    assert_eq!(taken, [10; 10]);
}

#[test]
fn a_changed_check_begins_again_and_keeps_what_is_known() {
    let mut plan = Plan::new(10);
    let mut now = Instant::now();
    plan.follow(HashMap::from([(key(1), every(1))]), now, || 0.0);
    for _ in 0..3 {
        let due = plan.take(now).unwrap();
        plan.finished(&due.key, due.ticket, Outcome::Bad, now, 0.5);
        now += Duration::from_secs(1);
    }
    assert_eq!(plan.health(&key(1)), Health::Unhealthy);
    // One good result of two that are needed.
    let due = plan.take(now).unwrap();
    plan.finished(&due.key, due.ticket, Outcome::Good, now, 0.5);
    now += Duration::from_secs(1);
    let old = plan.take(now).unwrap();
    plan.follow(HashMap::from([(key(1), every(2))]), now, || 0.0);
    assert_eq!(plan.health(&key(1)), Health::Unhealthy, "it stays as it is");
    let change = plan.finished(&old.key, old.ticket, Outcome::Good, now, 0.5);
    assert_eq!(change, None, "the old check says nothing any more");
    for expected in [None, Some(Health::Healthy)] {
        let due = plan.take(now).unwrap();
        let change = plan.finished(&due.key, due.ticket, Outcome::Good, now, 0.5);
        assert_eq!(change, expected);
        now += Duration::from_secs(2);
    }
    plan.follow(HashMap::new(), now, || 0.0);
    assert_eq!(plan.health(&key(1)), Health::Unknown);
    assert_eq!(plan.wake_at(), None);
}
