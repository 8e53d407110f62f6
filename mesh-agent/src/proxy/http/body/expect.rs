//! `Expect: 100-continue`, passed on (RFC 9110 section 10.1.1).
//!
//! hyper's server asks a client for its body (100) when the body is polled for the first time. So the upstream is asked first, and
//! the body held back until it says 100: then a final answer of the upstream, 413 or 417, reaches a client that has not
//! sent the body. An upstream that says nothing gets it after a second.

use ::http::{Request, StatusCode, Version, header::EXPECT};

use super::{Body, Replay};
use crate::proxy::http::pool::on_informational;

/// To be called for each attempt, after [`Replay::next`]. `client` is the version that the client speaks.
pub(in crate::proxy) fn pass_expectation(
    request: &mut Request<Body>,
    replay: &Replay,
    client: Version,
) {
    let Some(expect) = request.headers().get(EXPECT) else {
        return;
    };
    // Another expectation is the upstream's to refuse.
    if !expect.as_bytes().eq_ignore_ascii_case(b"100-continue") {
        return;
    }
    // hyper sends 100 in HTTP/1 alone, and a client that has been asked already does not wait any more.
    if client != Version::HTTP_11 || replay.is_empty() || replay.started() {
        request.headers_mut().remove(EXPECT);
        return;
    }
    replay.hold();
    let sent = replay.sent();
    on_informational(request, move |status, _| {
        if status == StatusCode::CONTINUE {
            sent.release();
        }
    });
}
