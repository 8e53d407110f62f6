//! What a client speaks, told from its first bytes while they still lie in the socket.

use std::{cell::RefCell, time::Duration};

use rustix::{
    io::Errno,
    net::{RecvFlags, recv},
};
use tokio::{
    io::Interest,
    net::TcpStream,
    time::{Instant, sleep, timeout_at},
};

use super::{HttpVersion, headers::MAX_URI};

/// RFC 9113 section 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The longest registered method has 17 letters.
const MAX_METHOD: usize = 32;
/// Method, blanks, target, version and end of line.
pub(in crate::proxy) const MAX_REQUEST_LINE: usize = MAX_METHOD + MAX_URI + 32;
/// How long a client that has begun to speak may take to show what it speaks, where nothing is declared.
pub(in crate::proxy) const DETECTION: Duration = Duration::from_secs(3);
/// How long the client of a server that cannot be reached may take to show that it speaks HTTP, and gets an answer instead
/// of a reset.
pub(in crate::proxy) const LAST_LOOK: Duration = Duration::from_millis(50);
/// These with a target longer than the bound are requests with too long a target; anything else is another protocol.
const METHODS: [&[u8]; 9] = [
    b"GET", b"POST", b"PUT", b"HEAD", b"DELETE", b"OPTIONS", b"PATCH", b"CONNECT", b"TRACE",
];

/// What the bytes are the beginning of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Sniff {
    Http1,
    Http2,
    NotHttp,
    /// Too few to tell.
    More,
}

/// Tells it from the bytes that came first. More bytes never change an answer other than [`Sniff::More`].
pub(in crate::proxy) fn classify(bytes: &[u8]) -> Sniff {
    if !bytes.is_empty() && PREFACE.starts_with(bytes) {
        return if bytes.len() == PREFACE.len() {
            Sniff::Http2
        } else {
            Sniff::More
        };
    }
    if bytes.starts_with(PREFACE) {
        return Sniff::Http2;
    }
    request_line(after_empty_line(bytes))
}

/// RFC 9112 section 2.2: a server ignores an empty line before the request line.
fn after_empty_line(bytes: &[u8]) -> &[u8] {
    bytes
        .strip_prefix(b"\r\n")
        .or_else(|| bytes.strip_prefix(b"\n"))
        .unwrap_or(bytes)
}

/// `method SP target SP "HTTP/1." DIGIT` and the end of the line.
fn request_line(bytes: &[u8]) -> Sniff {
    let Some(blank) = bytes.iter().position(|b| !is_token(*b)) else {
        return if bytes.len() > MAX_METHOD {
            Sniff::NotHttp
        } else {
            Sniff::More
        };
    };
    let (method, rest) = bytes.split_at(blank);
    if rest == b"\r" && method.is_empty() {
        return Sniff::More;
    }
    if method.is_empty() || method.len() > MAX_METHOD || rest[0] != b' ' {
        return Sniff::NotHttp;
    }
    let rest = &rest[1..];
    let Some(blank) = rest.iter().take(MAX_URI + 1).position(|b| !is_target(*b)) else {
        return match rest.len() > MAX_URI {
            true if METHODS.contains(&method) => Sniff::Http1,
            true => Sniff::NotHttp,
            false => Sniff::More,
        };
    };
    if blank == 0 || rest[blank] != b' ' {
        return Sniff::NotHttp;
    }
    version(&rest[blank + 1..])
}

fn version(bytes: &[u8]) -> Sniff {
    const NAME: &[u8] = b"HTTP/1.";
    let known = bytes.len().min(NAME.len());
    if bytes[..known] != NAME[..known] {
        return Sniff::NotHttp;
    }
    match bytes[known..] {
        [] => Sniff::More,
        [minor, ..] if !minor.is_ascii_digit() => Sniff::NotHttp,
        [_] | [_, b'\r'] => Sniff::More,
        [_, b'\n', ..] | [_, b'\r', b'\n', ..] => Sniff::Http1,
        _ => Sniff::NotHttp,
    }
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn is_target(byte: u8) -> bool {
    byte > b' ' && byte != 0x7f
}

/// What peeking found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Peeked {
    Http(HttpVersion),
    NotHttp,
    /// The deadline passed first.
    Undecided,
    /// The client closed its side, or broke off, before there was enough.
    Closed,
}

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What the client speaks, once it has begun: then it may take `patience` to show it.
pub(in crate::proxy) async fn sniff(client: &TcpStream, patience: Duration) -> Peeked {
    if client.ready(Interest::READABLE).await.is_err() {
        return Peeked::Closed;
    }
    peek_protocol(client, Instant::now() + patience, MAX_REQUEST_LINE).await
}

/// Looks at what the client sends, without taking it, until it is known what it is. At most `bound` bytes are looked at;
/// with so many and no answer it is not HTTP.
async fn peek_protocol(stream: &TcpStream, deadline: Instant, bound: usize) -> Peeked {
    match timeout_at(deadline, peek(stream, bound)).await {
        Ok(peeked) => peeked,
        Err(_) => Peeked::Undecided,
    }
}

async fn peek(stream: &TcpStream, bound: usize) -> Peeked {
    loop {
        let Ok(ready) = stream.ready(Interest::READABLE).await else {
            return Peeked::Closed;
        };
        let looked = SCRATCH.with_borrow_mut(|scratch| {
            scratch.resize(bound, 0);
            let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
            let (_, length) = recv(stream, &mut scratch[..], flags)?;
            Ok::<_, Errno>((length, classify(&scratch[..length])))
        });
        match looked {
            Ok((_, Sniff::Http1)) => return Peeked::Http(HttpVersion::Http1),
            Ok((_, Sniff::Http2)) => return Peeked::Http(HttpVersion::Http2),
            Ok((_, Sniff::NotHttp)) => return Peeked::NotHttp,
            Ok((0, Sniff::More)) => return Peeked::Closed,
            Ok((length, Sniff::More)) if length == bound => return Peeked::NotHttp,
            Ok((_, Sniff::More)) | Err(Errno::AGAIN) => {
                if ready.is_read_closed() {
                    return Peeked::Closed;
                }
                // What was peeked stays in the socket, and so must its readiness: whoever carries the bytes after this
                // waits for it. So it is not cleared to wait for more, but looked at again.
                sleep(LOOK_AGAIN).await;
            }
            Err(_) => return Peeked::Closed,
        }
    }
}

/// After a beginning that does not tell: rare, and bounded by the deadline.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

#[cfg(test)]
mod tests;
