//! Matches that share a path, found by their headers.
//!
//! Many rules for one path mostly differ in the value of one header (a tenant, a version). So in a big bucket the
//! matches are found by the value of an exact header, for a few names; the rest is tried one by one.

use std::collections::HashMap;

use http::{HeaderMap, HeaderName};

use super::matching::{Match, TextMatch};

/// Up to here trying one by one is faster.
const SMALL: usize = 8;
/// Header names that a bucket is indexed by.
const MAX_NAMES: usize = 4;

/// Positions by the value of a header.
type ByValue = HashMap<Box<[u8]>, Vec<u32>>;

/// Positions in the table, which are in the order of precedence.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    by_header: Vec<(HeaderName, ByValue)>,
    rest: Vec<u32>,
}

impl Bucket {
    /// `positions` in their order.
    pub(super) fn new<'m>(positions: Vec<u32>, entry: impl Fn(u32) -> &'m Match) -> Self {
        let mut bucket = Self::default();
        if positions.len() <= SMALL {
            bucket.rest = positions;
            return bucket;
        }
        let mut counts: HashMap<&HeaderName, usize> = HashMap::new();
        for position in &positions {
            for (name, _) in exact_headers(entry(*position)) {
                *counts.entry(name).or_default() += 1;
            }
        }
        let mut names: Vec<_> = counts.into_iter().collect();
        names.sort_by(|(a, a_count), (b, b_count)| {
            b_count
                .cmp(a_count)
                .then_with(|| a.as_str().cmp(b.as_str()))
        });
        names.truncate(MAX_NAMES);
        bucket.by_header = names
            .into_iter()
            .map(|(name, _)| (name.clone(), HashMap::new()))
            .collect();
        for position in positions {
            let found = exact_headers(entry(position)).find_map(|(name, value)| {
                let mut indexed = bucket.by_header.iter();
                let at = indexed.position(|(indexed, _)| indexed == name)?;
                Some((at, value))
            });
            let list = match found {
                Some((at, value)) => bucket.by_header[at].1.entry(value.into()).or_default(),
                None => &mut bucket.rest,
            };
            list.push(position);
        }
        bucket
    }

    /// Adds what a request with these headers may match.
    pub(super) fn candidates<'t>(&'t self, headers: &HeaderMap, lists: &mut Lists<'t>) {
        lists.push(&self.rest);
        for (name, by_value) in &self.by_header {
            let value = headers.get(name);
            if let Some(found) = value.and_then(|value| by_value.get(value.as_bytes())) {
                lists.push(found);
            }
        }
    }
}

fn exact_headers(of: &Match) -> impl Iterator<Item = (&HeaderName, &[u8])> {
    of.headers.iter().filter_map(|header| match &header.value {
        TextMatch::Exact(value) => Some((&header.name, value.as_bytes())),
        TextMatch::Regex(_) => None,
    })
}

/// A gRPC request looks into four buckets.
const MAX_LISTS: usize = 4 * (1 + MAX_NAMES);

/// Sorted lists, read as one.
#[derive(Default)]
pub(super) struct Lists<'t> {
    lists: [&'t [u32]; MAX_LISTS],
    count: usize,
}

impl<'t> Lists<'t> {
    fn push(&mut self, list: &'t [u32]) {
        if !list.is_empty()
            && let Some(slot) = self.lists.get_mut(self.count)
        {
            *slot = list;
            self.count += 1;
        }
    }
}

impl Iterator for Lists<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let lists = &mut self.lists[..self.count];
        let at = match lists.len() {
            1 => 0,
            count => (0..count).min_by_key(|at| lists[*at].first())?,
        };
        let (first, rest) = lists.get(at)?.split_first()?;
        lists[at] = rest;
        if rest.is_empty() {
            // Its place goes to the last.
            lists[at] = lists[self.count - 1];
            self.count -= 1;
        }
        Some(*first)
    }
}
