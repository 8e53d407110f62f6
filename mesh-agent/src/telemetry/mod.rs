//! What the agent reports: the reason a connection ended, metrics, the access log, the table of connections.

pub mod reason;

pub use reason::{Party, Reason};
