//! What an answer says about the endpoint that gave it: pure tables.

use http::StatusCode;

use crate::telemetry::Reason;

/// `RESOURCE_EXHAUSTED`.
const GRPC_LIMITED: u32 = 8;

/// The result of an attempt, as the breaker and the balancer count it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Success,
    Failure,
    /// The endpoint is well and turns work away (429, `RESOURCE_EXHAUSTED`): counts in the failure ratio and is no
    /// consecutive failure, nor does it end a row of them.
    Limited,
}

impl Verdict {
    /// A failure is what the server says of itself: 5xx, but for 501 and 505, which speak of the request.
    pub fn of_status(status: StatusCode) -> Self {
        match status.as_u16() {
            429 => Self::Limited,
            501 | 505 => Self::Success,
            500..=599 => Self::Failure,
            _ => Self::Success,
        }
    }

    /// The same for gRPC, by the status of HTTP that each code stands for: UNKNOWN and INTERNAL (500), DEADLINE_EXCEEDED
    /// (504), UNAVAILABLE (503) and DATA_LOSS (500) are failures. UNKNOWN is what servers answer when the application
    /// threw an exception, and what a code outside of the list is to be read as.
    pub fn of_grpc(code: u32) -> Self {
        match code {
            GRPC_LIMITED => Self::Limited,
            2 | 4 | 13 | 14 | 15 => Self::Failure,
            0..=16 => Self::Success,
            _ => Self::Failure,
        }
    }

    /// The answer as a whole. A gRPC answer speaks by its code; one that came without HTTP's 200 is not from a gRPC
    /// server and speaks by its status; `None` at the end of the stream is a failure.
    pub fn of_answer(status: StatusCode, grpc: bool, code: Option<u32>) -> Self {
        match (grpc && status == StatusCode::OK, code) {
            (true, Some(code)) => Self::of_grpc(code),
            (true, None) => Self::Failure,
            (false, _) => Self::of_status(status),
        }
    }

    /// An attempt that ended without an answer, or in the middle of one. `None`: it says nothing about the endpoint,
    /// and the attempt is to be dropped without a result. Failed connects are not told here but by `Attempt::failed`.
    pub const fn of_reason(reason: Reason) -> Option<Self> {
        match reason {
            Reason::Completed => Some(Self::Success),
            Reason::UpstreamReset
            | Reason::UpstreamTimeout
            | Reason::UpstreamProtocol
            | Reason::AttemptTimeout
            | Reason::RequestTimeout
            | Reason::StreamReset
            | Reason::GrpcStatusMissing
            | Reason::TunnelBroken
            | Reason::PeerVanished => Some(Self::Failure),
            // A stream that was refused (GOAWAY of a server that restarts in order), a client that went or whose own
            // deadline was short, an idle stream, and everything that was decided here.
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses() {
        use Verdict::{Failure, Limited, Success};
        for (status, expected) in [
            (200, Success),
            (304, Success),
            (404, Success),
            (408, Success),
            (429, Limited),
            (500, Failure),
            (501, Success),
            (502, Failure),
            (503, Failure),
            (504, Failure),
            (505, Success),
            (599, Failure),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(Verdict::of_status(status), expected, "{status}");
        }
    }

    #[test]
    fn codes_of_grpc() {
        let failures: Vec<u32> = (0..20)
            .filter(|code| Verdict::of_grpc(*code) == Verdict::Failure)
            .collect();
        assert_eq!(failures, [2, 4, 13, 14, 15, 17, 18, 19]);
        assert_eq!(Verdict::of_grpc(8), Verdict::Limited);
        // PERMISSION_DENIED, UNAUTHENTICATED.
        assert_eq!(Verdict::of_grpc(7), Verdict::Success);
        assert_eq!(Verdict::of_grpc(16), Verdict::Success);
    }

    #[test]
    fn answers() {
        let ok = StatusCode::OK;
        for (status, grpc, code, expected) in [
            (ok, true, Some(0), Verdict::Success),
            (ok, true, Some(14), Verdict::Failure),
            (ok, true, None, Verdict::Failure),
            (ok, false, None, Verdict::Success),
            (StatusCode::BAD_GATEWAY, true, None, Verdict::Failure),
            (StatusCode::NOT_FOUND, true, None, Verdict::Success),
            (StatusCode::TOO_MANY_REQUESTS, true, None, Verdict::Limited),
        ] {
            assert_eq!(
                Verdict::of_answer(status, grpc, code),
                expected,
                "{status} {grpc} {code:?}"
            );
        }
    }
}
