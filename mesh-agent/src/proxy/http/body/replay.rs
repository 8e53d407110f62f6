//! A client's request body on its way up, sent as often as the attempts need it.
//!
//! What the client sends is taken from it once. As long as the request may have to be repeated, and up to a limit, the
//! frames are kept by reference, so that a later attempt sends them first and goes on with what the client has not sent
//! yet. Bodies that are longer are not repeated: then nothing is kept.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use ::http::HeaderMap;
use bytes::{Bytes, BytesMut};
use hyper::body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use super::{
    Body, BodyError, Source,
    copy::{Tee, copy},
};
use crate::telemetry::{Reason, RequestBytes};

/// Frames up to this size are copied together: a kept reference costs more than the bytes would, and may hold the whole
/// read buffer that they are a part of.
const SMALL_FRAME: usize = 1024;
const TAIL: usize = 4096;
/// A client that declared the length of the body and then sends nothing for so long is given up. Bodies without a length
/// may be streams that rest.
pub(in crate::proxy::http) const CLIENT_SILENCE: Duration = Duration::from_secs(60);
/// How long an upstream may leave `Expect: 100-continue` unanswered before it gets the body (RFC 9110 10.1.1).
pub(in crate::proxy::http) const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// The body of one request, for all its attempts.
#[derive(Debug)]
pub(in crate::proxy) struct Replay {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Empty { handed: Option<Instant> },
    Stream(Arc<Shared>),
}

impl Replay {
    /// `limit`: bytes that may be kept; 0 when nothing is ever repeated. `bytes` counts what the client sends.
    pub(in crate::proxy) fn new(
        incoming: impl Into<Source>,
        limit: usize,
        bytes: Arc<RequestBytes>,
    ) -> Self {
        let source = incoming.into();
        if source.is_end_stream() {
            return Self {
                kind: Kind::Empty { handed: None },
            };
        }
        let declared = source.size_hint().exact();
        let keeping = limit > 0 && declared.is_none_or(|length| length <= limit as u64);
        Self {
            kind: Kind::Stream(Arc::new(Shared {
                state: Mutex::new(State {
                    source: Some(source),
                    declared,
                    taken: false,
                    kept: VecDeque::new(),
                    tail: BytesMut::new(),
                    kept_bytes: 0,
                    trailers: None,
                    limit,
                    keeping,
                    attempt: 0,
                    position: 0,
                    sent: 0,
                    trailers_due: false,
                    held: false,
                    handed: None,
                    first_handed: None,
                    failed: None,
                    running: None,
                    watching: None,
                    tees: Vec::new(),
                }),
                bytes,
                begun: Instant::now(),
                moved: AtomicU64::new(0),
            })),
        }
    }

    /// The body of the next attempt; that of the one before is cut off. `None`: the body can not be sent again, because
    /// it is longer than the limit or the client broke it off.
    pub(in crate::proxy) fn next(&mut self) -> Option<Body> {
        match &mut self.kind {
            Kind::Empty { handed } => {
                handed.get_or_insert_with(Instant::now);
                Some(Body::Empty)
            }
            Kind::Stream(shared) => {
                let mut state = shared.lock();
                if !state.can_repeat() {
                    return None;
                }
                state.rewind();
                let number = state.attempt;
                let times_out = state.declared.is_some();
                drop(state);
                Some(Body::Attempt(Attempt {
                    shared: Arc::clone(shared),
                    number,
                    clock: None,
                    times_out,
                }))
            }
        }
    }

    /// A copy of what the client sends, whichever attempt asks for it; cut when more than `most` bytes of it wait. `None`:
    /// some of it is gone already.
    pub(in crate::proxy) fn copy(&self, most: usize) -> Option<Body> {
        let Kind::Stream(shared) = &self.kind else {
            return Some(Body::Empty);
        };
        let mut state = shared.lock();
        if state.taken || state.failed.is_some() {
            return None;
        }
        let (tee, body) = copy(most, state.declared);
        state.tees.push(tee);
        Some(Body::Copy(body))
    }

    /// Whether [`Self::next`] has a body to give.
    pub(in crate::proxy) fn can_replay(&self) -> bool {
        match &self.kind {
            Kind::Empty { .. } => true,
            Kind::Stream(shared) => shared.lock().can_repeat(),
        }
    }

