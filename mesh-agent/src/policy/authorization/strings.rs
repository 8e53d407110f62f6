//! Finds every pattern that a text matches.
//!
//! Exact ones are hashed. Prefixes are sorted, and each knows the longest other one that it begins with: those that a
//! text begins with are then the chain from its predecessor in the order. Suffixes are prefixes read backwards.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap},
};

use super::bits::{Draft, Hit};
use crate::api::Pattern;

#[derive(Debug, Default)]
pub(super) struct StringIndex {
    any: Option<Hit>,
    exact: HashMap<Box<[u8]>, Hit>,
    prefixes: Chain,
    suffixes: Chain,
}

impl StringIndex {
    /// Calls `each` for every pattern that matches.
    pub(super) fn visit(&self, text: impl AsRef<[u8]>, each: &mut impl FnMut(&Hit)) {
        let bytes = text.as_ref();
        if let Some(hit) = &self.any {
            each(hit);
        }
        if !self.exact.is_empty()
            && let Some(hit) = self.exact.get(bytes)
        {
            each(hit);
        }
        self.prefixes.visit(
            |prefix| prefix.cmp(bytes),
            |prefix| bytes.starts_with(prefix),
            each,
        );
        self.suffixes.visit(
            |reversed| reversed.iter().cmp(bytes.iter().rev()),
            |reversed| {
                reversed.len() <= bytes.len()
                    && reversed.iter().eq(bytes.iter().rev().take(reversed.len()))
            },
            each,
        );
    }
}

/// A `StringIndex` being made.
#[derive(Debug, Default)]
pub(super) struct StringDraft {
    any: Option<Draft>,
    exact: HashMap<Box<[u8]>, Draft>,
    prefixes: BTreeMap<Box<[u8]>, Draft>,
    suffixes: BTreeMap<Box<[u8]>, Draft>,
}

impl StringDraft {
    pub(super) fn entry(&mut self, pattern: Pattern<'_>) -> &mut Draft {
        match pattern {
            Pattern::Any => self.any.get_or_insert_default(),
            Pattern::Exact(text) => self.exact.entry(text.as_bytes().into()).or_default(),
            Pattern::Prefix(prefix) => self.prefixes.entry(prefix.as_bytes().into()).or_default(),
            Pattern::Suffix(suffix) => {
                let reversed: Box<[u8]> = suffix.bytes().rev().collect();
                self.suffixes.entry(reversed).or_default()
            }
        }
    }

    pub(super) fn finish(self, words: usize) -> StringIndex {
        StringIndex {
            any: self.any.map(|draft| draft.finish(words)),
            exact: self
                .exact
                .into_iter()
                .map(|(text, draft)| (text, draft.finish(words)))
                .collect(),
            prefixes: Chain::new(self.prefixes, words),
            suffixes: Chain::new(self.suffixes, words),
        }
    }
}

/// Sorted prefixes, each with the place of the longest other one that it begins with.
#[derive(Debug, Default)]
struct Chain(Box<[Link]>);

#[derive(Debug)]
struct Link {
    prefix: Box<[u8]>,
    shorter: Option<u32>,
    hit: Hit,
}

impl Chain {
    fn new(sorted: BTreeMap<Box<[u8]>, Draft>, words: usize) -> Self {
        let mut links: Vec<Link> = Vec::with_capacity(sorted.len());
        let mut open: Vec<u32> = Vec::new();
        for (prefix, draft) in sorted {
            while let Some(last) = open.last()
                && !prefix.starts_with(&links[*last as usize].prefix)
            {
                open.pop();
            }
            let shorter = open.last().copied();
            open.push(links.len() as u32);
            links.push(Link {
                prefix,
                shorter,
                hit: draft.finish(words),
            });
        }
        Self(links.into())
    }

    /// `compare` puts a prefix before or after the text, `holds` says whether the text begins with it.
    fn visit(
        &self,
        compare: impl Fn(&[u8]) -> Ordering,
        holds: impl Fn(&[u8]) -> bool,
        each: &mut impl FnMut(&Hit),
    ) {
        let after = self
            .0
            .partition_point(|link| compare(&link.prefix) != Ordering::Greater);
        let mut next = after.checked_sub(1);
        while let Some(link) = next.and_then(|at| self.0.get(at)) {
            if holds(&link.prefix) {
                each(&link.hit);
            }
            next = link.shorter.map(|at| at as usize);
        }
    }
}
