//! Which rule of which route a request takes: pure, no I/O, no clock.
//!
//! A [`RouteTable`] is compiled once for the clients of one namespace and one service port, from the HTTPRoutes or
//! GRPCRoutes that are bound to it; [`RouteTable::find`] allocates nothing but for a regular expression over a query
//! parameter that has escapes.

mod bucket;
mod cors;
mod expression;
mod filter;
mod matching;
mod query;
mod rewrite;
mod rule;
mod split;
mod table;

#[cfg(test)]
mod tests;

pub use cors::Cors;
pub use expression::{BadExpression, Expression};
pub use filter::{Filters, Fraction, HeaderModifier, Mirror};
pub use matching::{HeaderMatch, Match, PathMatch, QueryMatch, RequestView, TextMatch};
pub use rewrite::{Dialled, PathRewrite, Redirect, Rewrite};
pub use rule::{
    Backend, BackendError, RouteId, RouteKind, RoutePolicy, RouteTimeouts, Rule, RuleSettings,
};
pub use split::MAX_BACKENDS;
pub use table::{BoundRoute, Found, Listed, RouteTable};
