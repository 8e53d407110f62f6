//! Taps: what they show, what they keep for themselves, what they cost.

use super::fake::{answered, get, http, name, outbound, telemetry};
use crate::telemetry::{Reason, RequestStart, StatusFilter, TapFilter, TelemetryOptions};

#[tokio::test]
async fn a_tap_shows_finished_requests_without_the_values_of_their_queries() {
    let (t, _) = telemetry(TelemetryOptions::default());
    let mut tap = t.tap(TapFilter::default()).unwrap();
    answered(&http(&t, outbound(1)), get(), 200);
    let shown = tap.next().await.unwrap();
    assert_eq!(shown.path, "/cart?id=*&token=*");
    assert_eq!((shown.method.as_str(), shown.status), ("GET", Some(200)));
    assert_eq!(shown.source_workload.as_deref(), Some("shop/client"));
    assert_eq!(shown.service.as_deref(), Some("shop/web"));
    assert_eq!(shown.destination_workload.as_deref(), Some("shop/web-1"));
    assert_eq!(shown.endpoint.as_deref(), Some("10.0.0.2:8080"));
    assert_eq!((shown.request_bytes, shown.response_bytes), (3, 5));
    assert!(!serde_json::to_string(&shown).unwrap().contains("secret"));
}

#[tokio::test]
async fn values_without_a_name_are_hidden_too() {
    let (t, _) = telemetry(TelemetryOptions::default());
    let mut tap = t.tap(TapFilter::default()).unwrap();
    let start = RequestStart {
        uri: "http://user:pass@web/?secret&a=secret=secret"
            .parse()
            .unwrap(),
        authority: Some(http::HeaderValue::from_static("user:pass@web")),
        ..get()
    };
    answered(&http(&t, outbound(1)), start, 200);
    let shown = tap.next().await.unwrap();
    assert_eq!(shown.path, "/?*&a=*");
    assert_eq!(shown.authority.as_deref(), Some("web"));
}

#[tokio::test]
async fn each_filter_selects() {
    let (t, _) = telemetry(TelemetryOptions::default());
    let connection = http(&t, outbound(1));
    let all = TapFilter::default;
    for (filter, matches) in [
        (all(), true),
        (
            TapFilter {
                namespace: Some("shop".into()),
                ..all()
            },
            true,
        ),
        (
            TapFilter {
                namespace: Some("bank".into()),
                ..all()
            },
            false,
        ),
        (
            TapFilter {
                source: Some("client".into()),
                ..all()
            },
            true,
        ),
        (
            TapFilter {
                source: Some("shop/web-1".into()),
                ..all()
            },
            false,
        ),
        (
            TapFilter {
                destination: Some("web".into()),
                ..all()
            },
            true,
        ),
        (
            TapFilter {
                destination: Some("shop/web-1".into()),
                ..all()
            },
            true,
        ),
        (
            TapFilter {
                destination: Some("shop/client".into()),
                ..all()
            },
            false,
        ),
        (
            TapFilter {
                method: Some("get".into()),
                ..all()
            },
            true,
        ),
        (
            TapFilter {
                method: Some("POST".into()),
                ..all()
            },
            false,
        ),
        (
            TapFilter {
                path: Some("/ca".into()),
                ..all()
            },
            true,
        ),
        (
            TapFilter {
                path: Some("/x".into()),
                ..all()
            },
            false,
        ),
        (
            TapFilter {
                status: Some(StatusFilter::Code(503)),
                ..all()
            },
            true,
        ),
        (
            TapFilter {
                status: Some(StatusFilter::Class(5)),
                ..all()
            },
            true,
        ),
        (
            TapFilter {
                status: Some(StatusFilter::Class(2)),
                ..all()
            },
            false,
        ),
        (
            TapFilter {
                reason: Some(Reason::Completed),
                ..all()
            },
            true,
        ),
        (
            TapFilter {
                reason: Some(Reason::RateLimited),
                ..all()
            },
            false,
        ),
    ] {
        let mut tap = t.tap(filter.clone()).unwrap();
        let mut control = t.tap(all()).unwrap();
        answered(&connection, get(), 503);
        control.next().await.unwrap();
        assert_eq!(tap.try_next().is_some(), matches, "{filter:?}");
    }
    for (text, filter) in [
        ("5xx", Some(StatusFilter::Class(5))),
        ("503", Some(StatusFilter::Code(503))),
        ("0xx", None),
        ("xx", None),
        ("5x", None),
        ("99", None),
        ("1000", None),
    ] {
        assert_eq!(text.parse().ok(), filter, "{text}");
    }
}

#[tokio::test]
async fn a_slow_reader_loses_requests_and_knows_how_many() {
    let (t, _) = telemetry(TelemetryOptions::default());
    let tap = t.tap(TapFilter::default()).unwrap();
    let connection = http(&t, outbound(1));
    for _ in 0..1_500 {
        answered(&connection, get(), 200);
    }
    assert_eq!(tap.dropped(), 1_500 - 1_024);
}

#[test]
fn taps_are_few_and_make_room_when_they_end() {
    let (t, _) = telemetry(TelemetryOptions::default());
    let mut taps: Vec<_> = (0..8)
        .map(|_| t.tap(TapFilter::default()).unwrap())
        .collect();
    assert!(t.tap(TapFilter::default()).is_err());
    taps.pop();
    assert!(
        t.tap(TapFilter {
            source: Some(name("shop/a").to_string()),
            ..TapFilter::default()
        })
        .is_ok()
    );
}
