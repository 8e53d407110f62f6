//! Clients.

use std::{
    io::{self, Write},
    net::{Shutdown, SocketAddr, TcpStream},
};

use socket2::{Domain, Protocol, Socket, Type};

use super::{End, PATIENCE, read_to_end};
use crate::netns::NetNs;

/// A plain connect from inside `ns`, with timeouts on every later call.
pub fn connect(ns: &NetNs, to: SocketAddr) -> io::Result<TcpStream> {
    let stream = ns.enter(|| TcpStream::connect_timeout(&to, PATIENCE))?;
    patient(&stream)?;
    Ok(stream)
}

/// A connect from a given local address.
pub fn connect_from(ns: &NetNs, from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = tcp(ns, to.is_ipv6())?;
    socket.set_reuse_address(true)?;
    socket.bind(&from.into())?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    let stream = TcpStream::from(socket);
    patient(&stream)?;
    Ok(stream)
}

/// A blocking TCP socket of the namespace.
pub fn tcp(ns: &NetNs, v6: bool) -> io::Result<Socket> {
    let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
    ns.enter(|| Socket::new(domain, Type::STREAM, Some(Protocol::TCP)))
}

/// Sets the timeouts that turn a hang into an error.
pub fn patient(stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))
}

/// Sends `message` and FIN, reads the answer to its end; the answer must end with FIN.
pub fn round_trip(stream: &TcpStream, message: &[u8]) -> io::Result<Vec<u8>> {
    let mut writer = stream;
    writer.write_all(message)?;
    stream.shutdown(Shutdown::Write)?;
    match read_to_end(stream) {
        (answer, End::Fin) => Ok(answer),
        (answer, end) => Err(io::Error::other(format!(
            "{end:?} after {} bytes of the answer",
            answer.len()
        ))),
    }
}

/// A blocking TCP socket, made by a thread that is inside a pod already ([`NetNs::enter`]).
pub fn tcp_here(v6: bool) -> io::Result<Socket> {
    let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
    Socket::new(domain, Type::STREAM, Some(Protocol::TCP))
}
