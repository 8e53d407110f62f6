//! How many connections each source has, so that one machine cannot take the places of all the others.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

/// An agent has one connection; several nodes may be behind one address.
const PER_SOURCE: usize = 64;

#[derive(Clone, Debug, Default)]
pub(super) struct Sources(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// A connection's place; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    sources: Sources,
    of: IpAddr,
}

impl Sources {
    /// `None`: the source has as many as it may have.
    pub(super) fn take(&self, source: IpAddr) -> Option<Place> {
        let of = network(source);
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(of).or_default();
        if *count >= PER_SOURCE {
            return None;
        }
        *count += 1;
        Some(Place {
            sources: self.clone(),
            of,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self
            .sources
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.of) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.of);
            }
        }
    }
}

/// A host with IPv6 has a whole /64 to choose from.
fn network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_bounded_and_gets_its_places_back() {
        let sources = Sources::default();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut places: Vec<_> = (0..64)
            .map(|host| sources.take(ip(&format!("fd00::1:{host:x}"))).unwrap())
            .collect();
        assert!(sources.take(ip("fd00::ffff")).is_none());
        assert!(sources.take(ip("fd00:0:0:1::1")).is_some());
        assert!(sources.take(ip("10.0.0.1")).is_some());
        places.pop();
        places.push(sources.take(ip("fd00::2")).unwrap());
        drop(places);
        assert!(sources.0.lock().unwrap().is_empty());
        let _mapped = sources.take(ip("::ffff:10.0.0.1")).unwrap();
        assert!(sources.0.lock().unwrap().contains_key(&ip("10.0.0.1")));
    }
}
