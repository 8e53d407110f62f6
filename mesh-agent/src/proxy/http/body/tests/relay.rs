//! A response to its end.

use std::{
    sync::{Arc, Mutex},
    task::Poll,
    time::Duration,
};

use ::http::{HeaderMap, HeaderName, HeaderValue, Response, response::Parts};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Body as _;
use tokio::time::{Instant, sleep};

use super::{
    super::{
        Body, Cut, End, Relay, Replay, Sent, Times,
        script::{Script, Step},
    },
    Read, poll,
};
use crate::telemetry::{Reason, RequestBytes};

fn data(text: &'static str) -> Step {
    Step::Data(Bytes::from_static(text.as_bytes()))
}

fn status(code: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(
        HeaderName::from_static("grpc-status"),
        HeaderValue::from_static(code),
    )])
}

/// The ends that were reported, and the bytes.
#[derive(Default)]
struct Seen {
    ends: Arc<Mutex<Vec<End>>>,
    bytes: Arc<RequestBytes>,
}

impl Seen {
    fn end(&self) -> End {
        let ends = self.ends.lock().unwrap();
        assert_eq!(ends.len(), 1, "reported exactly once");
        ends[0]
    }

    fn nothing(&self) -> bool {
        self.ends.lock().unwrap().is_empty()
    }
}

fn head(http: u16, headers: HeaderMap) -> Parts {
    let mut head = Response::new(()).into_parts().0;
    head.status = ::http::StatusCode::from_u16(http).unwrap();
    head.headers = headers;
    head
}

fn relay_with(head: &Parts, script: Script, grpc: bool, sent: Sent, times: Times) -> (Body, Seen) {
    let seen = Seen::default();
    let ends = Arc::clone(&seen.ends);
    let finish = move |end| ends.lock().unwrap().push(end);
    let bytes = Arc::clone(&seen.bytes);
    (
        Relay::body(head, script, grpc, sent, times, bytes, finish),
        seen,
    )
}

fn relay(steps: impl IntoIterator<Item = Step>, grpc: bool, times: Times) -> (Body, Seen) {
    let head = head(200, HeaderMap::new());
    relay_with(
        &head,
        Script::new(steps),
        grpc,
        Sent::At(Instant::now()),
        times,
    )
}

fn end(reason: Reason, grpc_status: Option<u32>, complete: bool) -> End {
    End {
        reason,
        grpc_status,
        complete,
    }
}

#[test]
fn a_response_that_ends_is_reported_when_its_last_frame_goes() {
    let (mut body, seen) = relay(
        [data("ab"), Step::Wait, data("cd")],
        false,
        Times::default(),
    );
    let mut read = Read::default();
    read.frames(&mut body, 2).unwrap();
    assert!(seen.nothing());
    read.frames(&mut body, 9).unwrap();
    assert_eq!(seen.end(), end(Reason::Completed, None, true));
    assert_eq!((read.data, seen.bytes.get().1), (b"abcd".to_vec(), 4));
    drop(body);
    seen.end();

    // With a length hyper does not ask for the end.
    let script = Script::new([data("ab")]).declared(2);
    let head = head(200, HeaderMap::new());
    let (mut body, seen) = relay_with(
        &head,
        script,
        false,
        Sent::At(Instant::now()),
        Times::default(),
    );
    assert_eq!(body.size_hint().exact(), Some(2));
    assert!(poll(&mut body).is_ready());
    assert!(body.is_end_stream());
    assert_eq!(seen.end(), end(Reason::Completed, None, true));
}

#[test]
fn a_response_without_a_body_has_ended_at_once() {
    let head = head(204, HeaderMap::new());
    let script = Script::new([]).declared(0);
    let (body, seen) = relay_with(
        &head,
        script,
        false,
        Sent::At(Instant::now()),
        Times::default(),
    );
    assert!(matches!(body, Body::Empty));
    assert_eq!(seen.end(), end(Reason::Completed, None, true));
}

#[test]
fn a_client_that_goes_away_is_reported() {
    let (mut body, seen) = relay([data("ab"), Step::Hang], false, Times::default());
    Read::default().frames(&mut body, 1).unwrap();
    drop(body);
    assert_eq!(seen.end(), end(Reason::ClientReset, None, false));
}

