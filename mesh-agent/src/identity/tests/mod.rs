//! Whole handshakes between two sets of identities, and identities under authorities that misbehave.

mod folders;
mod handshakes;
mod refusals;
mod revocation;
mod roots;
mod rotation;
mod support;
