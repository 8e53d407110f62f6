//! `/v1/tap` over the socket: lines as they come, an end in time, and no tap left behind.

use std::{ops::ControlFlow, time::Duration};

use http::{Method, StatusCode, Version};

use super::{Served, meta, state};
use crate::{
    admin::{TapQuery, api::TapLine, client::ClientError},
    telemetry::{ConnGuard, Protocol, Reason, RequestStart, StatusFilter, TapFilter, TraceContext},
};

fn request(connection: &ConnGuard, status: u16) {
    let mut guard = connection.request(RequestStart {
        method: Method::GET,
        uri: "/cart?token=secret".parse().unwrap(),
        version: Version::HTTP_2,
        authority: None,
        request_id: None,
        user_agent: None,
        grpc: false,
        trace: TraceContext::default(),
    });
    guard.response_started(StatusCode::from_u16(status).unwrap());
    guard.finish(Reason::Completed);
}

/// Requests that come until the reader has what it waits for.
async fn while_served<T>(connection: &ConnGuard, reading: impl Future<Output = T>) -> T {
    let mut reading = std::pin::pin!(reading);
    let mut tick = tokio::time::interval(Duration::from_millis(5));
    loop {
        tokio::select! {
            done = &mut reading => return done,
            _ = tick.tick() => {
                request(connection, 200);
                request(connection, 503);
            }
        }
    }
}

#[tokio::test]
async fn lines_come_until_the_limit_and_those_that_match() {
    let state = state(true);
    let connection = state.telemetry.open(meta(80));
    connection.set_protocol(Protocol::Http);
    let served = Served::start(state);
    let query = TapQuery {
        filter: TapFilter {
            status: Some(StatusFilter::Class(5)),
            ..TapFilter::default()
        },
        limit: 3,
        ..TapQuery::default()
    };
    let mut lines: Vec<TapLine> = Vec::new();
    let path = format!("/v1/tap{}", query.to_query());
    let client = served.client();
    let reading = client.lines::<TapLine, ClientError>(&path, |line| {
        lines.push(line);
        Ok(ControlFlow::Continue(()))
    });
    while_served(&connection, reading).await.unwrap();
    assert_eq!(lines.len(), 4, "three and the end: {lines:?}");
    assert_eq!(lines[3].end.as_deref(), Some("limit"));
    for line in &lines[..3] {
        let request = line.request.as_ref().unwrap();
        assert_eq!(
            (request.status, request.path.as_str()),
            (Some(503), "/cart?token=*")
        );
    }
}

#[tokio::test]
async fn a_tap_ends_with_its_time() {
    let served = Served::start(state(true));
    let mut last = None;
    let client = served.client();
    client
        .lines::<TapLine, ClientError>("/v1/tap?seconds=1", |line| {
            last = Some(line);
            Ok(ControlFlow::Continue(()))
        })
        .await
        .unwrap();
    assert_eq!(last.and_then(|l| l.end).as_deref(), Some("duration"));
}

#[tokio::test]
async fn clients_that_go_leave_no_tap_behind_and_too_many_are_refused() {
    let state = state(true);
    let connection = state.telemetry.open(meta(80));
    connection.set_protocol(Protocol::Http);
    let telemetry = state.telemetry.clone();
    let served = Served::start(state);
    // Each goes after its first line.
    for _ in 0..20 {
        let client = served.client();
        let reading =
            client.lines::<TapLine, ClientError>("/v1/tap", |_| Ok(ControlFlow::Break(())));
        while_served(&connection, reading).await.unwrap();
    }
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    let taps = loop {
        let taps: Vec<_> = (0..8)
            .map_while(|_| telemetry.tap(TapFilter::default()).ok())
            .collect();
        if taps.len() == 8 {
            break taps;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "a tap was left behind"
        );
        drop(taps);
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let refused = served
        .client()
        .lines::<TapLine, ClientError>("/v1/tap", |_| Ok(ControlFlow::Break(())))
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("8 taps are open"), "{refused}");
    drop(taps);
}

#[test]
fn what_is_asked_for_is_understood_or_refused_with_a_reason() {
    for query in [
        "",
        "namespace=shop&source=client&destination=shop/web&method=GET&path=/a%3Fb&status=5xx&reason=rate_limited",
        "status=503&limit=5&seconds=10",
    ] {
        let parsed = TapQuery::parse(query).unwrap();
        let again = parsed.to_query();
        assert_eq!(
            TapQuery::parse(again.trim_start_matches('?')),
            Ok(parsed),
            "{query}"
        );
    }
    for (query, says) in [
        ("status=bad", "like 503 or 5xx"),
        ("reason=bad", "one of completed"),
        ("limit=0", "from 1 to 100000"),
        ("seconds=86401", "from 1 to 86400"),
        ("colour=red", "unknown parameter"),
    ] {
        let error = TapQuery::parse(query).unwrap_err();
        assert!(error.contains(says), "{query}: {error}");
    }
}
