//! What clients are told.

use std::time::Duration;

use http_body_util::BodyExt;

use super::*;
use crate::proxy::http::headers::Refusal;

fn about<'a>(grpc: bool, detail: &'a str) -> About<'a> {
    About {
        grpc,
        node: "node-1",
        detail,
        retry_after: None,
    }
}

async fn text(response: Response<Body>) -> String {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn an_answer_names_node_reason_and_what_to_check() {
    let about = About {
        retry_after: Some(Duration::from_millis(1500)),
        ..about(false, "service shop/cart")
    };
    let response = reply(Reason::NoEndpoints, &about);
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()["retry-after"], "2");
    assert_eq!(
        response.headers()["proxy-status"],
        r#""node-1"; error=destination_unavailable; details="no_endpoints: service shop/cart""#
    );
    assert_eq!(
        text(response).await,
        "mesh-agent on node-1: no_endpoints: The service has no ready endpoint. Check its selector and the weights and addresses of its workloads. (service shop/cart)\n"
    );
}

#[tokio::test]
async fn grpc_is_answered_in_trailers_alone() {
    let response = reply(Reason::RateLimited, &about(true, "100 % of \u{fc}"));
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/grpc");
    assert_eq!(response.headers()["grpc-status"], "8");
    let message = response.headers()["grpc-message"].to_str().unwrap();
    assert!(message.ends_with("(100 %25 of \\u{fc})"), "{message}");
    assert!(hyper::body::Body::is_end_stream(response.body()));
}

#[tokio::test]
async fn what_a_client_sent_is_never_echoed_as_it_came() {
    let evil = "a\"; b=\"c\\\r\nset-cookie: x=1\r\n\r\n<script>\u{1f600}\0";
    for grpc in [false, true] {
        let response = reply(Reason::BadRequest, &about(grpc, evil));
        for value in response.headers().values() {
            let value = value.to_str().unwrap();
            assert!(value.bytes().all(|b| (b' '..=b'~').contains(&b)), "{value}");
        }
        let status = response.headers()["proxy-status"].to_str().unwrap();
        // Inside the quoted string each quote and backslash is escaped.
        assert!(status.contains(r#"a\"; b=\"c\\??set-cookie"#), "{status}");
        let text = text(response).await;
        assert_eq!(text.lines().count(), usize::from(!grpc), "{text}");
    }
    // Nor at any length.
    let long = reply(Reason::BadRequest, &about(false, &"x".repeat(1 << 20)));
    assert!(long.headers()["proxy-status"].len() < 600);
    assert!(text(long).await.len() < 1200);
}

#[test]
fn every_reason_that_is_answered_has_a_status_for_both() {
    let unanswered = Reason::ALL
        .iter()
        .filter(|reason| answer(**reason).is_none());
    assert_eq!(
        unanswered.map(|reason| reason.as_str()).collect::<Vec<_>>(),
        [
            "completed",
            "client_reset",
            "workload_gone",
            "connect_failed",
            "aborted"
        ]
    );
    for reason in Reason::ALL {
        let http = reply(*reason, &about(false, ""));
        assert!(http.status().is_client_error() || http.status().is_server_error());
        assert_eq!(http.status(), status(*reason));
        let grpc = reply(*reason, &about(true, ""));
        assert_ne!(grpc.headers()["grpc-status"], "0");
        assert!(
            grpc.headers()["proxy-status"]
                .to_str()
                .unwrap()
                .contains(reason.as_str())
        );
    }
}

#[test]
fn refusals_say_which_limit() {
    for (refusal, status) in [
        (Refusal::Bad("no Host"), 400),
        (Refusal::UriTooLong, 414),
        (Refusal::TooManyHeaders, 431),
    ] {
        let response = reply(refusal.reason(), &about(false, refusal.detail()));
        assert_eq!(response.status(), status);
        let proxy_status = response.headers()["proxy-status"].to_str().unwrap();
        assert!(proxy_status.contains(refusal.detail()), "{proxy_status}");
    }
}
