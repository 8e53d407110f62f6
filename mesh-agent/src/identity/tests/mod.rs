//! Whole handshakes between two sets of identities, and identities under authorities that misbehave.

mod handshakes;
mod support;
