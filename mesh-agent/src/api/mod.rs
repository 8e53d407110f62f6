//! The resources as users write them: one set of types gives the parser, the JSON Schema and later the CRDs.
//!
//! A document goes through `document` (YAML tree, kind, schema, the checks that need one resource only), a directory
//! through `loader` (files, caches) and `validate` (the checks that need all resources). A directory is one
//! transaction: it loads as a whole, or all of its errors are reported and nothing of it is used.

mod diff;
mod document;
mod error;
mod format;
mod kinds;
mod loader;
mod local;
mod metadata;
mod node_de;
mod path;
mod pattern;
mod quick;
mod refused;
pub mod schema;
mod selector;
mod shape;
mod validate;
mod yaml;

#[cfg(test)]
mod tests;

use std::{path::Path, sync::Arc};

pub use diff::Diff;
pub use error::{ConfigError, Warning};
pub use format::{
    Cidr, ClusterIp, CookieName, GepDuration, GrpcCode, Header, Port, StatusRange, UnicastIp,
};
pub use kinds::*;
pub(crate) use loader::is_yaml;
pub use loader::{Loader, Outcome};
pub use metadata::{
    DEFAULT_NAMESPACE, ENABLED_LABEL, Labels, Object, ObjectMeta, SERVICE_NAME_LABEL,
};
pub use pattern::Pattern;
pub use selector::{LabelIndex, LabelSelector, Operator, Requirement, contains_all};
pub use validate::Environment;

/// Every resource of one source. Unchanged resources keep their `Arc` from one version to the next, which is how the
/// catalog knows what changed.
#[derive(Clone, Debug, Default)]
pub struct Config {
    pub namespaces: Vec<Arc<Object<Namespace>>>,
    pub services: Vec<Arc<Object<Service>>>,
    pub endpoint_slices: Vec<Arc<Object<EndpointSlice>>>,
    pub workloads: Vec<Arc<Object<Workload>>>,
    pub mesh_policies: Vec<Arc<Object<MeshPolicy>>>,
    pub traffic_policies: Vec<Arc<Object<TrafficPolicy>>>,
    pub authorization_policies: Vec<Arc<Object<AuthorizationPolicy>>>,
    pub http_routes: Vec<Arc<Object<HttpRoute>>>,
    pub grpc_routes: Vec<Arc<Object<GrpcRoute>>>,
}

impl Config {
    /// How many resources there are.
    pub fn resources(&self) -> usize {
        self.namespaces.len()
            + self.services.len()
            + self.endpoint_slices.len()
            + self.workloads.len()
            + self.mesh_policies.len()
            + self.traffic_policies.len()
            + self.authorization_policies.len()
            + self.http_routes.len()
            + self.grpc_routes.len()
    }
}

/// Reads a directory once. Network namespaces are compared with this machine's own; see `Environment`.
///
/// # Errors
/// Everything that is wrong, in the order of files and lines.
pub fn load_dir(dir: &Path) -> Result<(Config, Vec<Warning>), Vec<ConfigError>> {
    let mut loader = Loader::new(dir, Environment::of_this_machine(None));
    let outcome = loader.load()?;
    Ok((outcome.config, outcome.warnings))
}

/// Parses and checks the bytes of one file as a whole configuration, without looking at the machine.
///
/// # Errors
/// Everything that is wrong. It never panics, whatever the bytes: it is a fuzz target.
pub fn parse_bytes(
    file_name: &str,
    bytes: &[u8],
) -> Result<(Config, Vec<Warning>), Vec<ConfigError>> {
    loader::load_bytes(Path::new(file_name), bytes, &Environment::default())
}

/// The schema functions of a kind's `apiVersion` and `kind`.
macro_rules! kind_schema {
    ($version:literal, $kind:literal) => {
        fn version(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
            schemars::json_schema!({ "const": $version })
        }
        fn kind(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
            schemars::json_schema!({ "const": $kind })
        }
    };
}

/// Schema functions for strings of which only some are allowed and that nobody reads.
macro_rules! one_of_schema {
    ($($name:ident: [$($value:literal),+];)+) => {
        $(fn $name(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
            schemars::json_schema!({ "type": "string", "enum": [$($value),+] })
        })+
    };
}

use kind_schema;
use one_of_schema;