    /// Whether anything of the body was asked of the client. A client that expects 100 (Continue) has got it then.
    pub(in crate::proxy) fn started(&self) -> bool {
        match &self.kind {
            Kind::Empty { .. } => false,
            Kind::Stream(shared) => shared.lock().taken,
        }
    }

    /// Whether there is no body at all.
    pub(in crate::proxy) fn is_empty(&self) -> bool {
        matches!(self.kind, Kind::Empty { .. })
    }

    /// Holds the running attempt's body back until [`Sent::release`], or until the upstream has said nothing for a second.
    pub(in crate::proxy) fn hold(&self) {
        if let Kind::Stream(shared) = &self.kind {
            let mut state = shared.lock();
            state.held = !state.taken;
        }
    }

    /// Why the client's side of the body failed, if it did: then no attempt is to blame, and none can succeed.
    pub(in crate::proxy) fn client_failed(&self) -> Option<Reason> {
        match &self.kind {
            Kind::Empty { .. } => None,
            Kind::Stream(shared) => shared.lock().failed.map(|(reason, _)| reason),
        }
    }

    /// Keeps no more: the headers of the response that the client gets have come.
    pub(in crate::proxy) fn settle(&self) {
        if let Kind::Stream(shared) = &self.kind {
            shared.lock().stop_keeping();
        }
    }

    /// Waits until the running attempt has handed over the whole request.
    pub(in crate::proxy) async fn flushed(&self) {
        let sent = self.sent();
        poll_fn(|cx| sent.poll_handed(cx)).await;
    }

    /// A view for those that must know how far the request is.
    pub(in crate::proxy) fn sent(&self) -> Sent {
        match &self.kind {
            Kind::Empty { handed } => Sent::At(handed.unwrap_or_else(Instant::now)),
            Kind::Stream(shared) => Sent::Watched(Arc::clone(shared)),
        }
    }
}

/// How far the request has gone out.
#[derive(Clone, Debug)]
pub(in crate::proxy) enum Sent {
    /// It has no body, and went out whole at this time.
    At(Instant),
    Watched(Arc<Shared>),
}

impl Sent {
    /// When the running attempt has handed over the whole request.
    pub(in crate::proxy) fn handed(&self) -> Option<Instant> {
        match self {
            Self::At(at) => Some(*at),
            Self::Watched(shared) => shared.lock().handed,
        }
    }

    /// When an attempt had for the first time: the timeout of the request runs from here.
    pub(in crate::proxy) fn first_handed(&self) -> Option<Instant> {
        match self {
            Self::At(at) => Some(*at),
            Self::Watched(shared) => shared.lock().first_handed,
        }
    }

    /// One waiter at a time: the latest is woken.
    pub(super) fn poll_handed(&self, cx: &mut Context<'_>) -> Poll<()> {
        let Self::Watched(shared) = self else {
            return Poll::Ready(());
        };
        let mut state = shared.lock();
        if state.handed.is_some() {
            return Poll::Ready(());
        }
        remember(&mut state.watching, cx);
        Poll::Pending
    }

    /// When something of the body moved last.
    pub(in crate::proxy) fn moved(&self) -> Instant {
        match self {
            Self::At(at) => *at,
            Self::Watched(shared) => {
                shared.begun + Duration::from_millis(shared.moved.load(Ordering::Relaxed))
            }
        }
    }

    /// Lets a body go that was held back: the upstream said 100 (Continue).
    pub(in crate::proxy) fn release(&self) {
        if let Self::Watched(shared) = self {
            let mut state = shared.lock();
            state.held = false;
            wake(&mut state.running);
        }
    }

    /// The exchange is over: nothing more is taken from the client.
    pub(in crate::proxy) fn close(&self) {
        if let Self::Watched(shared) = self {
            let mut state = shared.lock();
            state.stop_keeping();
            let source = state.source.take();
            if source.is_some() && state.failed.is_none() {
                state.failed = Some((Reason::Completed, h2::Reason::NO_ERROR));
            }
            wake(&mut state.running);
            state.watching = None;
            state.tees.clear();
            drop(state);
            drop(source);
        }
    }
}

