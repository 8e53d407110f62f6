//! Local rate limits: token buckets (GCRA) for all requests or for each key, several at once.
//!
//! A request is charged to every limit that it matches, or to none: all are asked first, the specific keys before the
//! common ones, and only when none of them refuses each is charged. So a client over its own limit does not use up what
//! is there for all, and the refusal names the most specific limit. A limit in shadow mode counts what it would refuse
//! and refuses nothing.

mod fields;
mod gcra;
mod keys;
mod limiters;

pub use fields::Quota;
pub use keys::RequestFacts;
pub use limiters::{Decision, LimitCounts, Limiters, Refusal};

#[cfg(test)]
mod tests;
