//! The server: one thread with epoll. Ports of `echo=` send back what they get, of `sink=` read and forget, of
//! `greet=` send their own number. What the sinks read is counted in the file `received=`.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, BorrowedFd},
};

use anyhow::{Context, Result};
use rustix::event::epoll::{self, EventData, EventFlags};
use serde_json::json;
use socket2::{Domain, Socket, Type};

use crate::{options::Options, received::Counter};

#[derive(Clone, Copy)]
enum Role {
    Echo,
    Sink,
    Greet(u16),
}

/// What a port does, by its number.
type RoleOf = fn(u16) -> Role;

struct Server {
    poll: rustix::fd::OwnedFd,
    listeners: Vec<(TcpListener, Role)>,
    /// By token less the number of listeners.
    connections: Vec<Option<(TcpStream, Role)>>,
    free: Vec<usize>,
    buffer: Vec<u8>,
    received: Counter,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let ip: IpAddr = options.required("ip")?;
    let roles: [(&str, RoleOf); 3] = [
        ("echo", |_| Role::Echo),
        ("sink", |_| Role::Sink),
        ("greet", Role::Greet),
    ];
    let mut listeners = Vec::new();
    for (key, role) in roles {
        for port in options.list(key)? {
            let port = port as u16;
            let listener = listen(SocketAddr::new(ip, port))
                .with_context(|| format!("could not listen on {ip}:{port}"))?;
            listeners.push((listener, role(port)));
        }
    }
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (token, (listener, _)) in (0..).zip(&listeners) {
        watch(&poll, listener.as_fd(), token)?;
    }
    println!("{}", json!({ "listening": listeners.len() }));
    let mut server = Server {
        poll,
        listeners,
        connections: Vec::new(),
        free: Vec::new(),
        buffer: vec![0; 256 << 10],
        received: Counter::create(options)?,
    };
    let mut events = Vec::with_capacity(256);
    loop {
        match epoll::wait(
            &server.poll,
            rustix::buffer::spare_capacity(&mut events),
            None,
        ) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        for event in events.drain(..) {
            let token = event.data.u64() as usize;
            match token.checked_sub(server.listeners.len()) {
                None => server.accept(token)?,
                Some(slot) => server.serve(slot),
            }
        }
    }
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn watch(poll: &rustix::fd::OwnedFd, fd: BorrowedFd<'_>, token: u64) -> std::io::Result<()> {
    epoll::add(poll, fd, EventData::new_u64(token), EventFlags::IN)?;
    Ok(())
}

impl Server {
    fn accept(&mut self, listener: usize) -> Result<()> {
        let Some((listener, role)) = self.listeners.get(listener) else {
            return Ok(());
        };
        loop {
            let mut stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error.into()),
            };
            if let Role::Greet(port) = role {
                // Its end is the client's to await.
                let _ = stream.write_all(&port.to_be_bytes());
                continue;
            }
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let slot = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            watch(
                &self.poll,
                stream.as_fd(),
                (self.listeners.len() + slot) as u64,
            )?;
            if let Some(place) = self.connections.get_mut(slot) {
                *place = Some((stream, *role));
            }
        }
    }

    /// Reads once: what is left makes epoll report it again.
    fn serve(&mut self, slot: usize) {
        let Some(Some((stream, role))) = self.connections.get_mut(slot) else {
            return;
        };
        let ended = match (stream.read(&mut self.buffer), role) {
            (Ok(0), _) => true,
            (Ok(n), Role::Echo) => {
                // Messages are small: they fit into the send buffer.
                let echoed = self.buffer.get(..n).map(|bytes| stream.write_all(bytes));
                !matches!(echoed, Some(Ok(())))
            }
            (Ok(n), _) => {
                self.received.add(n as u64);
                false
            }
            (Err(error), _) => error.kind() != ErrorKind::WouldBlock,
        };
        if ended && let Some(place) = self.connections.get_mut(slot) {
            // Dropped, it leaves the epoll set.
            *place = None;
            self.free.push(slot);
        }
    }
}
