//! Hashes that stay the same between agents, versions and restarts. Not keyed: they decide placement, not safety.

use std::net::{IpAddr, SocketAddr};

/// Finaliser of SplitMix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit.
pub(super) fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Key of a client address for session affinity. An IPv4 address and its v4-mapped form are one client.
pub fn client_key(ip: IpAddr) -> u64 {
    let bits = match ip.to_canonical() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    mix((bits >> 64) as u64 ^ mix(bits as u64))
}

/// Key of an endpoint.
pub fn endpoint_key(address: SocketAddr) -> u64 {
    mix(client_key(address.ip()) ^ u64::from(address.port()))
}

/// Key of what a request carries (a header, a cookie, a query parameter) for consistent hashing: FNV-1a of 64 bits,
/// finished by SplitMix64, because the last bytes of FNV-1a hardly reach its high bits.
///
/// The function is written out here because it is part of the contract between agents: two agents of different versions
/// must send a key to the same endpoint, and the standard library promises its hashers for one release only. It has no
/// secret, since all agents would have to share it; who chooses keys to meet on one endpoint meets bounded load there.
pub fn hash_key(bytes: &[u8]) -> u64 {
    let fnv = bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    mix(fnv)
}

/// Random numbers of one choice, seeded by the caller's generator. Lets [`super::Candidates`] be `Send` and be kept
/// across awaits, which a borrowed thread-local generator could not.
#[derive(Clone, Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        let value = mix(self.0);
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        value
    }

    /// Uniform in `0..n`, by Lemire's multiplication (bias below n / 2^64). 0 when `n` is 0.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    /// Uniform in `0.0..1.0`.
    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}
