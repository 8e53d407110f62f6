//! Accept loops: one for each listener of a workload.

use std::{
    fs::File,
    io,
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mesh_common::{Direction, Role};
use rustix::{
    io::Errno,
    net::{SocketFlags, acceptfrom_with, getsockname},
};
use tokio::{io::unix::AsyncFd, net::TcpStream};

use super::{
    Shared, inbound, outbound,
    served::{Report, Served},
    socket::{Leg, canonical, reset_on_close},
    tunnel,
};
use crate::{
    capture::sys::readable,
    model::ResourceName,
    telemetry::{ConnMeta, Peer, Protocol, Reason},
};

/// Connections taken in one go before others run.
const BATCH: usize = 32;
/// Pause when accept() fails for want of something that a retry will not bring.
const PAUSE: Duration = Duration::from_millis(50);

/// An accepted connection, not yet registered with a runtime.
pub(super) struct Accepted {
    pub(super) socket: OwnedFd,
    /// Who dialled.
    pub(super) peer: SocketAddr,
}

impl Accepted {
    /// Registers it with the runtime of the caller.
    pub(super) fn into_leg(self) -> io::Result<Leg> {
        Ok(Leg::new(TcpStream::from_std(self.socket.into())?))
    }
}

/// A descriptor kept back, so that a connection can be accepted and refused when there are none left. Without it
/// accept() would fail for ever with the connection still queued, and the loop would spin or the client would hang.
pub(super) struct Reserve(Mutex<Option<OwnedFd>>);

impl Reserve {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(Mutex::new(Some(Self::open()?))))
    }

    fn open() -> io::Result<OwnedFd> {
        Ok(File::open("/dev/null")?.into())
    }

    /// Accepts one connection in the place of the reserve, hands it to `refuse`, which closes it, and takes the place
    /// again. False: nothing was accepted, somebody was faster or the reserve is not there yet.
    fn refuse_one(&self, listener: &TcpListener, refuse: impl FnOnce(&Accepted)) -> bool {
        let mut reserve = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if reserve.is_none() {
            *reserve = Self::open().ok();
        }
        if reserve.take().is_none() {
            return false;
        }
        let accepted = accept(listener);
        let refused = accepted.is_ok();
        if let Ok(accepted) = accepted {
            refuse(&accepted);
        }
        *reserve = Self::open().ok();
        refused
    }
}

/// Starts the accept loop of one listener.
pub(super) fn start(
    shared: &Arc<Shared>,
    served: &Arc<Served>,
    role: Role,
    listener: TcpListener,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    // Accepted sockets inherit these, which saves five system calls per connection.
    shared.options.keepalive.apply(&listener)?;
    let accepting = Accepting {
        shared: Arc::clone(shared),
        served: Arc::clone(served),
        role,
    };
    let task = shared.workers.spawn(async move {
        // Registered here, since it belongs to the runtime that waits for it.
        let name = accepting.served.pod.name().clone();
        let result = match readable(listener) {
            Ok(listener) => accepting.run(&listener).await,
            Err(e) => Err(e),
        };
        if let Err(error) = result {
            tracing::error!(workload = %name, ?role, %error, "the accept loop ended");
        }
    });
    served.add_accept_loop(task);
    Ok(())
}

struct Accepting {
    shared: Arc<Shared>,
    served: Arc<Served>,
    role: Role,
}

impl Accepting {
    /// Ends only with an error.
    async fn run(&self, listener: &AsyncFd<TcpListener>) -> io::Result<()> {
        loop {
            let mut ready = listener.readable().await?;
            let mut pause = false;
            for _ in 0..BATCH {
                let Ok(accepted) = ready.try_io(|l| accept(l.get_ref())) else {
                    break;
                };
                self.served.note_accept();
                match accepted {
                    Ok(accepted) => self.serve(accepted),
                    Err(e) if out_of_descriptors(&e) => {
                        pause = !self
                            .shared
                            .reserve
                            .refuse_one(listener.get_ref(), |accepted| {
                                self.refuse(accepted, Reason::NoDescriptors);
                            });
                    }
                    Err(e) if is_fatal(&e) => return Err(e),
                    // ECONNABORTED and errors of the connection itself, which accept() passes on: the next one.
                    // ENOBUFS, ENOMEM: later.
                    Err(e) => {
                        pause =
                            matches!(Errno::from_io_error(&e), Some(Errno::NOBUFS | Errno::NOMEM));
                    }
                }
                if pause {
                    break;
                }
            }
            if pause {
                tokio::time::sleep(PAUSE).await;
            } else {
                tokio::task::yield_now().await;
            }
        }
    }

