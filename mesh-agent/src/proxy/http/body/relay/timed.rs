//! A response that must end in time.
//!
//! hyper asks for the next frame only when the client takes it, so a client that does not read would hold its upstream
//! for ever if the deadlines were looked at then. The clock therefore wakes this module, not hyper: it lets the upstream
//! go and reports the end, and the client learns of it when it reads again.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Wake, Waker},
};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::{
    runtime::Handle,
    time::{Instant, Sleep, sleep_until},
};

use super::{BodyError, Finish, Relay};
use crate::telemetry::Reason;

/// The body of such a response.
pub(in crate::proxy) struct Timed(Arc<Shared>);

struct Shared {
    runtime: Handle,
    state: Mutex<State>,
}

struct State {
    relay: Box<Relay<dyn Finish>>,
    /// Set to the deadline that came first when it was looked at last, and not for each frame. `None`: none runs yet.
    clock: Option<Pin<Box<Sleep>>>,
    /// Which deadline has passed, until the client has been told.
    expired: Option<Reason>,
    /// Who polls the body.
    task: Option<Waker>,
}

impl Timed {
    pub(super) fn start(relay: Box<Relay<dyn Finish>>) -> Self {
        let shared = Arc::new(Shared {
            runtime: Handle::current(),
            state: Mutex::new(State {
                relay,
                clock: None,
                expired: None,
                task: None,
            }),
        });
        shared.look();
        Self(shared)
    }

    pub(in crate::proxy::http::body) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut state = self.0.lock();
        if let Some(reason) = state.expired.take() {
            return Poll::Ready(Some(state.relay.farewell(reason)));
        }
        let polled = state.relay.poll_frame(cx);
        if polled.is_pending()
            && !state
                .task
                .as_ref()
                .is_some_and(|task| task.will_wake(cx.waker()))
        {
            state.task = Some(cx.waker().clone());
        }
        polled
    }

    pub(in crate::proxy::http::body) fn is_end_stream(&self) -> bool {
        let state = self.0.lock();
        state.expired.is_none() && state.relay.is_end_stream()
    }

    pub(in crate::proxy::http::body) fn size_hint(&self) -> SizeHint {
        let state = self.0.lock();
        if state.expired.is_some() {
            return SizeHint::default();
        }
        state.relay.size_hint()
    }
}

impl Drop for Timed {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        // The clock holds a reference to what holds the clock.
        state.clock = None;
        state.relay.end(Reason::ClientReset, false);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the deadlines, and has itself woken for the next one.
    fn look(self: &Arc<Self>) {
        let waker = Waker::from(Arc::clone(self));
        let mut cx = Context::from_waker(&waker);
        let mut state = self.lock();
        let state = &mut *state;
        if state.relay.finished {
            state.clock = None;
            return;
        }
        // Some deadlines run only from the time that the request has gone out.
        let _ = state.relay.sent.poll_handed(&mut cx);
        while let Some((at, reason)) = state.relay.next_deadline() {
            if at <= Instant::now() {
                state.clock = None;
                state.expired = Some(reason);
                state.relay.expire(reason);
                if let Some(task) = state.task.take() {
                    task.wake();
                }
                return;
            }
            let clock = state.clock.get_or_insert_with(|| Box::pin(sleep_until(at)));
            clock.as_mut().reset(at);
            if clock.as_mut().poll(&mut cx).is_pending() {
                return;
            }
        }
    }
}

impl Wake for Shared {
    fn wake(self: Arc<Self>) {
        // Not here: whoever wakes may hold the locks that are needed.
        let runtime = self.runtime.clone();
        runtime.spawn(async move { self.look() });
    }
}
