//! Socket options that rustix and socket2 do not have.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// `SO_NETNS_COOKIE` (kernel 5.14); the libc crate lacks it on some targets.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The cookie of the network namespace that a socket belongs to: unique until the next boot, never reused.
pub(in crate::capture) fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, the size of `cookie`.
    let r = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &raw mut len,
        )
    };
    if r == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds, as `bpf_ktime_get_ns` counts it.
pub(in crate::capture) fn monotonic_ns() -> u64 {
    let mut t = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `t` is written by the call, which cannot fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// `SO_COOKIE` of one of this process's descriptors, given by number; `None` if it is closed or no socket.
pub(in crate::capture) fn cookie_of_number(fd: i32) -> Option<u64> {
    if fd < 0 {
        return None;
    }
    // SAFETY: used for one getsockopt only, which fails harmlessly on a descriptor that was closed meanwhile or is no
    // socket; never closed by us.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    rustix::net::sockopt::socket_cookie(fd).ok()
}
