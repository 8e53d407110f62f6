//! Weights: shares, their bound, threads, and what becomes of the share of who is not there.

use std::sync::Arc;

use proptest::prelude::*;

use super::support::{backend, rule_of};
use crate::{
    model::ResourceName,
    routing::{Backend, BackendError, RouteId, RouteKind, Rule, RuleSettings},
};

fn counts(rule: &Rule, requests: usize) -> Vec<usize> {
    let mut counts = vec![0; rule.backends.len()];
    for _ in 0..requests {
        counts[rule.pick(false, |_| true).unwrap()] += 1;
    }
    counts
}

#[test]
fn five_hundred_requests_at_70_30_stay_within_a_point() {
    let rule = rule_of(&[70, 30]);
    for _ in 0..7 {
        let counts = counts(&rule, 500);
        assert!(counts[0].abs_diff(350) <= 5, "{counts:?}");
    }
}

#[test]
fn threads_share_one_split() {
    let rule = rule_of(&[70, 30]);
    let total: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..5)
            .map(|_| scope.spawn(|| counts(&rule, 100)[0]))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    });
    assert!(total.abs_diff(350) <= 1, "{total}");
}

#[test]
fn nobody_gets_a_burst() {
    let rule = rule_of(&[1, 1, 1, 1]);
    let picks: Vec<usize> = (0..400)
        .map(|_| rule.pick(false, |_| true).unwrap())
        .collect();
    for window in picks.windows(8) {
        for backend in 0..4 {
            let count = window.iter().filter(|pick| **pick == backend).count();
            assert!((1..=3).contains(&count), "{window:?}");
        }
    }
}

#[test]
fn weight_zero_gets_nothing_and_all_zero_is_nobody() {
    assert_eq!(counts(&rule_of(&[0, 5, 0]), 100), [0, 100, 0]);
    assert_eq!(rule_of(&[0, 0]).pick(false, |_| true), None);
    assert_eq!(rule_of(&[0, 0]).pick(true, |_| true), None);
    assert_eq!(rule_of(&[]).pick(false, |_| true), None);
}

#[test]
fn the_share_of_the_unavailable_is_theirs_unless_it_is_redistributed() {
    let rule = rule_of(&[50, 30, 20]);
    let not_first = |backend: &Backend| backend.service.as_ref().unwrap().0.name != "b0".into();
    let other = rule_of(&[50, 30, 20]);
    let mut kept = [0_i32; 3];
    let mut given = [0_i32; 3];
    for _ in 0..1000 {
        kept[rule.pick(false, not_first).unwrap()] += 1;
        given[other.pick(true, not_first).unwrap()] += 1;
    }
    assert!(
        kept.iter()
            .zip([500, 300, 200])
            .all(|(a, b)| i32::abs_diff(*a, b) <= 20),
        "{kept:?}"
    );
    assert_eq!(given[0], 0);
    assert!(given[1].abs_diff(600) <= 20, "{given:?}");
    // Nobody is left: the declared shares, and with them 503.
    assert!(rule.pick(true, |_| false).is_some());
}

#[test]
fn a_rule_that_changes_goes_on_where_the_split_was() {
    let id = RouteId {
        kind: RouteKind::Http,
        name: ResourceName::new("a", "r"),
    };
    let settings = |error: Option<BackendError>| {
        let mut second = backend("b1", 1);
        if let Some(error) = error {
            second.service = Err(error);
        }
        RuleSettings {
            backends: vec![backend("b0", 1), second],
            ..RuleSettings::default()
        }
    };
    let mut rule = Rule::new(&id, 0, settings(None), None);
    let same = Rule::new(&id, 0, settings(None), Some(&rule));
    assert!(Arc::ptr_eq(&rule, &same), "nothing is new");
    let mut picks = Vec::new();
    for nth in 0..10 {
        picks.push(rule.pick(false, |_| true).unwrap());
        let error = (nth % 2 == 0).then_some(BackendError::NotFound);
        let next = Rule::new(&id, 0, settings(error), Some(&rule));
        assert!(!Arc::ptr_eq(&rule, &next));
        rule = next;
    }
    let first = picks.iter().filter(|pick| **pick == 0).count();
    assert_eq!(first, 5, "{picks:?}");
}

proptest! {
    /// After any number of requests everybody is within two of the share.
    #[test]
    fn shares_are_kept_at_every_moment(weights in prop::collection::vec(0_u32..50, 1..=16), requests in 1_usize..2000) {
        let rule = rule_of(&weights);
        let total: u32 = weights.iter().sum();
        prop_assume!(total > 0);
        let mut counts = vec![0_usize; weights.len()];
        for request in 1..=requests {
            counts[rule.pick(false, |_| true).unwrap()] += 1;
            for (count, weight) in counts.iter().zip(&weights) {
                let share = request as f64 * f64::from(*weight) / f64::from(total);
                prop_assert!((*count as f64 - share).abs() < 2.0, "{counts:?} of {weights:?}");
            }
        }
    }

    /// The highest weights do not overflow, and a full turn is exact.
    #[test]
    fn a_full_turn_is_exact(weights in prop::collection::vec(1_u32..12, 2..=16)) {
        let rule = rule_of(&weights);
        let total: u32 = weights.iter().sum();
        let counts = counts(&rule, total as usize);
        let wanted: Vec<usize> = weights.iter().map(|weight| *weight as usize).collect();
        prop_assert_eq!(counts, wanted);
    }
}

#[test]
fn the_highest_weights_do_not_overflow() {
    let rule = rule_of(&[1_000_000; 16]);
    let counts = counts(&rule, 1600);
    assert!(
        counts.iter().all(|count| count.abs_diff(100) <= 2),
        "{counts:?}"
    );
}
