//! Pure decisions about what applies to whom.

mod authorization;
mod mesh;
pub(crate) mod path;
mod request;
mod trust;

pub use authorization::{
    AuthorizationPolicies, Authorizer, Authorizers, Facts, Looked, PolicyScope, Scope, Verdict,
    WouldBe,
};
pub use mesh::MeshPolicies;
pub use path::RequestPath;
pub use request::{HttpFacts, RequestHost};
pub use trust::Trust;
