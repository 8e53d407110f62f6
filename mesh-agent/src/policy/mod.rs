//! Pure decisions about what applies to whom.

mod mesh;

pub use mesh::MeshPolicies;
