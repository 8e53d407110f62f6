//! Socket options of TCP that no safe wrapper offers.

use std::{
    io, mem,
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};

/// <asm-generic/sockios.h>; libc has no constant.
const SIOCATMARK: libc::c_ulong = 0x8905;

/// What the kernel knows of a connection, as far as the proxy asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TcpInfo {
    /// Segments sent and not yet acknowledged.
    pub(crate) unacked: u32,
    /// Bytes in the send queue that were not sent yet (the peer's window is shut, or congestion).
    pub(crate) unsent: u32,
    /// Window probes that nobody answered yet.
    pub(crate) probes: u8,
    /// Since the last acknowledgement of any kind.
    pub(crate) last_ack: Duration,
    /// Smoothed round-trip time.
    pub(crate) rtt: Duration,
    /// Segments sent again since the connection began.
    pub(crate) retransmits: u32,
}

/// Reads `TCP_INFO`. What an older kernel does not know is 0.
pub(crate) fn tcp_info(socket: impl AsFd) -> io::Result<TcpInfo> {
    // SAFETY: every field is an integer, for which zero is a value.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut len = mem::size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the pointer and length describe `info`, which lives through the call; the kernel writes at most `len`.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut len,
        )
    };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(TcpInfo {
        unacked: info.tcpi_unacked,
        unsent: info.tcpi_notsent_bytes,
        probes: info.tcpi_probes,
        last_ack: Duration::from_millis(info.tcpi_last_ack_recv.into()),
        rtt: Duration::from_micros(info.tcpi_rtt.into()),
        retransmits: info.tcpi_total_retrans,
    })
}

/// True if the next byte of the stream is urgent data (`sockatmark`). A read ends before it although more may be queued,
/// and splice(2) never gets past it.
pub(crate) fn at_urgent_mark(socket: impl AsFd) -> bool {
    let mut at: libc::c_int = 0;
    // SAFETY: SIOCATMARK writes one int, and `at` is one that lives through the call.
    let rc = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCATMARK, &raw mut at) };
    rc == 0 && at != 0
}

/// `IP_BIND_ADDRESS_NO_PORT`: bind() to an address chooses no port yet, connect() does, by the whole tuple. Serves IPv6
/// sockets as well.
pub(crate) fn bind_address_no_port(socket: impl AsFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the pointer and length describe `on`, which lives through the call.
    let rc = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            mem::size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
