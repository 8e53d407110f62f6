//! A request that is sent again and again.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use ::http::HeaderMap;
use bytes::Bytes;
use hyper::body::Body as _;
use proptest::{collection::vec, option, prelude::*};
use tokio::runtime::{Builder, Runtime};

use super::{
    super::{
        Body, Cut, Replay,
        script::{Script, Step},
    },
    Read, poll,
};
use crate::telemetry::{Reason, RequestBytes};

fn data(text: &'static str) -> Step {
    Step::Data(Bytes::from_static(text.as_bytes()))
}

fn trailers() -> HeaderMap {
    HeaderMap::from_iter([(
        ::http::HeaderName::from_static("t"),
        ::http::HeaderValue::from_static("1"),
    )])
}

fn replay(steps: impl IntoIterator<Item = Step>, limit: usize) -> Replay {
    Replay::new(Script::new(steps), limit, Arc::default())
}

/// The whole of the next attempt.
fn whole(replay: &mut Replay) -> Option<Read> {
    let mut body = replay.next()?;
    let mut read = Read::default();
    read.frames(&mut body, usize::MAX).ok()?;
    Some(read)
}

fn text(data: &str) -> Option<Read> {
    Some(Read {
        data: data.into(),
        trailers: None,
        ended: true,
    })
}

#[test]
fn a_body_is_sent_as_often_as_it_is_asked_for() {
    let mut replay = replay(
        [
            data("ab"),
            Step::Wait,
            data("cd"),
            Step::Trailers(trailers()),
        ],
        4,
    );
    for _ in 0..3 {
        let read = whole(&mut replay).unwrap();
        assert_eq!(read.data, b"abcd");
        assert_eq!(read.trailers, Some(trailers()));
    }
}

#[test]
fn a_body_above_the_limit_is_sent_once() {
    let mut long = replay([data("ab"), data("cde")], 4);
    assert!(long.can_replay());
    assert_eq!(whole(&mut long), text("abcde"));
    assert!(!long.can_replay());
    assert_eq!(whole(&mut long), None);

    // Nothing is kept of what says beforehand that it is too long, nor when nothing is repeated.
    let declared = Script::new([data("ab"), data("cde")]).declared(5);
    let none = Script::new([data("ab"), data("cde")]);
    for (script, limit) in [(declared, 4), (none, 0)] {
        let mut replay = Replay::new(script, limit, Arc::default());
        let mut read = Read::default();
        // As long as the client was not asked for any of it, there can be another.
        assert!(replay.next().is_some());
        let mut body = replay.next().unwrap();
        read.frames(&mut body, 1).unwrap();
        assert!(!replay.can_replay());
        read.frames(&mut body, usize::MAX).unwrap();
        assert_eq!(read.data, b"abcde");
    }
}

#[test]
fn the_attempt_before_is_cut_and_takes_nothing_any_more() {
    let mut replay = replay([data("ab"), data("cd")], 100);
    let mut first = replay.next().unwrap();
    Read::default().frames(&mut first, 1).unwrap();
    let mut second = replay.next().unwrap();
    assert!(Read::default().frames(&mut first, 1).is_err());
    assert!(!first.is_end_stream());
    let mut read = Read::default();
    read.frames(&mut second, usize::MAX).unwrap();
    assert_eq!(read.data, b"abcd");
}

#[test]
fn a_declared_length_is_declared_by_every_attempt() {
    let script = Script::new([data("ab"), data("cd")]).declared(4);
    let mut replay = Replay::new(script, 100, Arc::default());
    for _ in 0..2 {
        let mut body = replay.next().unwrap();
        assert_eq!(body.size_hint().exact(), Some(4));
        Read::default().frames(&mut body, 1).unwrap();
        assert_eq!(body.size_hint().exact(), Some(2));
        assert!(!body.is_end_stream());
    }
    assert_eq!(whole(&mut replay), text("abcd"));
}

#[test]
fn no_body_stays_none() {
    let mut replay = Replay::new(Script::new([]).declared(0), 100, Arc::default());
    assert!(replay.is_empty() && replay.can_replay() && !replay.started());
    for _ in 0..2 {
        let body = replay.next().unwrap();
        assert!(body.is_end_stream());
        assert_eq!(body.size_hint().exact(), Some(0));
    }
    assert!(replay.sent().handed().is_some());
}

