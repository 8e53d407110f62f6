//! Tests of the schedule.

use proptest::prelude::*;

use super::Schedule;

fn schedule(weights: &[u32], seed: u64) -> Schedule {
    Schedule::new(weights.iter().copied(), seed)
}

/// The greatest number by which any target exceeds the ceiling of its share in any window of `choices`.
fn worst_excess(weights: &[u32], choices: &[usize]) -> i64 {
    let total: i64 = weights.iter().map(|&w| i64::from(w)).sum();
    let mut worst = i64::MIN;
    for (index, &weight) in weights.iter().enumerate() {
        // Over all windows (s, e]: count - ceil((e - s) * w / total).
        let mut before = vec![0i64];
        for &c in choices {
            before.push(before.last().unwrap() + i64::from(c == index));
        }
        for s in 0..choices.len() {
            for e in s + 1..=choices.len() {
                let share = (e - s) as i64 * i64::from(weight);
                let ceiling = (share + total - 1) / total;
                worst = worst.max(before[e] - before[s] - ceiling);
            }
        }
    }
    worst
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn in_any_window_nobody_exceeds_the_ceiling_of_its_share_by_more_than_one(
        weights in prop::collection::vec(prop_oneof![0u32..4, 0u32..50, 0u32..2_000], 1..9),
        seed: u64,
    ) {
        prop_assume!(weights.iter().any(|&w| w > 0));
        let mut schedule = schedule(&weights, seed);
        let choices: Vec<_> = (0..150).map(|_| schedule.next()).collect();
        prop_assert!(worst_excess(&weights, &choices) <= 1);
    }

    #[test]
    fn a_whole_period_is_exact_to_one(weights in prop::collection::vec(0u32..40, 1..16), seed: u64) {
        let total: u32 = weights.iter().sum();
        prop_assume!(total > 0);
        let mut schedule = schedule(&weights, seed);
        let mut counts = vec![0u32; weights.len()];
        // Long enough to pass a rebase.
        for _ in 0..total * 40 {
            counts[schedule.next()] += 1;
        }
        for (count, weight) in counts.iter().zip(&weights) {
            prop_assert!(count.abs_diff(weight * 40) <= 1, "{counts:?} for {weights:?}");
        }
    }
}

/// The example of nginx's documentation: the light ones stand apart, the heavy one never comes in one run of five.
#[test]
fn the_well_known_example_has_no_burst() {
    let mut schedule = schedule(&[5, 1, 1], 0);
    let choices: Vec<_> = (0..70).map(|_| schedule.next()).collect();
    let longest = choices.chunk_by(|a, b| a == b).map(<[_]>::len).max();
    assert_eq!(longest, Some(3));
}
