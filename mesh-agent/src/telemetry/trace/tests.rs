//! Headers of traces: strict where the specification is, kept in the form in which they came.

use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;

use super::{B3, TraceContext, TraceParent};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const B3_SINGLE: &str = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1-05e3ac9a4f6e3b90";

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| {
            let value = HeaderValue::from_str(value).unwrap();
            (HeaderName::from_static(name), value)
        })
        .fold(HeaderMap::new(), |mut map, (name, value)| {
            map.append(name, value);
            map
        })
}

/// What a request with these headers is sent on with where nobody records spans.
fn passed_on(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = headers(pairs);
    TraceContext::extract(&headers.clone()).inject(&mut headers);
    headers
}

#[test]
fn traceparents() {
    let parsed = TraceParent::parse(PARENT.as_bytes()).unwrap();
    assert_eq!(parsed.format(), PARENT);
    for (good, flags) in [
        // The bits that mean nothing yet are dropped, that of random IDs is kept.
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-ff", 3),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-02", 2),
        // Later versions may append fields.
        ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", 1),
        (
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-ever",
            1,
        ),
        (
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
            1,
        ),
    ] {
        let parsed = TraceParent::parse(good.as_bytes());
        assert_eq!(parsed.map(|p| p.flags), Some(flags), "{good}");
    }
    for bad in [
        "",
        "00-",
        "00-0000000000000000000000000000000000000000000000000000",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "0-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.",
        "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.more",
        "00.4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
        "00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01",
    ] {
        assert_eq!(TraceParent::parse(bad.as_bytes()), None, "{bad}");
    }
    let random = TraceParent::random();
    assert_eq!(TraceParent::parse(random.format().as_bytes()), Some(random));
}

#[test]
fn b3_in_one_header() {
    let parsed = B3::parse(B3_SINGLE.as_bytes()).unwrap();
    assert_eq!(
        parsed.ids.map(|(t, _)| format!("{t:032x}")).as_deref(),
        Some(TRACE)
    );
    assert_eq!(parsed.sampled, Some(true));
    for (good, sampled, debug) in [
        ("0", Some(false), false),
        ("1", Some(true), false),
        ("d", Some(true), true),
        ("a3ce929d0e0e4736-00f067aa0ba902b7", None, false),
        ("a3ce929d0e0e4736-00f067aa0ba902b7-d", Some(true), true),
        ("A3CE929D0E0E4736-00F067AA0BA902B7-0", Some(false), false),
    ] {
        let parsed = B3::parse(good.as_bytes()).unwrap_or_else(|| panic!("{good}"));
        assert_eq!((parsed.sampled, parsed.debug), (sampled, debug), "{good}");
    }
    for bad in [
        "",
        "2",
        "-",
        "a3ce929d0e0e4736",
        "a3ce929d0e0e4736-00f067aa0ba902b7-x",
        "0000000000000000-00f067aa0ba902b7-1",
        "a3ce929d0e0e4736-0000000000000000-1",
        "a3ce929d0e0e47-00f067aa0ba902b7-1",
        "a3ce929d0e0e4736-00f067aa0ba902b7-1-zz",
        "a3ce929d0e0e4736-00f067aa0ba902b7-1-05e3ac9a4f6e3b90-1",
    ] {
        assert_eq!(B3::parse(bad.as_bytes()), None, "{bad}");
    }
}

#[test]
fn without_a_collector_a_trace_passes_as_it_came() {
    for pairs in [
        &[("traceparent", PARENT), ("tracestate", "a=1,b@c=2")][..],
        &[("b3", B3_SINGLE)],
        &[
            ("x-b3-traceid", TRACE),
            ("x-b3-spanid", "00f067aa0ba902b7"),
            ("x-b3-parentspanid", "05e3ac9a4f6e3b90"),
            ("x-b3-sampled", "1"),
        ],
    ] {
        assert_eq!(passed_on(pairs), headers(pairs));
    }
}

#[test]
fn a_trace_begins_where_there_is_none_or_a_broken_one() {
    let twice = [("traceparent", PARENT), ("traceparent", PARENT)];
    for pairs in [
        &[][..],
        &[("traceparent", "00-bad"), ("tracestate", "a=1")],
        &twice,
    ] {
        let out = passed_on(pairs);
        let made: Vec<_> = out.get_all("traceparent").iter().collect();
        assert_eq!(made.len(), 1, "{pairs:?}");
        let parsed = TraceParent::parse(made[0].as_bytes()).unwrap();
        assert_ne!(format!("{:032x}", parsed.trace), TRACE);
        assert_eq!(parsed.flags, 0, "nobody records it");
        assert!(!out.contains_key("tracestate"), "it was that of no trace");
    }
}

