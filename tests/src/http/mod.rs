//! HTTP peers that run inside pods: a server whose faults a test scripts, and a client that says exactly what it sent and
//! what it got. Both speak HTTP/1.1 and HTTP/2 without TLS.

pub mod client;
pub mod generators;
pub mod load;
pub mod server;
pub mod stream;

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;

pub use client::{Answer, Ask, Connection, Speaks, ask};
pub use generators::Generator;
pub use load::Load;
pub use server::{HttpServer, Mode, Seen};
pub use stream::Stream;

/// FNV-1a of a body, in hexadecimal: the server names it in its answers.
pub fn hash(bytes: &[u8]) -> String {
    format!("{:016x}", fnv(SEED, bytes))
}

pub(crate) const SEED: u64 = 0xcbf2_9ce4_8422_2325;

/// Goes on with a hash of what came before.
pub(crate) fn fnv(seed: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(seed, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// `size` bytes that do not repeat soon: what is lost, doubled or moved changes the hash.
pub fn pattern(size: usize) -> Vec<u8> {
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    let mut out = Vec::with_capacity(size + 8);
    while out.len() < size {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.truncate(size);
    out
}

/// A body whose frames somebody else sends; of unknown length unless `size` says it.
pub(crate) struct Frames {
    pub(crate) frames: mpsc::Receiver<Result<Frame<Bytes>, io::Error>>,
    pub(crate) size: Option<u64>,
}

impl Frames {
    pub(crate) fn channel(
        size: Option<u64>,
    ) -> (mpsc::Sender<Result<Frame<Bytes>, io::Error>>, Frames) {
        let (sender, frames) = mpsc::channel(4);
        (sender, Frames { frames, size })
    }

    /// All of it at once.
    pub(crate) fn whole(bytes: impl Into<Bytes>) -> Frames {
        let bytes = bytes.into();
        let (sender, mut frames) = Frames::channel(Some(bytes.len() as u64));
        if bytes.is_empty() {
            frames.size = Some(0);
        } else {
            let _ = sender.try_send(Ok(Frame::data(bytes)));
        }
        frames
    }
}

impl Body for Frames {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let next = self.frames.poll_recv(cx);
        if let Poll::Ready(Some(Ok(frame))) = &next
            && let Some(data) = frame.data_ref()
            && let Some(left) = self.size
        {
            self.size = Some(left.saturating_sub(data.len() as u64));
        }
        next
    }

    fn is_end_stream(&self) -> bool {
        self.size == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.size
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
