//! Addresses and 4-tuples as map keys.

/// An IP address and a port. IPv4 is v4-mapped. 24 bytes, no implicit padding.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Addr {
    /// Network order; IPv4 as `::ffff:a.b.c.d`.
    pub ip: [u8; 16],
    /// Host order.
    pub port: u16,
    /// Always zero: keys are compared byte by byte.
    pub pad: [u8; 6],
}

impl Addr {
    pub const fn new(ip: [u8; 16], port: u16) -> Self {
        Self {
            ip,
            port,
            pad: [0; 6],
        }
    }

    /// True for `::ffff:0:0/96`.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        is_v4(&self.ip)
    }
}

/// True for a v4-mapped address.
#[inline(always)]
pub const fn is_v4(ip: &[u8; 16]) -> bool {
    let mut i = 0;
    while i < 10 {
        if ip[i] != 0 {
            return false;
        }
        i += 1;
    }
    ip[10] == 0xff && ip[11] == 0xff
}

/// A connection as one network namespace sees it, from the side that dialled: `src` dialled `dst`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Network-namespace cookie (`SO_NETNS_COOKIE`); loopback tuples repeat in every pod.
    pub netns: u64,
    pub src: Addr,
    pub dst: Addr,
}

const _: () = assert!(size_of::<Addr>() == 24 && size_of::<Tuple>() == 56);

#[cfg(feature = "user")]
mod user {
    use core::net::{IpAddr, Ipv6Addr, SocketAddr};

    use super::{Addr, is_v4};

    /// The 16 bytes under which an address stands in every map.
    pub fn ip_key(ip: IpAddr) -> [u8; 16] {
        match ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        }
    }

    /// The inverse of [`ip_key`]: a v4-mapped key becomes an IPv4 address.
    pub fn ip_from_key(key: &[u8; 16]) -> IpAddr {
        if is_v4(key) {
            IpAddr::from([key[12], key[13], key[14], key[15]])
        } else {
            IpAddr::V6(Ipv6Addr::from(*key))
        }
    }

    impl From<SocketAddr> for Addr {
        fn from(value: SocketAddr) -> Self {
            Self::new(ip_key(value.ip()), value.port())
        }
    }

    impl From<Addr> for SocketAddr {
        fn from(value: Addr) -> Self {
            Self::new(ip_from_key(&value.ip), value.port)
        }
    }
}

#[cfg(feature = "user")]
pub use user::{ip_from_key, ip_key};
