//! Addresses as the contexts give them, made into the keys of the maps.

use mesh_common::is_v4;

/// `AF_INET6`.
pub const AF_INET6: u32 = 10;
/// `SOCK_STREAM`.
pub const SOCK_STREAM: u32 = 1;
/// `IPPROTO_TCP`.
pub const TCP: u32 = 6;
/// `IPPROTO_MPTCP`.
pub const MPTCP: u32 = 262;

/// An IPv4 address in network order, as memory holds it, v4-mapped.
#[inline(always)]
pub fn mapped(ip4: u32) -> [u8; 16] {
    let b = ip4.to_ne_bytes();
    [
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, b[0], b[1], b[2], b[3],
    ]
}

/// Four words in network order, as memory holds them.
#[inline(always)]
pub fn octets(words: [u32; 4]) -> [u8; 16] {
    // SAFETY: same size, no invalid bit patterns.
    unsafe { core::mem::transmute(words) }
}

/// The inverse of [`octets`].
#[inline(always)]
pub fn words(ip: &[u8; 16]) -> [u32; 4] {
    [
        u32::from_ne_bytes([ip[0], ip[1], ip[2], ip[3]]),
        u32::from_ne_bytes([ip[4], ip[5], ip[6], ip[7]]),
        u32::from_ne_bytes([ip[8], ip[9], ip[10], ip[11]]),
        u32::from_ne_bytes([ip[12], ip[13], ip[14], ip[15]]),
    ]
}

/// The IPv4 address inside a v4-mapped one, in network order.
#[inline(always)]
pub fn unmapped(ip: &[u8; 16]) -> u32 {
    u32::from_ne_bytes([ip[12], ip[13], ip[14], ip[15]])
}

/// 127.0.0.0/8 and ::1.
#[inline(always)]
pub fn is_loopback(ip: &[u8; 16]) -> bool {
    let w = words(ip);
    (is_v4(ip) && ip[12] == 127) || (w[0] == 0 && w[1] == 0 && w[2] == 0 && w[3] == 1u32.to_be())
}

/// The unspecified address, `::` or `0.0.0.0`: to connect() it means this host.
#[inline(always)]
pub fn is_unspecified(ip: &[u8; 16]) -> bool {
    let w = words(ip);
    w[0] == 0 && w[1] == 0 && w[3] == 0 && (w[2] == 0 || is_v4(ip))
}

/// fe80::/10.
#[inline(always)]
pub fn is_link_local(ip: &[u8; 16]) -> bool {
    ip[0] == 0xfe && ip[1] & 0xc0 == 0x80
}

/// Addresses that a connection leaves to the kernel: this host, multicast, broadcast, and IPv6 link-local, whose
/// meaning depends on an interface that a redirected connection no longer names.
#[inline(always)]
pub fn is_left_alone(ip: &[u8; 16]) -> bool {
    let multicast = if is_v4(ip) {
        ip[12] >= 224
    } else {
        ip[0] == 0xff || is_link_local(ip)
    };
    multicast || is_loopback(ip) || is_unspecified(ip)
}

/// A number that depends on the whole destination, for the choice of a capture port.
#[inline(always)]
pub fn hash_destination(ip: &[u8; 16], port: u16) -> u32 {
    let w = words(ip);
    let mut h = u32::from(port).wrapping_mul(0x9e37_79b1);
    h = (h ^ w[0]).wrapping_mul(0x85eb_ca6b);
    h = (h ^ (h >> 15) ^ w[1]).wrapping_mul(0xc2b2_ae35);
    h = (h ^ (h >> 13) ^ w[2]).wrapping_mul(0x27d4_eb2f);
    h = (h ^ (h >> 15) ^ w[3]).wrapping_mul(0x1656_67b1);
    h ^ (h >> 16)
}