#[test]
fn an_upstream_that_breaks_off_is_reported_and_passed_on() {
    use std::error::Error as _;
    for (cut, reason, code) in [
        (
            Cut::Stream(h2::Reason::ENHANCE_YOUR_CALM),
            Reason::StreamReset,
            h2::Reason::ENHANCE_YOUR_CALM,
        ),
        // The client must not think that nothing was done.
        (
            Cut::Stream(h2::Reason::REFUSED_STREAM),
            Reason::StreamReset,
            h2::Reason::INTERNAL_ERROR,
        ),
        (
            Cut::Connection,
            Reason::UpstreamReset,
            h2::Reason::INTERNAL_ERROR,
        ),
        (
            Cut::Protocol,
            Reason::UpstreamProtocol,
            h2::Reason::INTERNAL_ERROR,
        ),
    ] {
        let (mut body, seen) = relay([data("ab"), Step::Cut(cut)], false, Times::default());
        let error = Read::default().frames(&mut body, 9).unwrap_err();
        assert_eq!(error.reason, reason);
        // Where hyper looks for it.
        let source = error.source().unwrap().downcast_ref::<h2::Error>().unwrap();
        assert_eq!(source.reason(), Some(code));
        assert_eq!(seen.end(), end(reason, None, false));
    }
}

