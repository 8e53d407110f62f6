//! A source of frames that tests write down.

use std::{
    collections::VecDeque,
    task::{Context, Poll, Waker},
};

use ::http::HeaderMap;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

use super::{Cut, Source};

/// What comes, in order.
#[derive(Clone, Debug)]
pub(in crate::proxy) enum Step {
    Data(Bytes),
    Trailers(HeaderMap),
    Cut(Cut),
    /// Nothing yet: the reader is woken and asks again.
    Wait,
    /// Nothing more, and no end.
    Hang,
}

#[derive(Debug, Default)]
pub(in crate::proxy) struct Script {
    steps: VecDeque<Step>,
    pub(in crate::proxy) declared: Option<u64>,
    waker: Option<Waker>,
}

impl Script {
    pub(in crate::proxy) fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        Self {
            steps: steps.into_iter().collect(),
            ..Self::default()
        }
    }

    /// With a Content-Length.
    pub(in crate::proxy) fn declared(mut self, length: u64) -> Self {
        self.declared = Some(length);
        self
    }

    pub(in crate::proxy) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match self.steps.pop_front() {
            None => Poll::Ready(None),
            Some(Step::Data(data)) => {
                if let Some(left) = &mut self.declared {
                    *left -= data.len() as u64;
                }
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Step::Trailers(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            Some(Step::Cut(cut)) => Poll::Ready(Some(Err(cut))),
            Some(Step::Wait) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Some(Step::Hang) => {
                self.steps.push_front(Step::Hang);
                self.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    pub(in crate::proxy) fn is_end_stream(&self) -> bool {
        self.declared == Some(0)
    }

    pub(in crate::proxy) fn size_hint(&self) -> SizeHint {
        self.declared
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl From<Script> for Source {
    fn from(script: Script) -> Self {
        Self::Script(script)
    }
}
