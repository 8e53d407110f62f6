//! The record of a connection: begun, finished, told.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use mesh_common::{
    Addr, ConnRecord, Counter, Direction, Event, EventKind, KernelClose, Path, SOCK_RECORDED,
    Share, SockState,
};

use super::Socket;
use crate::{
    maps::{blank, conns, count, events},
    share,
};

/// What a new record says beside the tuple.
pub struct New {
    pub direction: Direction,
    pub path: Path,
    pub remote: Addr,
    pub original_dst: Addr,
    pub agent_cookie: u64,
    pub tcp_state: u8,
}

/// Inserts the record and marks the socket as recorded. A full map is counted, the connection goes on.
#[inline(always)]
pub fn begin(socket: &Socket<'_>, state: &mut SockState, cookie: u64, new: New) {
    let Some(zeros) = blank.get(0) else { return };
    if share::insert(&conns, Share::Conns, socket.netns, &cookie, zeros).is_err() {
        return;
    }
    let Some(record) = conns.get_ptr_mut(cookie) else {
        return;
    };
    // SAFETY: a helper without preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: a live value of the map. Whoever reads it in this moment finds a record of no workload and passes on: the
    // cookie of its namespace comes last.
    unsafe {
        (*record).local = socket.local;
        (*record).remote = new.remote;
        (*record).original_dst = new.original_dst;
        (*record).agent_cookie = new.agent_cookie;
        (*record).start_ns = now;
        (*record).last_ns = now;
        (*record).state = new.tcp_state;
        (*record).direction = new.direction as u8;
        (*record).path = new.path as u8;
        core::ptr::write_volatile(core::ptr::addr_of_mut!((*record).netns), socket.netns);
    }
    state.flags |= SOCK_RECORDED;
}

/// Hands the final record to the agent and deletes it from the map.
#[inline(always)]
pub fn finish(socket: &Socket<'_>, cookie: u64, sent: u64, received: u64, reason: KernelClose) {
    if let Some(rec) = conns.get_ptr_mut(cookie) {
        if let Some(mut slot) = events.reserve(0) {
            // SAFETY: `slot` is ours until submitted and all of it is written; `rec` is a live value of the map.
            unsafe {
                let event: *mut Event = slot.as_mut_ptr();
                (*event).kind = EventKind::Closed as u32;
                (*event).pad = 0;
                (*event).cookie = cookie;
                (*event).record = *rec;
                let last = &mut (*event).record;
                last.last_ns = bpf_ktime_get_ns();
                last.bytes_sent = sent;
                last.bytes_received = received;
                last.state = socket.new_state as u8;
                last.close_reason = reason as u8;
                // A proxied connection shows its upstream leg, which the agent has written.
                if last.path != Path::Proxied as u8 {
                    last.srtt_us = socket.srtt_us >> 3;
                    last.retransmits = socket.retransmits;
                }
            }
            slot.submit(0);
        } else {
            count(Counter::EventsFull);
        }
        share::remove(&conns, Share::Conns, socket.netns, &cookie);
    }
}

/// News without a record.
#[inline(always)]
pub fn tell(socket: &Socket<'_>, kind: EventKind, cookie: u64) {
    if let Some(mut slot) = events.reserve(0) {
        // SAFETY: `slot` is ours until submitted and all of it is written.
        unsafe {
            let event: *mut Event = slot.as_mut_ptr();
            *event = Event {
                kind: kind as u32,
                pad: 0,
                cookie,
                record: ConnRecord {
                    netns: socket.netns,
                    local: socket.local,
                    ..zeroed()
                },
            };
        }
        slot.submit(0);
    } else {
        count(Counter::EventsFull);
    }
}

#[inline(always)]
const fn zeroed() -> ConnRecord {
    const NONE: Addr = Addr::new([0; 16], 0);
    ConnRecord {
        netns: 0,
        local: NONE,
        remote: NONE,
        original_dst: NONE,
        agent_cookie: 0,
        start_ns: 0,
        last_ns: 0,
        bytes_sent: 0,
        bytes_received: 0,
        srtt_us: 0,
        retransmits: 0,
        state: 0,
        direction: 0,
        path: 0,
        close_reason: 0,
        security: 0,
        pad: [0; 3],
    }
}
