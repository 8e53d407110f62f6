//! Sources of configuration. Each turns its world into the resources of `api` and hands the full set to the catalog,
//! which merges all sources. A directory of files is the first; a cluster and registries come later, several at once.

pub mod file;
mod settle;
mod status;
mod watch;

#[cfg(test)]
mod tests;

pub use status::{SourceState, SourceStatus};