/// What the attempts and their watchers share.
#[derive(Debug)]
pub(in crate::proxy) struct Shared {
    state: Mutex<State>,
    bytes: Arc<RequestBytes>,
    begun: Instant,
    /// Milliseconds after `begun` of the last frame.
    moved: AtomicU64,
}

struct State {
    /// `None` once the client has sent everything, or the exchange is over.
    source: Option<Source>,
    /// Content-Length.
    declared: Option<u64>,
    /// The client was asked for the body.
    taken: bool,
    /// What came, while `keeping`; else what the running attempt has still to send of it.
    kept: VecDeque<Bytes>,
    /// The end of what came, small frames copied together. The running attempt has sent it.
    tail: BytesMut,
    kept_bytes: usize,
    trailers: Option<HeaderMap>,
    limit: usize,
    keeping: bool,
    /// Number of the running attempt.
    attempt: u32,
    /// Frames of `kept` that it has sent.
    position: usize,
    /// Bytes that it has sent.
    sent: u64,
    /// It has still to send the kept trailers.
    trailers_due: bool,
    /// It waits for 100 (Continue).
    held: bool,
    handed: Option<Instant>,
    first_handed: Option<Instant>,
    failed: Option<(Reason, h2::Reason)>,
    /// The task of the running attempt.
    running: Option<Waker>,
    /// Who waits for `handed`.
    watching: Option<Waker>,
    /// Who gets a copy. Emptied at the end of what the client sends.
    tees: Vec<Tee>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("declared", &self.declared)
            .field("kept_bytes", &self.kept_bytes)
            .field("keeping", &self.keeping)
            .field("attempt", &self.attempt)
            .field("sent", &self.sent)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self) {
        let now = self.begun.elapsed().as_millis() as u64;
        self.moved.store(now, Ordering::Relaxed);
    }
}

impl State {
    fn can_repeat(&self) -> bool {
        self.failed.is_none() && (self.keeping || !self.taken)
    }

    fn rewind(&mut self) {
        self.attempt += 1;
        self.freeze_tail();
        self.position = 0;
        self.sent = 0;
        self.trailers_due = self.trailers.is_some();
        self.held = false;
        self.handed = None;
        wake(&mut self.running);
    }

    fn freeze_tail(&mut self) {
        if !self.tail.is_empty() {
            let tail = self.tail.split().freeze();
            self.tail = BytesMut::new();
            self.kept.push_back(tail);
            self.position += 1;
        }
    }

    /// Keeps a frame that the running attempt sends now.
    fn keep(&mut self, data: &Bytes) {
        if self.kept_bytes + data.len() > self.limit {
            return self.stop_keeping();
        }
        self.kept_bytes += data.len();
        if data.len() > SMALL_FRAME {
            self.freeze_tail();
            self.kept.push_back(data.clone());
            self.position += 1;
            return;
        }
        if self.tail.len() + data.len() > TAIL {
            self.freeze_tail();
        }
        self.tail.extend_from_slice(data);
    }

    fn stop_keeping(&mut self) {
        if !self.keeping {
            return;
        }
        self.keeping = false;
        self.kept.drain(..self.position);
        self.position = 0;
        self.tail = BytesMut::new();
        if !self.trailers_due {
            self.trailers = None;
        }
    }

    /// The next frame of those that were kept.
    fn again(&mut self) -> Option<Bytes> {
        let data = if self.keeping {
            let data = self.kept.get(self.position)?.clone();
            self.position += 1;
            data
        } else {
            self.kept.pop_front()?
        };
        self.sent += data.len() as u64;
        Some(data)
    }

    fn is_complete(&self) -> bool {
        self.source.is_none()
            && self.failed.is_none()
            && self.position == self.kept.len()
            && !self.trailers_due
    }

    fn note_handed(&mut self) {
        if self.handed.is_none() && self.is_complete() {
            let now = Instant::now();
            self.handed = Some(now);
            self.first_handed.get_or_insert(now);
            wake(&mut self.watching);
        }
    }

    /// The client has sent everything.
    fn end(&mut self) {
        self.source = None;
        for tee in self.tees.drain(..) {
            tee.whole();
        }
    }

