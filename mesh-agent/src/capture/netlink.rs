//! The little netlink that capture needs: a socket, a request, a dump; attributes of a message.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind,
    netlink::SocketAddrNetlink, recv, send, socket_with,
};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const HEADER: usize = 16;

/// A netlink socket of the network namespace in which it was opened. It keeps that namespace alive.
pub(super) struct Netlink {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens one in the calling thread's network namespace. `None` is NETLINK_ROUTE, which is protocol 0.
    pub(super) fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let fd = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        bind(&fd, &SocketAddrNetlink::new(0, 0))?;
        Ok(Self {
            fd,
            buffer: vec![0; 64 * 1024],
        })
    }

    /// Opens a nonblocking socket that hears NETLINK_ROUTE notices of `groups` (the old bit mask).
    pub(super) fn subscribe(groups: u32) -> io::Result<OwnedFd> {
        let fd = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        bind(&fd, &SocketAddrNetlink::new(0, groups))?;
        Ok(fd)
    }

    /// Sends a dump request and hands the body of each answer to `each`.
    pub(super) fn dump(
        &mut self,
        kind: u16,
        body: &[u8],
        mut each: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        self.send(kind, NLM_F_REQUEST | NLM_F_DUMP, body)?;
        loop {
            let n = self.receive()?;
            let mut rest = self.buffer.get(..n).unwrap_or_default();
            while let Some((kind, body, next)) = split(rest) {
                match kind {
                    NLMSG_DONE => return done(body),
                    NLMSG_ERROR => return error(body),
                    _ => each(body),
                }
                rest = next;
            }
        }
    }

    /// Sends one request and returns the body of its answer; `None` when the kernel knows no such thing (ENOENT).
    pub(super) fn get(&mut self, kind: u16, body: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.send(kind, NLM_F_REQUEST, body)?;
        let n = self.receive()?;
        let Some((kind, body, _)) = split(self.buffer.get(..n).unwrap_or_default()) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        if kind != NLMSG_ERROR {
            return Ok(Some(body.to_vec()));
        }
        match error(body) {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(e) => Err(e),
            Ok(()) => Ok(None),
        }
    }

    /// Sends one request that is answered by success or an error alone.
    pub(super) fn act(&mut self, kind: u16, body: &[u8]) -> io::Result<()> {
        self.send(kind, NLM_F_REQUEST | NLM_F_ACK, body)?;
        let n = self.receive()?;
        match split(self.buffer.get(..n).unwrap_or_default()) {
            Some((NLMSG_ERROR, body, _)) => error(body),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn send(&self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend(((HEADER + body.len()) as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend(1u32.to_ne_bytes());
        message.extend(0u32.to_ne_bytes());
        message.extend(body);
        send(&self.fd, &message, SendFlags::empty())?;
        Ok(())
    }

    fn receive(&mut self) -> io::Result<usize> {
        loop {
            match recv(&self.fd, self.buffer.as_mut_slice(), RecvFlags::TRUNC) {
                Ok((n, whole)) if whole > n => {
                    return Err(io::Error::other("a netlink answer did not fit"));
                }
                Ok((n, _)) => return Ok(n),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Splits the first message off: its kind, its body, what follows.
pub(super) fn split(buffer: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let len = u32_at(buffer, 0)? as usize;
    let kind = u16_at(buffer, 4)?;
    let body = buffer.get(HEADER..len)?;
    let next = buffer.get(len.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, body, next))
}

fn error(body: &[u8]) -> io::Result<()> {
    match u32_at(body, 0).unwrap_or(0) as i32 {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(-code)),
    }
}

/// The end of a dump carries its error, if any.
fn done(body: &[u8]) -> io::Result<()> {
    match u32_at(body, 0).unwrap_or(0) as i32 {
        code if code < 0 => Err(io::Error::from_raw_os_error(-code)),
        _ => Ok(()),
    }
}

/// The attributes in `buffer`: type and payload.
pub(super) fn attributes(mut buffer: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = u16_at(buffer, 0)? as usize;
        let kind = u16_at(buffer, 2)? & 0x3fff;
        let payload = buffer.get(4..len)?;
        buffer = buffer.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

/// Native-order integers out of a message; `None` past its end.
pub(super) fn u16_at(buffer: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(buffer.get(at..at + 2)?.try_into().ok()?))
}

pub(super) fn u32_at(buffer: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(buffer.get(at..at + 4)?.try_into().ok()?))
}

pub(super) fn u64_at(buffer: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(buffer.get(at..at + 8)?.try_into().ok()?))
}
