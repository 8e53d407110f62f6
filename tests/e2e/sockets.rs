//! The less usual ways to open a connection, each as it works without a mesh.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_tests::{
    Bed, prereq,
    runner::Shared,
    sys, tests,
    traffic::{self, Server, client, server},
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::common::{OUTBOUND, echoes, is_captured, must_echo};

static BED: Shared<Bed> = Shared::new();

tests! {
    non_blocking_connect,
    non_blocking_refusal,
    fastopen_connect,
    bind_to_device,
    server_bound_to_device,
    bind_before_connect,
    secondary_source_address,
    secondary_server_address,
    address_added_after_enrolment,
    one_local_port_to_two_destinations,
    disconnect_and_dial_again,
    mptcp_client,
    mptcp_server,
    urgent_and_options_survive,
}

pub(crate) fn teardown() {
    BED.clear();
}

fn bed() -> Arc<Bed> {
    BED.get(|| {
        let mut bed = Bed::plan()
            .pods(&["client", "web1"])
            .outsider("ext")
            .outsider("far")
            .prepare();
        for pod in ["client", "web1"] {
            for v6 in [false, true] {
                bed.pod(pod).add_secondary(v6);
            }
        }
        bed.start_agent();
        bed
    })
}

fn stream_of(socket: Socket) -> TcpStream {
    socket.set_nonblocking(false).unwrap();
    let stream = TcpStream::from(socket);
    client::patient(&stream).unwrap();
    stream
}

/// Waits for writability or an error, as an event loop does.
fn wait_writable(socket: impl AsFd, within: Duration) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(&socket, PollFlags::OUT)];
    let timeout = Timespec {
        tv_sec: within.as_secs() as i64,
        tv_nsec: 0,
    };
    assert_eq!(
        poll(&mut fds, Some(&timeout)).unwrap(),
        1,
        "not writable within {within:?}"
    );
}

fn non_blocking_connect() {
    let bed = bed();
    let (pod, ext) = (bed.pod("client"), bed.pod("ext"));
    for v6 in [false, true] {
        let server = Server::echo(ext, ext.addr(v6, 0));
        let socket = client::tcp(pod, v6).unwrap();
        socket.set_nonblocking(true).unwrap();
        match socket.connect(&server.addr.into()) {
            Ok(()) => {}
            Err(e) => assert_eq!(e.raw_os_error(), Some(libc_einprogress()), "{e}"),
        }
        wait_writable(&socket, Duration::from_secs(5));
        assert!(socket.take_error().unwrap().is_none());
        assert_eq!(socket.peer_addr().unwrap().as_socket(), Some(server.addr));
        let stream = stream_of(socket);
        is_captured(&bed, &stream, OUTBOUND);
        echoes(&stream);
    }
}

fn libc_einprogress() -> i32 {
    rustix::io::Errno::INPROGRESS.raw_os_error()
}

/// An event loop that dials a closed port gets an error event in time: at connect without a mesh, as a reset with one.
fn non_blocking_refusal() {
    let bed = bed();
    let (pod, ext) = (bed.pod("client"), bed.pod("ext"));
    let socket = client::tcp(pod, false).unwrap();
    socket.set_nonblocking(true).unwrap();
    let began = Instant::now();
    let _ = socket.connect(&ext.v4(1).into());
    wait_writable(&socket, Duration::from_secs(5));
    let error = match socket.take_error().unwrap() {
        Some(e) => e,
        None => {
            let stream = stream_of(socket);
            (&stream).read(&mut [0_u8; 1]).expect_err("no data, no FIN")
        }
    };
    assert!(
        matches!(
            error.kind(),
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset
        ),
        "{error}"
    );
    assert!(began.elapsed() < Duration::from_secs(5));
}

fn fastopen_connect() {
    let bed = bed();
    let (pod, ext) = (bed.pod("client"), bed.pod("ext"));
    for v6 in [false, true] {
        let server = Server::echo(ext, ext.addr(v6, 0));
        // Twice: the second may have a cookie and then carries data in its SYN.
        for _ in 0..2 {
            let socket = client::tcp(pod, v6).unwrap();
            sys::set_int(&socket, 6, sys::TCP_FASTOPEN_CONNECT, 1).unwrap();
            socket.connect(&server.addr.into()).unwrap();
            let stream = stream_of(socket);
            echoes(&stream);
        }
    }
}

