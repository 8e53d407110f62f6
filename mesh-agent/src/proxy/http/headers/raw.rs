//! Looks at the raw bytes of an HTTP/1 client for what hyper does not say.
//!
//! hyper reads a request that has both Content-Length and Transfer-Encoding by the latter and leaves the former out, and
//! takes LF for a line's end, both as RFC 9112 allows. Such requests are refused here, because what stands before the
//! agent may have read them the other way. For that the bytes of the requests are followed, framing included, in a few
//! words of state. Whatever it loses track of is refused as well.

use std::{
    io::BufRead,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::MAX_HEADER_BYTES;

/// Bytes of a line that are looked at: a name, and any length that is a number.
const LINE: usize = 64;

/// What is wrong with a connection's requests, from which one on. Shared by the reading side and the handler.
#[derive(Debug)]
pub(in crate::proxy) struct Doubts {
    /// Number of the first request that is refused, counted from 1, and in the lowest two bits why.
    first: AtomicU64,
    /// Requests that were asked about.
    asked: AtomicU64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doubt {
    TwoLengths = 0,
    BareLf = 1,
    Chunk = 2,
    Lost = 3,
}

/// What a chunked body is refused with.
pub(in crate::proxy) const BAD_CHUNK: &str = "a chunk of the body is not valid";

const NONE: u64 = u64::MAX;

impl Default for Doubts {
    fn default() -> Self {
        Self {
            first: AtomicU64::new(NONE),
            asked: AtomicU64::new(0),
        }
    }
}

impl Doubts {
    /// To be asked once for each request, in their order. `Err` says why it must be refused and the connection closed.
    pub(in crate::proxy) fn next(&self) -> Result<(), &'static str> {
        let number = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        let first = self.first.load(Ordering::Relaxed);
        if number < first >> 2 {
            return Ok(());
        }
        Err(match first & 3 {
            0 => "both Content-Length and Transfer-Encoding",
            1 => "a line of the head ends in LF alone",
            2 => BAD_CHUNK,
            _ => "a request follows on what was not one",
        })
    }

    fn raise(&self, number: u64, doubt: Doubt) {
        if self.first.load(Ordering::Relaxed) == NONE {
            let first = number << 2 | doubt as u64;
            self.first.store(first, Ordering::Relaxed);
        }
    }
}

/// What the next bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// A line of the head, after so many bytes of it.
    Head {
        bytes: usize,
    },
    /// So many bytes of a body.
    Body(u64),
    ChunkSize,
    /// So many bytes of a chunk and the CRLF behind it.
    Chunk(u64),
    Trailers {
        bytes: usize,
    },
    /// Not followed any more.
    Lost,
}

/// Follows what a client sends.
#[derive(Debug)]
pub(in crate::proxy) struct Heads {
    at: At,
    /// The request that is being read, counted from 1.
    number: u64,
    /// The beginning of a line whose end has not come yet.
    line: [u8; LINE],
    line_length: usize,
    /// Of the line's last byte, which may lie beyond `line`.
    ends_in_cr: bool,
    length: Option<u64>,
    chunked: bool,
    doubts: Arc<Doubts>,
}

impl Heads {
    pub(in crate::proxy) fn new(doubts: Arc<Doubts>) -> Self {
        Self {
            at: At::Head { bytes: 0 },
            number: 1,
            line: [0; LINE],
            line_length: 0,
            ends_in_cr: false,
            length: None,
            chunked: false,
            doubts,
        }
    }

