//! The kernel programs of Covet Mesh. This file holds only the entry points; each job has a module of its own.
//!
//! All programs are attached once at the root of cgroup2 (`inbound`: once for each pod's network namespace) and know
//! their pods by network-namespace cookie, so cgroup layout does not matter.
#![no_std]
#![no_main]
// For one instruction (`share`).
#![feature(asm_experimental_arch)]

mod connect;
mod exclude;
mod inbound;
mod maps;
mod net;
mod peer;
mod share;
mod sockets;

use aya_ebpf::{
    macros::{cgroup_sock_addr, sk_lookup, sock_ops},
    programs::{SkLookupContext, SockAddrContext, SockOpsContext},
};

/// Captures IPv4 connections.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    connect::v4(&ctx)
}

/// Captures IPv6 and v4-mapped connections.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    connect::v6(&ctx)
}

/// Shows the real peer to getpeername() and accept().
#[cgroup_sock_addr(getpeername4)]
pub fn peer4(ctx: SockAddrContext) -> i32 {
    peer::v4(&ctx)
}

/// Shows the real peer to getpeername() and accept().
#[cgroup_sock_addr(getpeername6)]
pub fn peer6(ctx: SockAddrContext) -> i32 {
    peer::v6(&ctx)
}

/// Original destinations, listen ports, per-connection records.
#[sock_ops]
pub fn sockets(ctx: SockOpsContext) -> u32 {
    sockets::on_event(&ctx);
    1
}

/// Steers connections to the agent's listeners.
#[sk_lookup]
pub fn inbound(ctx: SkLookupContext) -> u32 {
    inbound::steer(&ctx)
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel reads the licence from here.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
