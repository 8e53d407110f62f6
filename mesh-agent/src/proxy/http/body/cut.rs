//! What it means when a stream of frames breaks off before its end.

use std::{error::Error, io};

use crate::telemetry::Reason;

/// How a stream was cut, whichever side it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Cut {
    /// The peer reset the HTTP/2 stream.
    Stream(h2::Reason),
    /// The connection is gone: reset, or closed before the end.
    Connection,
    /// The connection is gone, and it is known why.
    Lost(Reason),
    /// What came is not HTTP: a bad chunk, or another length than was declared.
    Protocol,
}

impl Cut {
    /// Reads it out of an error of hyper.
    pub(in crate::proxy) fn of(error: &(dyn Error + 'static)) -> Self {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(h2) = error.downcast_ref::<h2::Error>() {
                return match h2.reason() {
                    Some(code) if h2.is_reset() && h2.is_remote() => Self::Stream(code),
                    // Found by the library on this side: the peer broke the protocol.
                    Some(code) if !h2.is_remote() && code != h2::Reason::CANCEL => Self::Protocol,
                    _ => Self::Connection,
                };
            }
            if let Some(io) = error.downcast_ref::<io::Error>() {
                return match io.kind() {
                    io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => Self::Protocol,
                    _ => Self::Connection,
                };
            }
            cause = error.source();
        }
        Self::Connection
    }

    /// When it was the client's request.
    pub(in crate::proxy) fn of_client(self) -> Reason {
        match self {
            Self::Stream(_) | Self::Connection | Self::Lost(_) => Reason::ClientReset,
            Self::Protocol => Reason::BadRequest,
        }
    }

    /// When it was the upstream's response.
    pub(in crate::proxy) fn of_upstream(self) -> Reason {
        match self {
            Self::Stream(_) => Reason::StreamReset,
            Self::Connection => Reason::UpstreamReset,
            Self::Lost(reason) => reason,
            Self::Protocol => Reason::UpstreamProtocol,
        }
    }

    /// The code to reset the other side's stream with.
    pub(super) fn code(self) -> h2::Reason {
        match self {
            // The other side began to work on it; these two would tell it that it may safely repeat, or that all is well.
            Self::Stream(h2::Reason::REFUSED_STREAM | h2::Reason::NO_ERROR) => {
                h2::Reason::INTERNAL_ERROR
            }
            Self::Stream(code) => code,
            Self::Connection | Self::Lost(_) | Self::Protocol => h2::Reason::INTERNAL_ERROR,
        }
    }
}
