//! Tests of the resources.

use super::{schema::Kind, shape};

/// `shape_of` can therefore not come back empty-handed.
#[test]
fn every_schema_compiles_to_a_shape() {
    for kind in Kind::ALL {
        let schema = kind.schema();
        if let Err(error) = shape::compile(&schema, &schema, kind.name()) {
            panic!("{kind:?}: {error}\n{schema:#}");
        }
    }
}