#[test]
fn a_broken_tracestate_is_dropped_and_its_parent_kept() {
    let many = vec!["k=v"; 33].join(",");
    let long_key = format!("{}=v", "k".repeat(257));
    for (state, good) in [
        ("a=1", true),
        ("a=1,,b=2 , c@d=3", true),
        ("0tenant@system=1", true),
        ("a", false),
        ("A=1", false),
        ("1a=1", false),
        ("a=", false),
        ("a=b=c", false),
        ("a=1,a=2", false),
        ("t@1=1", false),
        (many.as_str(), false),
        (long_key.as_str(), false),
    ] {
        let out = passed_on(&[("traceparent", PARENT), ("tracestate", state)]);
        assert_eq!(out["traceparent"], PARENT);
        assert_eq!(out.contains_key("tracestate"), good, "{state}");
    }
}

#[test]
fn a_traceparent_goes_before_b3_and_all_name_one_trace_afterwards() {
    let out = passed_on(&[
        ("traceparent", PARENT),
        ("b3", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-00f067aa0ba902b7-0"),
        ("x-b3-traceid", "bbbbbbbbbbbbbbbb"),
        ("x-b3-spanid", "cccccccccccccccc"),
        ("x-b3-parentspanid", "dddddddddddddddd"),
    ]);
    assert_eq!(out["traceparent"], PARENT);
    assert_eq!(out["b3"], format!("{TRACE}-00f067aa0ba902b7-1"));
    assert_eq!(out["x-b3-traceid"], TRACE);
    assert_eq!(out["x-b3-spanid"], "00f067aa0ba902b7");
    assert_eq!(out["x-b3-sampled"], "1");
    assert!(!out.contains_key("x-b3-parentspanid"));
}

#[test]
fn a_decision_without_ids_is_kept_with_the_trace_that_begins() {
    for (name, value, sampled) in [
        ("b3", "0", "0"),
        ("b3", "d", "d"),
        ("x-b3-sampled", "1", "1"),
    ] {
        let out = passed_on(&[(name, value)]);
        if name == "b3" {
            let text = out["b3"].to_str().unwrap();
            assert!(
                text.len() == 51 && text.ends_with(&format!("-{sampled}")),
                "{text}"
            );
        } else {
            assert_eq!(out[name], sampled);
            assert_eq!(out["x-b3-traceid"].len(), 32);
        }
        assert!(!out.contains_key("traceparent"));
    }
}

proptest! {
    #[test]
    fn any_bytes(value in proptest::collection::vec(any::<u8>(), 0..80)) {
        TraceParent::parse(&value);
        B3::parse(&value);
        if let Ok(value) = HeaderValue::from_bytes(&value) {
            let mut headers = HeaderMap::new();
            for name in ["traceparent", "tracestate", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-flags"] {
                headers.insert(name, value.clone());
            }
            let context = TraceContext::extract(&headers);
            context.inject(&mut headers);
            prop_assert!(context.trace_id().is_some());
        }
    }

    #[test]
    fn what_is_written_is_read(trace in 1_u128.., span in 1_u64.., sampled: Option<bool>, flags in 0_u8..4) {
        let b3 = B3 { ids: Some((trace, span)), sampled, ..B3::default() };
        prop_assert_eq!(B3::parse(b3.format().as_bytes()), Some(b3));
        let parent = TraceParent { trace, parent: span, flags };
        prop_assert_eq!(TraceParent::parse(parent.format().as_bytes()), Some(parent));
    }

    #[test]
    fn likely_text(value in "[0-9a-fA-F-]{0,70}") {
        if let Some(parsed) = TraceParent::parse(value.as_bytes()) {
            prop_assert_eq!(TraceParent::parse(parsed.format().as_bytes()), Some(parsed));
        }
        if let Some(parsed) = B3::parse(value.as_bytes()) {
            prop_assert_eq!(B3::parse(parsed.format().as_bytes()), Some(parsed));
        }
    }
}