fn bind_to_device() {
    let bed = bed();
    let (pod, ext) = (bed.pod("client"), bed.pod("ext"));
    for v6 in [false, true] {
        let server = Server::echo(ext, ext.addr(v6, 0));
        let socket = client::tcp(pod, v6).unwrap();
        socket.bind_device(Some(b"eth0")).unwrap();
        socket.connect(&server.addr.into()).unwrap();
        let stream = stream_of(socket);
        is_captured(&bed, &stream, OUTBOUND);
        echoes(&stream);
    }
}

fn server_bound_to_device() {
    let bed = bed();
    let (pod, ext) = (bed.pod("web1"), bed.pod("ext"));
    let socket = pod
        .enter(|| Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)))
        .unwrap();
    socket.bind_device(Some(b"eth0")).unwrap();
    socket.bind(&pod.v4(0).into()).unwrap();
    socket.listen(16).unwrap();
    let server = Server::run(socket.into(), true, |s, _| server::echo(&s)).unwrap();
    must_echo(ext, server.addr);
}

fn bind_before_connect() {
    let bed = bed();
    let (pod, ext) = (bed.pod("client"), bed.pod("ext"));
    for v6 in [false, true] {
        let server = Server::echo(ext, ext.addr(v6, 0));
        let from = pod.addr(v6, if v6 { 22001 } else { 22000 });
        let stream = traffic::connect_from(pod, from, server.addr).unwrap();
        assert_eq!(stream.local_addr().unwrap(), from);
        assert_eq!(stream.peer_addr().unwrap(), server.addr);
        is_captured(&bed, &stream, OUTBOUND);
        echoes(&stream);
    }
}

fn secondary_source_address() {
    let bed = bed();
    let (pod, ext) = (bed.pod("client"), bed.pod("ext"));
    for v6 in [false, true] {
        let server = Server::echo(ext, ext.addr(v6, 0));
        let from = SocketAddr::new(pod.secondary(v6), 0);
        let stream = traffic::connect_from(pod, from, server.addr).unwrap();
        assert_eq!(stream.local_addr().unwrap().ip(), from.ip());
        assert_eq!(stream.peer_addr().unwrap(), server.addr);
        is_captured(&bed, &stream, OUTBOUND);
        echoes(&stream);
        assert_eq!(
            server.last_seen().peer.ip(),
            from.ip(),
            "the source the application chose"
        );
    }
}

fn secondary_server_address() {
    let bed = bed();
    let (ext, web) = (bed.pod("ext"), bed.pod("web1"));
    for v6 in [false, true] {
        let addr = SocketAddr::new(web.secondary(v6), 0);
        let server = Server::echo(web, addr);
        must_echo(ext, server.addr);
        assert_eq!(server.last_seen().local, server.addr);
        assert_eq!(server.last_seen().peer.ip(), ext.addr(v6, 0).ip());
        // The listener is on one address; the pod's other address stays closed.
        crate::common::must_be_refused(ext, web.addr(v6, server.port()));
    }
}

/// An address that the pod gets later is as captured as the first one.
fn address_added_after_enrolment() {
    let bed = Bed::plan().pods(&["web1"]).outsider("ext").start();
    let (ext, web) = (bed.pod("ext"), bed.pod("web1"));
    let ip = web.add_secondary(false);
    let server = Server::echo(web, SocketAddr::new(ip, 0));
    must_echo(ext, server.addr);
    if bed.has_mesh() {
        mesh_tests::eventually(
            "inbound capture of the new address",
            Duration::from_secs(5),
            || {
                let stream = traffic::connect(ext, server.addr).unwrap();
                crate::common::ping(&stream).unwrap();
                crate::common::records(&bed)
                    .iter()
                    .any(|r| r.local == server.addr && r.path == crate::common::PROXIED)
            },
        );
    }
}

