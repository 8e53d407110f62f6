//! Servers.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::client::patient;
use crate::{netns::NetNs, runner};

/// What accept() and the accepted socket said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The address that accept() returned.
    pub peer: SocketAddr,
    /// getpeername() of the accepted socket.
    pub getpeername: SocketAddr,
    /// getsockname() of the accepted socket.
    pub local: SocketAddr,
}

/// A server inside a pod; stops listening on drop.
#[derive(Debug)]
pub struct Server {
    pub addr: SocketAddr,
    listener: TcpListener,
    seen: Arc<Mutex<Vec<Accepted>>>,
    count: Arc<AtomicU64>,
    acceptor: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on `addr` (port 0 for any) and runs `serve` on a thread of its own for each connection.
    pub fn start(
        ns: &NetNs,
        addr: SocketAddr,
        serve: impl Fn(TcpStream, Accepted) + Send + Sync + 'static,
    ) -> Server {
        Server::try_start(ns, addr, serve).unwrap_or_else(|e| panic!("listen on {addr}: {e}"))
    }

    pub fn try_start(
        ns: &NetNs,
        addr: SocketAddr,
        serve: impl Fn(TcpStream, Accepted) + Send + Sync + 'static,
    ) -> io::Result<Server> {
        let listener = listen(ns, addr, false)?;
        Server::run(listener, true, serve)
    }

    /// Serves every connection on the accepting thread: for many short ones.
    pub fn inline(
        ns: &NetNs,
        addr: SocketAddr,
        serve: impl Fn(TcpStream, Accepted) + Send + Sync + 'static,
    ) -> Server {
        let listener = listen(ns, addr, false).unwrap_or_else(|e| panic!("listen on {addr}: {e}"));
        Server::run(listener, false, serve).expect("serve")
    }

    /// Serves an existing listener.
    pub fn run(
        listener: TcpListener,
        threads: bool,
        serve: impl Fn(TcpStream, Accepted) + Send + Sync + 'static,
    ) -> io::Result<Server> {
        let addr = listener.local_addr()?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let count = Arc::new(AtomicU64::new(0));
        let acceptor = {
            let listener = listener.try_clone()?;
            let (seen, count) = (Arc::clone(&seen), Arc::clone(&count));
            let owner = runner::current();
            thread::Builder::new()
                .name(format!("server {addr}"))
                .spawn(move || {
                    runner::adopt(owner);
                    let serve = Arc::new(serve);
                    accept_all(&listener, threads, &seen, &count, &serve);
                })?
        };
        Ok(Server {
            addr,
            listener,
            seen,
            count,
            acceptor: Some(acceptor),
        })
    }

    /// Sends back what it gets; FIN answers FIN.
    pub fn echo(ns: &NetNs, addr: SocketAddr) -> Server {
        Server::start(ns, addr, |stream, _| echo(&stream))
    }

    /// Sends `banner` before it reads anything, then echoes.
    pub fn greeter(ns: &NetNs, addr: SocketAddr, banner: &str) -> Server {
        let banner = banner.to_owned();
        Server::start(ns, addr, move |mut stream, _| {
            let _ = stream.write_all(banner.as_bytes());
            echo(&stream);
        })
    }

    /// Answers FIN with `name` and what it read, then closes.
    pub fn named(ns: &NetNs, addr: SocketAddr, name: &str) -> Server {
        let name = name.to_owned();
        Server::start(ns, addr, move |mut stream, _| {
            let mut got = Vec::new();
            let _ = stream.read_to_end(&mut got);
            let _ = stream.write_all(name.as_bytes());
        })
    }

    pub fn port(&self) -> u16 {
        self.addr.port()
    }

    /// How many connections were accepted.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// The last thousand or so accepted connections.
    pub fn seen(&self) -> Vec<Accepted> {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub fn last_seen(&self) -> Accepted {
        *self.seen().last().expect("nothing was accepted")
    }

    /// Stops listening; connections live on.
    pub fn stop(mut self) {
        self.close();
    }

    fn close(&mut self) {
        // Wakes the accepting thread with EINVAL.
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.close();
    }
}

/// A listener inside `ns`, backlog 4096, with SO_REUSEADDR.
pub fn listen(ns: &NetNs, addr: SocketAddr, reuse_port: bool) -> io::Result<TcpListener> {
    let socket =
        ns.enter(|| Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP)))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    socket.bind(&addr.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

/// Sends back what it gets until the FIN.
pub fn echo(mut stream: &TcpStream) {
    let mut buffer = [0_u8; 16384];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => {
                let _ = stream.shutdown(Shutdown::Write);
                return;
            }
            Ok(n) => {
                if stream.write_all(&buffer[..n]).is_err() {
                    return;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

fn accept_all<F>(
    listener: &TcpListener,
    threads: bool,
    seen: &Mutex<Vec<Accepted>>,
    count: &AtomicU64,
    serve: &Arc<F>,
) where
    F: Fn(TcpStream, Accepted) + Send + Sync + 'static,
{
    let owner = runner::current();
    loop {
        let (stream, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => return,
            // ECONNABORTED and the like concern one connection.
            Err(_) => continue,
        };
        count.fetch_add(1, Ordering::Relaxed);
        // A client that is gone already has no name to get.
        let getpeername = stream.peer_addr().unwrap_or(peer);
        let Ok(local) = stream.local_addr() else {
            continue;
        };
        let accepted = Accepted {
            peer,
            getpeername,
            local,
        };
        {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            if seen.len() >= 2000 {
                seen.drain(..1000);
            }
            seen.push(accepted);
        }
        let _ = patient(&stream);
        if threads {
            let serve = Arc::clone(serve);
            let spawned = thread::Builder::new()
                .stack_size(128 * 1024)
                .spawn(move || {
                    runner::adopt(owner);
                    serve(stream, accepted);
                });
            spawned.expect("spawn a server thread");
        } else {
            serve(stream, accepted);
        }
    }
}