    fn serve(&self, accepted: Accepted) {
        // Not steered: a process of the pod dialled the listener where it is bound.
        if self.role == Role::Tunnel
            && self
                .served
                .pod
                .application(local_address(&accepted.socket))
                .is_none()
        {
            return self.refuse(&accepted, Reason::AgentPort);
        }
        if !self.shared.limits.admit(&self.served.share) {
            return self.refuse(&accepted, Reason::AgentLimit);
        }
        let (shared, served) = (Arc::clone(&self.shared), Arc::clone(&self.served));
        match self.role {
            Role::Outbound => {
                self.served
                    .spawn(&self.shared, |_| outbound::serve(shared, served, accepted));
            }
            Role::Inbound => {
                self.served.spawn(&self.shared, |id| {
                    inbound::serve(shared, served, accepted, id)
                });
            }
            Role::Tunnel => {
                self.served
                    .spawn(&self.shared, |_| tunnel::serve(shared, served, accepted));
            }
        }
    }

    fn direction(&self) -> Direction {
        match self.role {
            Role::Outbound => Direction::Outbound,
            Role::Inbound | Role::Tunnel => Direction::Inbound,
        }
    }

    /// Resets the connection, and reports it.
    fn refuse(&self, accepted: &Accepted, reason: Reason) {
        reset_on_close(&accepted.socket);
        let (destination, app_cookie) = match self.direction() {
            Direction::Outbound => match self.served.pod.original_dst(accepted.socket.as_fd()) {
                Ok(Some(found)) => found,
                _ => (local_address(&accepted.socket), 0),
            },
            Direction::Inbound => (local_address(&accepted.socket), 0),
        };
        if self.served.pod.is_self_test(accepted.peer, destination) {
            return;
        }
        let meta = meta(
            &self.shared,
            &self.served,
            self.direction(),
            accepted.peer,
            destination,
            None,
            app_cookie,
        );
        Report::new(self.shared.telemetry.open(meta), Arc::clone(&self.served)).finish(reason);
    }
}

/// What telemetry is told when a connection begins.
///
/// `service`: that was dialled. `None`: not known; for the destination it is then the first that stands in front.
pub(super) fn meta(
    shared: &Shared,
    served: &Served,
    direction: Direction,
    client: SocketAddr,
    original_dst: SocketAddr,
    service: Option<ResourceName>,
    app_cookie: u64,
) -> ConnMeta {
    let (source, service) = match direction {
        // Who dialled is known by the listener, never by the packet.
        Direction::Outbound => (Some(served.pod.name().clone()), service),
        Direction::Inbound => {
            let catalog = shared.catalog.load();
            let source = catalog.workload_by_address(client.ip());
            let front = || catalog.inbound(original_dst)?.reported(None).cloned();
            (source.map(|w| w.name.clone()), service.or_else(front))
        }
    };
    ConnMeta {
        direction,
        workload: served.pod.name().clone(),
        source: Peer {
            addr: client,
            workload: source,
        },
        original_dst,
        service,
        protocol: Protocol::Tcp,
        app_cookie,
        agent_cookie: 0,
    }
}

/// Local address of a socket; the unspecified one if it is gone already.
pub(super) fn local_address(socket: impl AsFd) -> SocketAddr {
    getsockname(socket.as_fd())
        .ok()
        .and_then(|a| SocketAddr::try_from(a).ok())
        .map_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)), canonical)
}

fn accept(listener: &TcpListener) -> io::Result<Accepted> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (socket, peer) = acceptfrom_with(listener, flags)?;
    let peer = peer.and_then(|a| SocketAddr::try_from(a).ok());
    Ok(Accepted {
        socket,
        peer: peer.map_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)), canonical),
    })
}

fn out_of_descriptors(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE)
    )
}

/// Errors of the listener itself.
fn is_fatal(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::BADF | Errno::INVAL | Errno::NOTSOCK | Errno::OPNOTSUPP | Errno::FAULT)
    )
}
