//! Proof that capture works in a pod before it is relied on: a wrong key in a map would swallow connections silently.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};

use mesh_common::{
    Addr, ListenKey, Role, SELF_TEST_PORT, SOCK_AGENT, SOCK_ORIG_DST, SOCK_SELF_TEST, TUNNEL_PORT,
    ip_key,
};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::{
    enrol::Shared,
    enrolled::Inner,
    error::EnrolError,
    listeners::Listener,
    pod::{SELF_TEST_V4, SELF_TEST_V6},
    pool::tcp_socket,
};

/// A connection inside one machine that takes longer is not coming.
const DEADLINE: Duration = Duration::from_secs(2);

/// Tests both directions, the tunnel's port, and both families. `accept`: nothing is captured yet, so whatever reaches the listeners is the
/// test's and is taken here; otherwise (an earlier agent captured the pod) applications' connections may queue there,
/// and the proxy drops the test's, which dialled from the returned addresses, by [`super::Pod::is_self_test`].
pub(super) async fn run(
    shared: &Shared,
    inner: &Inner,
    cookie: u64,
    accept: bool,
) -> Result<Vec<SocketAddr>, EnrolError> {
    let mut dialled_from = Vec::new();
    for v6 in [false, true] {
        let Some(address) = inner.addresses.iter().copied().find(|a| a.is_ipv6() == v6) else {
            continue;
        };
        let outside = if v6 { SELF_TEST_V6 } else { SELF_TEST_V4 };
        let port = inner.listening.iter().any(|l| l.port() == SELF_TEST_PORT);
        let from = one(
            shared,
            inner,
            Role::Outbound,
            v6,
            SocketAddr::new(outside, SELF_TEST_PORT),
            accept,
        )
        .await?;
        dialled_from.push(from);
        let tunnel = SocketAddr::new(address, TUNNEL_PORT);
        dialled_from.push(one(shared, inner, Role::Tunnel, v6, tunnel, accept).await?);
        // An application that has our port is left in peace.
        if !port {
            dialled_from.push(inbound(shared, inner, cookie, address, accept).await?);
        }
    }
    Ok(if accept { Vec::new() } else { dialled_from })
}

async fn inbound(
    shared: &Shared,
    inner: &Inner,
    cookie: u64,
    address: IpAddr,
    accept: bool,
) -> Result<SocketAddr, EnrolError> {
    let key = ListenKey {
        netns: cookie,
        addr: Addr::new(ip_key(address), SELF_TEST_PORT),
    };
    let maps = &shared.maps;
    maps.listen_ports
        .insert(&key, &1)
        .map_err(EnrolError::io("cannot write listen_ports"))?;
    let to = SocketAddr::new(address, SELF_TEST_PORT);
    let result = one(shared, inner, Role::Inbound, address.is_ipv6(), to, accept).await;
    maps.listen_ports
        .remove(&key)
        .map_err(EnrolError::io("cannot write listen_ports"))?;
    result
}

async fn one(
    shared: &Shared,
    inner: &Inner,
    role: Role,
    v6: bool,
    to: SocketAddr,
    accept: bool,
) -> Result<SocketAddr, EnrolError> {
    let flags = if role == Role::Outbound {
        SOCK_SELF_TEST
    } else {
        SOCK_AGENT
    };
    let maps = shared.maps.clone();
    let socket = shared
        .thread
        .run(inner.netns.clone(), move || tcp_socket(v6, flags, &maps))
        .await?
        .map_err(EnrolError::io("cannot make a socket in the namespace"))?;
    let socket = TcpSocket::from_std_stream(socket.into());
    let what = match role {
        Role::Outbound => "an outbound connection",
        Role::Inbound => "an inbound connection",
        Role::Tunnel => "a tunnel",
    };
    let fail = |why: String| EnrolError::SelfTest(format!("{what} to {to} {why}"));
    let stream = match tokio::time::timeout(DEADLINE, socket.connect(to)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(e)) => return Err(fail(format!("was not captured: {e}"))),
        Err(_) => return Err(fail(format!("was not captured within {DEADLINE:?}"))),
    };
    let from = stream
        .local_addr()
        .map_err(EnrolError::io("cannot read the address of a socket"))?;
    if !accept {
        return Ok(from);
    }
    let Some(listener) = inner
        .listeners
        .iter()
        .find(|l| l.role == role && l.v6 == v6)
    else {
        return Ok(from);
    };
    match tokio::time::timeout(DEADLINE, accepted(listener, &stream)).await {
        Ok(Ok(child)) => check(shared, role, &child, to).map(|()| from).map_err(fail),
        Ok(Err(e)) => Err(fail(format!("could not be accepted: {e}"))),
        Err(_) => Err(fail("did not reach the agent's listener".into())),
    }
}

/// Accepts until the test's own connection comes; others found the listener by its port and are nobody's.
async fn accepted(listener: &Listener, client: &TcpStream) -> std::io::Result<TcpStream> {
    let ours = client.local_addr()?;
    let listener = TcpListener::from_std(listener.socket.try_clone()?)?;
    loop {
        let (child, peer) = listener.accept().await?;
        if peer == ours {
            return Ok(child);
        }
    }
}

fn check(shared: &Shared, role: Role, child: &TcpStream, to: SocketAddr) -> Result<(), String> {
    let state = shared
        .maps
        .sk_state
        .get(&child.as_fd().as_raw_fd())
        .map_err(|e| format!("has no readable socket storage: {e}"))?
        .unwrap_or_default();
    if state.flags & SOCK_AGENT == 0 {
        return Err("was accepted without the agent's mark".into());
    }
    if role == Role::Outbound {
        let dst = (state.flags & SOCK_ORIG_DST != 0).then(|| SocketAddr::from(state.peer));
        if dst != Some(to) {
            return Err(format!("arrived with the original destination {dst:?}"));
        }
    }
    Ok(())
}
