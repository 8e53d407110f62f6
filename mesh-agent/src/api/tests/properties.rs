//! Properties: selectors, ranges, durations, and that no bytes make the parser panic.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use proptest::prelude::*;

use crate::api::{
    Cidr, GepDuration, LabelIndex, LabelSelector, Labels, Operator, Requirement, contains_all,
    parse_bytes,
};

fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    prop::collection::btree_map("[abc]", "[xyz]", 0..4)
}

fn requirement() -> impl Strategy<Value = Requirement> {
    let operator = prop_oneof![
        Just(Operator::In),
        Just(Operator::NotIn),
        Just(Operator::Exists),
        Just(Operator::DoesNotExist),
    ];
    ("[abc]", operator, prop::collection::vec("[xyz]", 1..3)).prop_map(|(key, operator, values)| {
        let values = match operator {
            Operator::In | Operator::NotIn => values,
            _ => Vec::new(),
        };
        Requirement {
            key,
            operator,
            values,
        }
    })
}

/// The words of the Kubernetes documentation, one by one.
fn satisfied(requirement: &Requirement, labels: &BTreeMap<String, String>) -> bool {
    let mut with_key = labels.iter().filter(|(key, _)| **key == requirement.key);
    let mut with_value = with_key
        .clone()
        .filter(|(_, value)| requirement.values.contains(value));
    match requirement.operator {
        Operator::In => with_value.next().is_some(),
        Operator::NotIn => with_value.next().is_none(),
        Operator::Exists => with_key.next().is_some(),
        Operator::DoesNotExist => with_key.next().is_none(),
    }
}

proptest! {
    #[test]
    fn selectors(
        match_labels in labels(),
        match_expressions in prop::collection::vec(requirement(), 0..3),
        carried in labels(),
    ) {
        let expected = match_labels.iter().all(|(k, v)| carried.iter().any(|(a, b)| (a, b) == (k, v)))
            && match_expressions.iter().all(|r| satisfied(r, &carried));
        let selector = LabelSelector { match_labels: Labels(match_labels), match_expressions };
        prop_assert_eq!(selector.matches(&carried), expected);
    }

    #[test]
    fn the_index_finds_what_a_scan_finds(
        items in prop::collection::vec(("[mn]", labels()), 0..20),
        namespace in "[mn]",
        wanted in labels(),
    ) {
        let index = LabelIndex::new(items.iter().map(|(namespace, labels)| (namespace.as_str(), labels)));
        let found: Vec<usize> = index.matching(&namespace, &wanted).collect();
        let scanned: Vec<usize> = (0..items.len())
            .filter(|at| !wanted.is_empty() && items[*at].0 == namespace && contains_all(&items[*at].1, &wanted))
            .collect();
        prop_assert_eq!(found, scanned);
    }

    /// A range holds exactly the addresses that agree in its leading bits.
    #[test]
    fn ranges(address: u32, other: u32, length in 0u32..=32) {
        let [a, b] = [address, other].map(|bits| IpAddr::from(bits.to_be_bytes()));
        let Cidr(net) = format!("{a}/{length}").parse().unwrap();
        let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
        prop_assert!(net.contains(&a));
        prop_assert_eq!(net.contains(&b), address & mask == other & mask);
        prop_assert_eq!(net.to_string().parse::<Cidr>(), Ok(Cidr(net)));
    }

    #[test]
    fn durations_survive_being_written(millis in 0u64..100_000_000) {
        let duration = GepDuration(Duration::from_millis(millis));
        prop_assert_eq!(duration.to_string().parse::<GepDuration>(), Ok(duration));
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_bytes("f", &bytes);
    }

    /// YAML-like text gets further than bytes do.
    #[test]
    fn no_text_panics(text in "(apiVersion: v1\n|kind: Service\n|spec:\n|  ports:\n|  - port: [0-9]{1,6}\n|&a |\\*a|\\[|\\]|\\{|\\}|: |---\n|\\.\\.\\.\n|\n|  |- |\"|'|[a-z]|<<|!x|é){0,40}") {
        let _ = parse_bytes("f", text.as_bytes());
    }
}

#[test]
fn deep_and_wide_documents_are_refused_or_read() {
    for text in [
        "[".repeat(100_000),
        "- ".repeat(100_000),
        "{a: ".repeat(10_000),
        "? ".repeat(10_000),
        "&a ".repeat(1000),
        format!("a: &a [{}]\n", "x,".repeat(5000)) + &"b: [*a,*a,*a,*a,*a,*a,*a,*a]\n".repeat(10),
        (0..40).fold("a0: &a0 [x]\n".to_owned(), |text, n| {
            format!("{text}a{}: &a{} [*a{n},*a{n}]\n", n + 1, n + 1)
        }),
        "a: |\n".to_owned() + &" x\n".repeat(10_000),
    ] {
        assert!(
            parse_bytes("f", text.as_bytes()).is_err(),
            "{}",
            &text[..40.min(text.len())]
        );
    }
}
