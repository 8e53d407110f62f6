//! Pure decisions about what applies to whom.

mod authorization;
mod mesh;

pub use authorization::{Facts, Verdict};
pub use mesh::MeshPolicies;
