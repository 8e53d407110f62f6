//! Which rule of which route a request takes: pure, no I/O, no clock.
//!
//! A [`RouteTable`] is compiled once for the clients of one namespace and one service port, from the HTTPRoutes or
//! GRPCRoutes that are bound to it; [`RouteTable::find`] allocates nothing.

mod filter;
mod rule;
mod table;

pub use filter::{Cors, Filters, Fraction, HeaderModifier, Mirror, PathRewrite, Redirect, Rewrite};
pub use rule::{
    Backend, BackendError, RouteId, RouteKind, RoutePolicy, RouteRetry, RouteTimeouts, Rule,
};
pub use table::{Found, RequestView, RouteTable};