    /// The next bytes that were read.
    pub(in crate::proxy) fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match self.at {
                At::Lost => return,
                At::Body(left) | At::Chunk(left) => {
                    let taken = left.min(bytes.len() as u64);
                    bytes = &bytes[taken as usize..];
                    self.at = match (self.at, left - taken) {
                        (At::Body(_), 0) => self.begin(),
                        (At::Body(_), left) => At::Body(left),
                        (_, 0) => At::ChunkSize,
                        (_, left) => At::Chunk(left),
                    };
                }
                At::Head { .. } | At::ChunkSize | At::Trailers { .. } => self.feed_line(&mut bytes),
            }
        }
    }

    /// The next request may begin.
    fn begin(&mut self) -> At {
        self.number += 1;
        self.length = None;
        self.chunked = false;
        At::Head { bytes: 0 }
    }

    fn lose(&mut self) {
        let doubt = match self.at {
            At::ChunkSize | At::Chunk(_) | At::Trailers { .. } => Doubt::Chunk,
            At::Head { .. } | At::Body(_) | At::Lost => Doubt::Lost,
        };
        self.at = At::Lost;
        self.doubts.raise(self.number, doubt);
    }

    fn feed_line(&mut self, bytes: &mut &[u8]) {
        let all = *bytes;
        // The search of the standard library is faster than a loop; reading from memory does not fail.
        let length = bytes.skip_until(b'\n').unwrap_or(all.len());
        let (part, ended) = match all[..length].split_last() {
            Some((b'\n', part)) => (part, true),
            _ => (&all[..length], false),
        };
        let room = LINE - self.line_length;
        let kept = part.len().min(room);
        self.line[self.line_length..self.line_length + kept].copy_from_slice(&part[..kept]);
        self.line_length += kept;
        if let Some(last) = part.last() {
            self.ends_in_cr = *last == b'\r';
        }
        if let At::Head { bytes } | At::Trailers { bytes } = &mut self.at {
            *bytes += length;
            // hyper has given up before.
            if *bytes > 2 * MAX_HEADER_BYTES {
                return self.lose();
            }
        }
        if ended {
            let length = self.line_length;
            let whole = std::mem::take(&mut self.ends_in_cr);
            self.line_length = 0;
            self.end_line(length, whole);
        }
    }

    /// `crlf`: it ended in CRLF.
    fn end_line(&mut self, length: usize, crlf: bool) {
        let line = self.line;
        let line = line[..length]
            .strip_suffix(b"\r")
            .unwrap_or(&line[..length]);
        match self.at {
            At::Head { bytes } => {
                if !crlf {
                    self.doubts.raise(self.number, Doubt::BareLf);
                }
                if !line.is_empty() {
                    self.field(line);
                } else if bytes > 2 {
                    self.end_head();
                } else {
                    // An empty line before the request line.
                    self.at = At::Head { bytes: 0 };
                }
            }
            At::ChunkSize => match chunk_size(line).filter(|_| crlf) {
                Some(0) => self.at = At::Trailers { bytes: 0 },
                Some(size) => self.at = At::Chunk(size.saturating_add(2)),
                None => self.lose(),
            },
            At::Trailers { .. } => {
                if line.is_empty() {
                    self.at = self.begin();
                }
            }
            At::Body(_) | At::Chunk(_) | At::Lost => {}
        }
    }

    fn field(&mut self, line: &[u8]) {
        // Two letters out of the many names.
        if !matches!(line[0], b'c' | b'C' | b't' | b'T') {
            return;
        }
        let Some(colon) = line.iter().position(|b| *b == b':') else {
            return;
        };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            // What is no number, hyper refuses.
            let value = str::from_utf8(value).ok().and_then(|v| v.parse().ok());
            match value {
                Some(length) => self.length = Some(length),
                None => self.lose(),
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.chunked = true;
        }
    }

    fn end_head(&mut self) {
        if self.chunked && self.length.is_some() {
            self.doubts.raise(self.number, Doubt::TwoLengths);
        }
        self.at = match self.length {
            _ if self.chunked => At::ChunkSize,
            Some(length) if length > 0 => At::Body(length),
            _ => self.begin(),
        };
    }
}

/// The number before any extension, however long: hyper bounds those. A CR within the line is no end of it to some and one
/// to others (RFC 9112, 2.2).
fn chunk_size(line: &[u8]) -> Option<u64> {
    if line.contains(&b'\r') {
        return None;
    }
    let digits = line.split(|b| *b == b';').next()?.trim_ascii_end();
    if digits.is_empty() || digits.len() > 16 {
        return None;
    }
    digits.iter().try_fold(0u64, |size, digit| {
        let digit = char::from(*digit).to_digit(16)?;
        Some(size << 4 | u64::from(digit))
    })
}
