//! Bodies, frame by frame.

mod expect;
mod relay;
mod replay;

use std::{
    pin::Pin,
    task::{Context, Poll, Waker},
};

use ::http::HeaderMap;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame};

use super::{Body, BodyError};

/// One look at the body; nobody is woken.
fn poll(body: &mut Body) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
    Pin::new(body).poll_frame(&mut Context::from_waker(Waker::noop()))
}

/// What a body has given.
#[derive(Debug, Default, PartialEq)]
struct Read {
    data: Vec<u8>,
    trailers: Option<HeaderMap>,
    ended: bool,
}

impl Read {
    /// Takes up to so many frames; scripts that wait go on when asked again.
    fn frames(&mut self, body: &mut Body, most: usize) -> Result<(), BodyError> {
        let mut left = most;
        while left > 0 && !self.ended {
            match poll(body) {
                Poll::Pending => {}
                Poll::Ready(None) => self.ended = true,
                Poll::Ready(Some(Err(error))) => return Err(error),
                Poll::Ready(Some(Ok(frame))) => {
                    left -= 1;
                    // As hyper does: it does not ask again after these.
                    self.ended = frame.is_trailers() || body.is_end_stream();
                    match frame.into_data() {
                        Ok(data) => self.data.extend(data),
                        Err(frame) => self.trailers = frame.into_trailers().ok(),
                    }
                }
            }
        }
        Ok(())
    }
}
