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

/// A format that nobody checks would accept everything.
#[test]
fn every_format_of_a_schema_is_checked() {
    fn formats(schema: &serde_json::Value, found: &mut Vec<String>) {
        match schema {
            serde_json::Value::Object(object) => {
                if let Some(serde_json::Value::String(format)) = object.get("format") {
                    found.push(format.clone());
                }
                object.values().for_each(|value| formats(value, found));
            }
            serde_json::Value::Array(items) => items.iter().for_each(|item| formats(item, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    for kind in Kind::ALL {
        formats(&kind.schema(), &mut found);
    }
    for format in found {
        let numeric = matches!(format.as_str(), "uint16" | "uint32" | "double");
        assert!(
            numeric
                || super::format::KNOWN.contains(&format.as_str())
                || super::format::KNOWN_OF_REQUESTS.contains(&format.as_str())
                || super::format::KNOWN_OF_ROUTES.contains(&format.as_str()),
            "{format}"
        );
    }
}

mod loading;
mod messages;
mod properties;
mod published;
mod quick;
mod routes;
mod traffic;