fn one_local_port_to_two_destinations() {
    let bed = bed();
    let pod = bed.pod("client");
    let servers = [
        Server::named(bed.pod("ext"), bed.pod("ext").v4(0), "ext"),
        Server::named(bed.pod("far"), bed.pod("far").v4(0), "far"),
    ];
    let from = pod.v4(22002);
    let streams: Vec<_> = servers
        .iter()
        .map(|s| traffic::connect_from(pod, from, s.addr).unwrap())
        .collect();
    for (stream, name) in streams.iter().zip(["ext", "far"]) {
        assert_eq!(stream.local_addr().unwrap(), from);
        assert_eq!(traffic::round_trip(stream, b"?").unwrap(), name.as_bytes());
    }
}

/// connect(AF_UNSPEC) and then elsewhere: what was noted for the first destination must not leak into the second.
fn disconnect_and_dial_again() {
    let bed = bed();
    let pod = bed.pod("client");
    let (ext, far) = (bed.pod("ext"), bed.pod("far"));
    let first = Server::named(ext, ext.v4(0), "ext");
    let second = Server::named(far, far.v4(0), "far");
    let socket = client::tcp(pod, false).unwrap();
    socket.connect(&first.addr.into()).unwrap();
    assert_eq!(socket.peer_addr().unwrap().as_socket(), Some(first.addr));
    sys::disconnect(&socket).unwrap();
    socket.connect(&second.addr.into()).unwrap();
    let stream = stream_of(socket);
    assert_eq!(stream.peer_addr().unwrap(), second.addr);
    assert_eq!(traffic::round_trip(&stream, b"?").unwrap(), b"far");
    // A failed connect leaves nothing behind either.
    let local = Server::named(pod, (std::net::Ipv4Addr::LOCALHOST, 0).into(), "local");
    let socket = client::tcp(pod, false).unwrap();
    let _ = socket.connect_timeout(&ext.v4(1).into(), Duration::from_secs(5));
    let _ = sys::disconnect(&socket);
    let _ = socket.set_nonblocking(false);
    socket.connect(&local.addr.into()).unwrap();
    let stream = stream_of(socket);
    assert_eq!(stream.peer_addr().unwrap(), local.addr);
    assert_eq!(traffic::round_trip(&stream, b"?").unwrap(), b"local");
}

fn mptcp(bed: &Bed, pod: &str) -> Socket {
    let made = bed.pod(pod).enter(|| {
        Socket::new(
            Domain::IPV4,
            Type::STREAM,
            Some(Protocol::from(sys::IPPROTO_MPTCP)),
        )
    });
    made.unwrap_or_else(|e| prereq::missing(&format!("MPTCP in the kernel ({e})")))
}

fn mptcp_client() {
    let bed = bed();
    let ext = bed.pod("ext");
    let server = Server::echo(ext, ext.v4(0));
    let socket = mptcp(&bed, "client");
    socket.connect(&server.addr.into()).unwrap();
    // What getpeername() says is another matter with a mesh: the kernel asks for the MPTCP socket, the destination is
    // stored with its subflow (docs/adr/0002).
    echoes(&stream_of(socket));
    assert_eq!(server.last_seen().peer.ip(), bed.pod("client").v4);
}

fn mptcp_server() {
    let bed = bed();
    let (ext, web) = (bed.pod("ext"), bed.pod("web1"));
    let socket = mptcp(&bed, "web1");
    socket.bind(&SockAddr::from(web.v4(0))).unwrap();
    socket.listen(16).unwrap();
    let server = Server::run(TcpListener::from(socket), true, |s, _| server::echo(&s)).unwrap();
    must_echo(ext, server.addr);
    assert_eq!(server.last_seen().local, server.addr);
    let both = mptcp(&bed, "client");
    both.connect(&server.addr.into()).unwrap();
    echoes(&stream_of(both));
}

/// Nagle off, keepalive on, a small receive buffer, an urgent byte: none may hurt the stream.
fn urgent_and_options_survive() {
    let bed = bed();
    let (pod, ext) = (bed.pod("client"), bed.pod("ext"));
    let server = Server::echo(ext, ext.v4(0));
    let socket = client::tcp(pod, false).unwrap();
    socket.set_tcp_nodelay(true).unwrap();
    socket.set_keepalive(true).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&server.addr.into()).unwrap();
    let mut stream = stream_of(socket);
    for i in 0..200_u8 {
        stream.write_all(&[i]).unwrap();
        let mut answer = [0_u8];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer[0], i);
    }
    echoes(&stream);
}
