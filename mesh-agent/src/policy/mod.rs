//! Pure decisions about what applies to whom.

mod authorization;
mod mesh;
mod trust;

pub use authorization::{
    AuthorizationPolicies, Authorizer, Authorizers, Facts, Looked, PolicyScope, Scope, Verdict,
    WouldBe,
};
pub use mesh::MeshPolicies;
pub use trust::Trust;
