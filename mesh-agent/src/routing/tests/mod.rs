//! Tests of what routes mean: matching against a naive one, splits, filters.

mod filters;
mod lookup;
mod splits;
mod support;
