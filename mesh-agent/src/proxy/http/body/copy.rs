//! A request's body for one who listens in: the frames as the client sends them, as long as he keeps up.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use ::http::HeaderMap;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

use super::BodyError;
use crate::telemetry::Reason;

/// The side that the client's frames are put in.
#[derive(Debug)]
pub(super) struct Tee(Arc<Shared>);

/// The body of the copy.
#[derive(Debug)]
pub(in crate::proxy) struct Copy(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Bytes that may wait for the listener.
    most: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Bytes>,
    bytes: usize,
    trailers: Option<HeaderMap>,
    /// Content-Length less what was taken.
    left: Option<u64>,
    end: Option<End>,
    listener: Option<Waker>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Whole,
    /// The client broke off, or the listener did not keep up.
    Cut,
}

pub(super) fn copy(most: usize, declared: Option<u64>) -> (Tee, Copy) {
    let shared = Arc::new(Shared {
        most,
        state: Mutex::new(State {
            left: declared,
            ..State::default()
        }),
    });
    (Tee(Arc::clone(&shared)), Copy(shared))
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn end(&mut self, end: End) {
        self.end.get_or_insert(end);
        if self.end == Some(End::Cut) {
            self.waiting.clear();
            self.trailers = None;
        }
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(listener) = self.listener.take() {
            listener.wake();
        }
    }
}

impl Tee {
    pub(super) fn data(&self, data: &Bytes) {
        let mut state = self.0.lock();
        if state.end.is_some() {
            return;
        }
        state.bytes += data.len();
        if state.bytes > self.0.most {
            return state.end(End::Cut);
        }
        state.waiting.push_back(data.clone());
        state.wake();
    }

    pub(super) fn trailers(&self, trailers: &HeaderMap) {
        self.0.lock().trailers = Some(trailers.clone());
    }

    pub(super) fn whole(&self) {
        self.0.lock().end(End::Whole);
    }
}

impl Drop for Tee {
    fn drop(&mut self) {
        self.0.lock().end(End::Cut);
    }
}

impl Copy {
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut state = self.0.lock();
        if let Some(data) = state.waiting.pop_front() {
            state.bytes -= data.len();
            if let Some(left) = &mut state.left {
                *left = left.saturating_sub(data.len() as u64);
            }
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        match state.end {
            None => {
                state.listener = Some(cx.waker().clone());
                Poll::Pending
            }
            Some(End::Whole) => Poll::Ready(
                state
                    .trailers
                    .take()
                    .map(|trailers| Ok(Frame::trailers(trailers))),
            ),
            Some(End::Cut) => Poll::Ready(Some(Err(BodyError::new(
                Reason::ClientReset,
                h2::Reason::CANCEL,
            )))),
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        let state = self.0.lock();
        state.end == Some(End::Whole) && state.waiting.is_empty() && state.trailers.is_none()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let left = self.0.lock().left;
        left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        self.0.lock().end(End::Cut);
    }
}
