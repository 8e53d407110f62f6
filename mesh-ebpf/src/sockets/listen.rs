//! An application listens, or ceases to.

use aya_ebpf::bindings::BPF_SOCK_OPS_STATE_CB_FLAG;
use mesh_common::{EventKind, ListenKey, SOCK_AGENT, Share};

use super::{Socket, record};
use crate::{
    maps::{listen_ports, sk_state},
    net, share,
};

/// From here on connections to the port are steered. A `::` listener counts as one for both families until the agent,
/// told by the event, has looked whether it is for IPv6 only: `sock_ops` cannot tell.
#[inline(always)]
pub fn on_listen(socket: &Socket<'_>) {
    if let Some(state) = sk_state.get(socket.sk)
        && state.flags & SOCK_AGENT != 0
    {
        return;
    }
    // The agent dials applications over the loopback device, where a listener bound to another device does not hear:
    // what dials it is passed as it is.
    // SAFETY: checked to be no null pointer; a field that the verifier knows.
    let device = unsafe { (*socket.sk).bound_dev_if };
    if net::is_loopback(&socket.local.ip) || device != 0 {
        return;
    }
    let key = ListenKey {
        netns: socket.netns,
        addr: socket.local,
    };
    let _ = share::insert(&listen_ports, Share::ListenPorts, socket.netns, &key, &1);
    // For the close; children inherit the flag, which they would set anyway.
    socket.want(BPF_SOCK_OPS_STATE_CB_FLAG);
    record::tell(socket, EventKind::Listen, socket.cookie());
}

/// Nothing is deleted here: another socket of a SO_REUSEPORT group may go on. The agent looks.
#[inline(always)]
pub fn on_close(socket: &Socket<'_>) {
    record::tell(socket, EventKind::Listen, socket.cookie());
}