#[test]
fn once_settled_nothing_is_kept_and_nothing_lost() {
    let mut replay = replay([data("ab"), data("cd"), data("ef")], 100);
    let mut first = replay.next().unwrap();
    Read::default().frames(&mut first, 2).unwrap();
    let mut second = replay.next().unwrap();
    // In the middle of what was kept, and before it.
    replay.settle();
    let mut read = Read::default();
    read.frames(&mut second, usize::MAX).unwrap();
    assert_eq!(read.data, b"abcdef");
    assert!(!replay.can_replay());
}

#[test]
fn a_client_that_breaks_off_is_to_blame() {
    for (cut, reason) in [
        (Cut::Stream(h2::Reason::CANCEL), Reason::ClientReset),
        (Cut::Connection, Reason::ClientReset),
        (Cut::Protocol, Reason::BadRequest),
    ] {
        let mut replay = replay([data("ab"), Step::Cut(cut)], 100);
        let mut body = replay.next().unwrap();
        let error = Read::default().frames(&mut body, 9).unwrap_err();
        assert_eq!(error.reason, reason);
        assert_eq!(replay.client_failed(), Some(reason));
        assert!(replay.next().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn the_time_of_the_end_is_known_to_those_who_wait() {
    let begun = tokio::time::Instant::now();
    let mut replay = replay([data("ab"), Step::Wait, data("cd")], 100);
    let mut body = replay.next().unwrap();
    Read::default().frames(&mut body, 1).unwrap();
    assert_eq!(replay.sent().handed(), None);
    let flushed = replay.flushed();
    let rest = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        Read::default().frames(&mut body, 9).unwrap();
    };
    tokio::join!(flushed, rest);
    let after = begun + Duration::from_secs(5);
    assert_eq!(replay.sent().handed(), Some(after));

    // The next attempt starts its own time, not that of the request.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut again = replay.next().unwrap();
    assert_eq!(replay.sent().handed(), None);
    Read::default().frames(&mut again, 9).unwrap();
    assert_eq!(replay.sent().handed(), Some(after + Duration::from_secs(1)));
    assert_eq!(replay.sent().first_handed(), Some(after));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_owes_a_body_is_not_waited_for_for_ever() {
    use http_body_util::BodyExt as _;
    let script = Script::new([data("ab"), Step::Hang]).declared(9);
    let mut replay = Replay::new(script, 0, Arc::default());
    let body = replay.next().unwrap();
    let begun = tokio::time::Instant::now();
    assert_eq!(
        body.collect().await.unwrap_err().reason,
        Reason::ClientTimeout
    );
    assert_eq!(begun.elapsed().as_secs(), 60);
    assert_eq!(replay.client_failed(), Some(Reason::ClientTimeout));

    // A stream may rest.
    let mut replay = self::replay([data("ab"), Step::Hang], 0);
    let body = replay.next().unwrap().collect();
    assert!(
        tokio::time::timeout(Duration::from_secs(86_400), body)
            .await
            .is_err()
    );
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_held_back_goes_when_it_is_let_go_or_after_a_second() {
    for let_go in [true, false] {
        let mut replay = replay([data("ab")], 0);
        let mut body = replay.next().unwrap();
        replay.hold();
        let begun = tokio::time::Instant::now();
        assert!(poll(&mut body).is_pending());
        assert!(!replay.started());
        if let_go {
            replay.sent().release();
        }
        let frame = std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await;
        assert!(frame.unwrap().unwrap().is_data());
        assert!(replay.started());
        assert_eq!(begun.elapsed().as_secs(), u64::from(!let_go));
    }
}

#[test]
fn the_end_of_the_exchange_takes_the_body_from_the_client() {
    let mut replay = replay([data("ab"), Step::Hang], 0);
    let mut body = replay.next().unwrap();
    Read::default().frames(&mut body, 1).unwrap();
    replay.sent().close();
    assert!(Read::default().frames(&mut body, 1).is_err());
}

/// Frames of all sizes about the bounds, with pauses.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let size = prop_oneof![0usize..8, 900usize..1200, 3000usize..6000];
    vec(
        prop_oneof![4 => size.prop_map(Some), 1 => Just(None)],
        0..24,
    )
    .prop_map(|sizes| {
        let mut next = 0u32;
        sizes
            .into_iter()
            .map(|size| match size {
                None => Step::Wait,
                Some(size) => Step::Data(
                    (0..size)
                        .map(|_| {
                            next = next.wrapping_mul(31).wrapping_add(7);
                            (next >> 8) as u8
                        })
                        .collect(),
                ),
            })
            .collect()
    })
}

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().enable_time().build().unwrap());

proptest! {
    #[test]
    fn every_attempt_sends_the_same(
        steps in steps(),
        with_trailers in any::<bool>(),
        declare in any::<bool>(),
        limit in prop_oneof![Just(0usize), 1usize..20_000, Just(65_536)],
        aborts in vec(0usize..12, 0..5),
        settle in option::of(0usize..12),
    ) {
        // A client that owes the rest of a body starts a clock.
        let _runtime = RUNTIME.enter();
        let mut all = Vec::new();
        for step in &steps {
            if let Step::Data(data) = step {
                all.extend_from_slice(data);
            }
        }
        let mut steps = steps;
        let declare = declare && !with_trailers;
        if with_trailers {
            steps.push(Step::Trailers(trailers()));
        }
        let mut script = Script::new(steps);
        if declare {
            script = script.declared(all.len() as u64);
        }
        let bytes = Arc::new(RequestBytes::default());
        let mut replay = Replay::new(script, limit, Arc::clone(&bytes));
        for frames in aborts {
            let Some(mut body) = replay.next() else {
                // Given up only for a reason.
                prop_assert!(all.len() > limit || limit == 0);
                return Ok(());
            };
            let mut read = Read::default();
            read.frames(&mut body, frames).unwrap();
            prop_assert!(all.starts_with(&read.data));
            // Each byte of the client counts once.
            prop_assert!(bytes.get().0 >= read.data.len() as u64);
            if let Body::Attempt(attempt) = &body {
                prop_assert!(attempt.kept() <= limit);
            }
        }
        let Some(mut body) = replay.next() else {
            prop_assert!(all.len() > limit || limit == 0);
            return Ok(());
        };
        let mut read = Read::default();
        if let Some(frames) = settle {
            read.frames(&mut body, frames).unwrap();
            replay.settle();
        }
        if declare {
            prop_assert_eq!(body.size_hint().exact(), Some((all.len() - read.data.len()) as u64));
        }
        read.frames(&mut body, usize::MAX).unwrap();
        prop_assert_eq!(read.data, &all[..]);
        prop_assert_eq!(read.trailers, with_trailers.then(trailers));
        prop_assert_eq!(bytes.get().0, all.len() as u64);
        prop_assert!(replay.is_empty() || replay.sent().handed().is_some());
    }
}

#[test]
fn a_copy_gets_what_the_client_sends_and_slows_nothing() {
    let mut replay = replay([data("ab"), data("cd"), Step::Trailers(trailers())], 100);
    let mut quick = replay.copy(100).unwrap();
    let mut slow = replay.copy(3).unwrap();
    let mut first = replay.next().unwrap();
    Read::default().frames(&mut first, 1).unwrap();
    let mut copied = Read::default();
    copied.frames(&mut quick, 1).unwrap();
    assert!(poll(&mut quick).is_pending());
    // Each frame once, however often it is sent.
    assert_eq!(whole(&mut replay).unwrap().data, b"abcd");
    copied.frames(&mut quick, 9).unwrap();
    assert_eq!(copied.data, b"abcd");
    assert_eq!(copied.trailers, Some(trailers()));
    // More than three bytes waited for it.
    assert!(Read::default().frames(&mut slow, 9).is_err());
    assert!(replay.copy(100).is_none());

    // A request that ends early is no whole copy.
    let mut replay = self::replay([data("ab"), Step::Hang], 100);
    let mut copy = replay.copy(100).unwrap();
    let mut body = replay.next().unwrap();
    Read::default().frames(&mut body, 1).unwrap();
    drop((body, replay));
    assert!(Read::default().frames(&mut copy, 9).is_err());
}
