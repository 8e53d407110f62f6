//! Finds every range that an address lies in. Ranges are nested or apart, so this is the chain of `strings` with
//! addresses for texts.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use super::bits::{Draft, Hit};

#[derive(Debug, Default)]
pub(super) struct Ranges {
    v4: Box<[Range]>,
    v6: Box<[Range]>,
}

#[derive(Debug)]
struct Range {
    /// First address, aligned to the left; an IPv4 address fills the upper 32 bits.
    first: u128,
    length: u8,
    wider: Option<u32>,
    hit: Hit,
}

/// Left-aligned bits, and whether they are those of an IPv4 address. One that is mapped into IPv6 counts as IPv4.
fn bits(address: IpAddr) -> (u128, bool) {
    match address.to_canonical() {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, true),
        IpAddr::V6(v6) => (v6.to_bits(), false),
    }
}

impl Range {
    fn contains(&self, address: u128) -> bool {
        // A shift by all 128 bits is none.
        (address ^ self.first)
            .checked_shr(128 - u32::from(self.length))
            .unwrap_or(0)
            == 0
    }
}

impl Ranges {
    /// Calls `each` for every range that the address lies in.
    pub(super) fn visit(&self, address: IpAddr, each: &mut impl FnMut(&Hit)) {
        if self.v4.is_empty() && self.v6.is_empty() {
            return;
        }
        let (address, is_v4) = bits(address);
        let ranges = if is_v4 { &self.v4 } else { &self.v6 };
        let after = ranges.partition_point(|range| range.first <= address);
        let mut next = after.checked_sub(1);
        while let Some(range) = next.and_then(|at| ranges.get(at)) {
            if range.contains(address) {
                each(&range.hit);
            }
            next = range.wider.map(|at| at as usize);
        }
    }
}

/// `Ranges` being made, in the order of first addresses, wide before narrow.
#[derive(Debug, Default)]
pub(super) struct RangesDraft {
    v4: BTreeMap<(u128, u8), Draft>,
    v6: BTreeMap<(u128, u8), Draft>,
}

impl RangesDraft {
    pub(super) fn entry(&mut self, net: IpNet) -> &mut Draft {
        let net = net.trunc();
        let (map, first) = match net {
            IpNet::V4(v4) => (&mut self.v4, u128::from(v4.addr().to_bits()) << 96),
            IpNet::V6(v6) => (&mut self.v6, v6.addr().to_bits()),
        };
        map.entry((first, net.prefix_len())).or_default()
    }

    pub(super) fn finish(self, words: usize) -> Ranges {
        Ranges {
            v4: chain(self.v4, words),
            v6: chain(self.v6, words),
        }
    }
}

fn chain(sorted: BTreeMap<(u128, u8), Draft>, words: usize) -> Box<[Range]> {
    let mut ranges: Vec<Range> = Vec::with_capacity(sorted.len());
    let mut open: Vec<u32> = Vec::new();
    for ((first, length), draft) in sorted {
        while let Some(last) = open.last()
            && !ranges[*last as usize].contains(first)
        {
            open.pop();
        }
        let wider = open.last().copied();
        open.push(ranges.len() as u32);
        ranges.push(Range {
            first,
            length,
            wider,
            hit: draft.finish(words),
        });
    }
    ranges.into()
}