    fn fail(&mut self, reason: Reason, code: h2::Reason) -> BodyError {
        self.failed = Some((reason, code));
        self.source = None;
        self.tees.clear();
        BodyError::new(reason, code)
    }
}

/// The body of one attempt.
#[derive(Debug)]
pub(in crate::proxy) struct Attempt {
    shared: Arc<Shared>,
    number: u32,
    clock: Option<Pin<Box<Sleep>>>,
    /// Whether the client owes the body within a time.
    times_out: bool,
}

impl Attempt {
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut state = self.shared.lock();
        if state.attempt != self.number {
            // hyper cuts the old attempt's stream with it.
            return Poll::Ready(Some(Err(BodyError::new(
                Reason::ClientReset,
                h2::Reason::CANCEL,
            ))));
        }
        if let Some((reason, code)) = state.failed {
            return Poll::Ready(Some(Err(BodyError::new(reason, code))));
        }
        if state.held {
            let clock = self
                .clock
                .get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + CONTINUE_WAIT)));
            if clock.as_mut().poll(cx).is_pending() {
                remember(&mut state.running, cx);
                return Poll::Pending;
            }
            state.held = false;
            self.clock = None;
        }
        if let Some(data) = state.again() {
            state.note_handed();
            self.shared.note();
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let Some(source) = &mut state.source else {
            let trailers = if state.trailers_due {
                state.trailers_due = false;
                if state.keeping {
                    state.trailers.clone()
                } else {
                    state.trailers.take()
                }
            } else {
                None
            };
            state.note_handed();
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        };
        let polled = source.poll_frame(cx);
        let ended = source.is_end_stream();
        state.taken = true;
        match polled {
            Poll::Ready(Some(Ok(frame))) => {
                self.shared.note();
                self.clock = None;
                if let Some(data) = frame.data_ref() {
                    self.shared.bytes.add_request(data.len() as u64);
                    if state.keeping {
                        state.keep(data);
                    }
                    state.sent += data.len() as u64;
                    state.tees.iter().for_each(|tee| tee.data(data));
                    if ended {
                        state.end();
                    }
                } else if let Some(trailers) = frame.trailers_ref() {
                    state.trailers = state.keeping.then(|| trailers.clone());
                    state.tees.iter().for_each(|tee| tee.trailers(trailers));
                    state.end();
                }
                state.note_handed();
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(cut))) => {
                let code = match cut.of_client() {
                    Reason::BadRequest => h2::Reason::INTERNAL_ERROR,
                    _ => h2::Reason::CANCEL,
                };
                Poll::Ready(Some(Err(state.fail(cut.of_client(), code))))
            }
            Poll::Ready(None) => {
                state.end();
                state.note_handed();
                Poll::Ready(None)
            }
            Poll::Pending => {
                remember(&mut state.running, cx);
                if self.times_out {
                    let clock = self.clock.get_or_insert_with(|| {
                        Box::pin(sleep_until(Instant::now() + CLIENT_SILENCE))
                    });
                    if clock.as_mut().poll(cx).is_ready() {
                        let error = state.fail(Reason::ClientTimeout, h2::Reason::CANCEL);
                        return Poll::Ready(Some(Err(error)));
                    }
                }
                Poll::Pending
            }
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        let state = self.shared.lock();
        state.attempt == self.number && state.is_complete()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let state = self.shared.lock();
        match state.declared {
            Some(length) => SizeHint::with_exact(length.saturating_sub(state.sent)),
            None => SizeHint::default(),
        }
    }
}

#[cfg(test)]
impl Attempt {
    /// Bytes that are held in memory.
    pub(super) fn kept(&self) -> usize {
        let state = self.shared.lock();
        state.kept.iter().map(Bytes::len).sum::<usize>() + state.tail.len()
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        // A sender that stopped early (HTTP/2 resets, HTTP/1 answers before the end) is not to be woken.
        let mut state = self.shared.lock();
        if state.attempt == self.number {
            state.running = None;
        }
    }
}

fn remember(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) if waker.will_wake(cx.waker()) => {}
        slot => *slot = Some(cx.waker().clone()),
    }
}

fn wake(slot: &mut Option<Waker>) {
    if let Some(waker) = slot.take() {
        waker.wake();
    }
}