#[test]
fn grpc_ends_with_its_status_or_the_upstream_is_at_fault() {
    let ok = |steps: Vec<Step>| {
        let (mut body, seen) = relay(steps, true, Times::default());
        let mut read = Read::default();
        read.frames(&mut body, 9).unwrap();
        (seen.end(), read.trailers)
    };
    let (ended, trailers) = ok(vec![data("ab"), Step::Trailers(status("7"))]);
    assert_eq!(ended, end(Reason::Completed, Some(7), true));
    assert_eq!(trailers, Some(status("7")));
    let (ended, trailers) = ok(vec![data("ab")]);
    assert_eq!(ended, end(Reason::GrpcStatusMissing, None, true));
    assert_eq!(trailers, None);
    let (ended, _) = ok(vec![Step::Trailers(HeaderMap::new())]);
    assert_eq!(ended, end(Reason::GrpcStatusMissing, None, true));

    // Trailers alone, that is in the headers; and an answer that is not gRPC's at all.
    for (head, expected) in [
        (
            head(200, status("5")),
            end(Reason::Completed, Some(5), true),
        ),
        (
            head(200, HeaderMap::new()),
            end(Reason::GrpcStatusMissing, None, true),
        ),
        (
            head(502, HeaderMap::new()),
            end(Reason::Completed, None, true),
        ),
    ] {
        let script = Script::new([]).declared(0);
        let (_, seen) = relay_with(
            &head,
            script,
            true,
            Sent::At(Instant::now()),
            Times::default(),
        );
        assert_eq!(seen.end(), expected);
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn each_deadline_ends_a_response_with_its_own_reason() {
    let now = Instant::now();
    let one = Some(SECOND);
    let none = Times::default();
    for (times, reason) in [
        (
            Times {
                request: one,
                ..none
            },
            Reason::RequestTimeout,
        ),
        (
            Times {
                attempt: one,
                ..none
            },
            Reason::AttemptTimeout,
        ),
        (
            Times {
                client: Some(now + SECOND),
                ..none
            },
            Reason::DeadlineExceeded,
        ),
        (
            Times {
                stream: Some(now + SECOND),
                ..none
            },
            Reason::StreamTimeout,
        ),
        (Times { idle: one, ..none }, Reason::IdleTimeout),
        // The first of them.
        (
            Times {
                idle: Some(2 * SECOND),
                request: one,
                stream: Some(now + 3 * SECOND),
                ..none
            },
            Reason::RequestTimeout,
        ),
    ] {
        for grpc in [false, true] {
            let begun = Instant::now();
            let times = Times {
                client: times.client.map(|_| begun + SECOND),
                stream: times.stream.map(|at| begun + (at - now)),
                ..times
            };
            let (body, seen) = relay([data("ab"), Step::Hang], grpc, times);
            let collected = body.collect().await;
            assert_eq!(begun.elapsed(), SECOND, "{reason}");
            if grpc {
                let trailers = collected.unwrap().trailers().cloned().unwrap();
                assert_eq!(trailers["grpc-status"], "4");
                assert_eq!(trailers["grpc-message"], reason.as_str());
                assert_eq!(seen.end(), end(reason, Some(4), false));
            } else {
                assert_eq!(collected.unwrap_err().reason, reason);
                assert_eq!(seen.end(), end(reason, None, false));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_holds_no_upstream_beyond_the_deadline() {
    let times = Times {
        idle: Some(SECOND),
        ..Times::default()
    };
    let (mut body, seen) = relay([data("ab"), data("cd")], false, times);
    Read::default().frames(&mut body, 1).unwrap();
    // Nobody asks for more; in the meantime the end is reported.
    sleep(2 * SECOND).await;
    assert_eq!(seen.end(), end(Reason::IdleTimeout, None, false));
    let error = Read::default().frames(&mut body, 1).unwrap_err();
    assert_eq!(error.reason, Reason::IdleTimeout);
    assert!(matches!(poll(&mut body), Poll::Ready(None)));
}

#[tokio::test(start_paused = true)]
async fn what_moves_is_not_idle() {
    let times = Times {
        idle: Some(SECOND),
        ..Times::default()
    };
    let (mut body, seen) = relay((0..5).map(|_| data("ab")).chain([Step::Hang]), false, times);
    for _ in 0..5 {
        sleep(SECOND * 9 / 10).await;
        Read::default().frames(&mut body, 1).unwrap();
    }
    assert!(seen.nothing());

    // The request moves as well.
    let steps = (0..5).map(|_| data("ab")).chain([Step::Hang]);
    let mut replay = Replay::new(Script::new(steps), 0, Arc::default());
    let mut up = replay.next().unwrap();
    let head = head(200, HeaderMap::new());
    let (down, seen) = relay_with(
        &head,
        Script::new([Step::Hang]),
        false,
        replay.sent(),
        times,
    );
    for _ in 0..5 {
        sleep(SECOND * 9 / 10).await;
        Read::default().frames(&mut up, 1).unwrap();
    }
    assert!(seen.nothing());
    let begun = Instant::now();
    assert_eq!(
        down.collect().await.unwrap_err().reason,
        Reason::IdleTimeout
    );
    assert_eq!(begun.elapsed(), SECOND);
    // The request ends with it.
    assert!(Read::default().frames(&mut up, 1).is_err());
}

#[tokio::test(start_paused = true)]
async fn timeouts_run_from_when_the_request_has_gone_out() {
    let mut replay = Replay::new(Script::new([data("ab"), data("cd")]), 0, Arc::default());
    let mut up = replay.next().unwrap();
    Read::default().frames(&mut up, 1).unwrap();
    let times = Times {
        request: Some(SECOND),
        ..Times::default()
    };
    let head = head(200, HeaderMap::new());
    let (down, seen) = relay_with(
        &head,
        Script::new([Step::Hang]),
        false,
        replay.sent(),
        times,
    );
    sleep(10 * SECOND).await;
    assert!(seen.nothing());
    Read::default().frames(&mut up, 9).unwrap();
    let begun = Instant::now();
    assert_eq!(
        down.collect().await.unwrap_err().reason,
        Reason::RequestTimeout
    );
    assert_eq!(begun.elapsed(), SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_timed_response_that_ends_or_is_dropped_leaves_nothing_behind() {
    let times = Times {
        request: Some(SECOND),
        idle: Some(SECOND),
        ..Times::default()
    };
    let (body, seen) = relay([data("ab")], false, times);
    body.collect().await.unwrap();
    assert_eq!(seen.end(), end(Reason::Completed, None, true));

    let replay = Replay::new(Script::new([Step::Hang]), 0, Arc::default());
    let head = head(200, HeaderMap::new());
    let (body, seen) = relay_with(
        &head,
        Script::new([Step::Hang]),
        false,
        replay.sent(),
        times,
    );
    let ends = Arc::downgrade(&seen.ends);
    drop(body);
    assert_eq!(seen.end(), end(Reason::ClientReset, None, false));
    drop(seen);
    // The clock and the request referred to it.
    assert_eq!(ends.strong_count(), 0);
}
