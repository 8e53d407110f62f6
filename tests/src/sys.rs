//! Socket options that neither std nor socket2 has.
#![allow(unsafe_code)]

use std::{
    io, mem,
    os::fd::{AsFd, AsRawFd},
};

/// Protocol number of MPTCP.
pub const IPPROTO_MPTCP: i32 = 262;
/// Sends the SYN with the first write (tcp(7)).
pub const TCP_FASTOPEN_CONNECT: i32 = 30;
const SO_NETNS_COOKIE: i32 = 71;

/// setsockopt(2) with an int.
pub fn set_int(sock: impl AsFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    let fd = sock.as_fd().as_raw_fd();
    // SAFETY: the descriptor is borrowed for the call, the pointer and the length describe `value`.
    let rc = unsafe {
        libc::setsockopt(
            fd,
            level,
            name,
            (&raw const value).cast(),
            mem::size_of::<i32>() as libc::socklen_t,
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// getsockopt(2) into a plain value; gives the value and how many bytes the kernel wrote.
fn get<T: Copy>(sock: impl AsFd, level: i32, name: i32, mut value: T) -> io::Result<T> {
    let fd = sock.as_fd().as_raw_fd();
    let mut len = mem::size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes into `value`; every T used here is plain integers.
    let rc = unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast(), &raw mut len) };
    if rc == 0 {
        Ok(value)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Cookie of the network namespace that a socket belongs to.
pub fn netns_cookie(sock: impl AsFd) -> io::Result<u64> {
    get(sock, libc::SOL_SOCKET, SO_NETNS_COOKIE, 0_u64)
}

/// Cookie of a socket.
pub fn socket_cookie(sock: impl AsFd) -> io::Result<u64> {
    get(sock, libc::SOL_SOCKET, libc::SO_COOKIE, 0_u64)
}

/// State of a TCP socket (TCP_ESTABLISHED = 1 ...): the first byte of `struct tcp_info`.
pub fn tcp_state(sock: impl AsFd) -> io::Result<u8> {
    get(sock, libc::IPPROTO_TCP, libc::TCP_INFO, [0_u8; 8]).map(|info| info[0])
}

/// connect(AF_UNSPEC): dissolves the association of a socket, which may then dial elsewhere.
pub fn disconnect(sock: impl AsFd) -> io::Result<()> {
    let addr = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as libc::sa_family_t,
        sa_data: [0; 14],
    };
    let len = mem::size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: the descriptor is borrowed for the call, the pointer and the length describe `addr`.
    let rc = unsafe { libc::connect(sock.as_fd().as_raw_fd(), &raw const addr, len) };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// How many packets an AF_PACKET socket lost since this was last asked (packet(7), PACKET_STATISTICS).
pub fn packet_drops(sock: impl AsFd) -> io::Result<u32> {
    const PACKET_STATISTICS: i32 = 6;
    get(sock, libc::SOL_PACKET, PACKET_STATISTICS, [0_u32; 2]).map(|[_, drops]| drops)
}
