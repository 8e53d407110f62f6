//! JSON Schemas of the kinds, generated from their types.

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::Value as Json;

use super::kinds::{
    AuthorizationPolicy, EndpointSlice, GrpcRoute, HttpRoute, MeshPolicy, Namespace, Service,
    TrafficPolicy, Workload,
};

/// A kind that a file may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Namespace,
    Service,
    EndpointSlice,
    Workload,
    MeshPolicy,
    TrafficPolicy,
    AuthorizationPolicy,
    HttpRoute,
    GrpcRoute,
}

impl Kind {
    pub const ALL: [Self; 9] = [
        Self::Namespace,
        Self::Service,
        Self::EndpointSlice,
        Self::Workload,
        Self::MeshPolicy,
        Self::TrafficPolicy,
        Self::AuthorizationPolicy,
        Self::HttpRoute,
        Self::GrpcRoute,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Workload => "Workload",
            Self::MeshPolicy => "MeshPolicy",
            Self::TrafficPolicy => "TrafficPolicy",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
        }
    }

    pub const fn api_version(self) -> &'static str {
        match self {
            Self::Namespace | Self::Service => "v1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::HttpRoute | Self::GrpcRoute => "gateway.networking.k8s.io/v1",
            Self::Workload | Self::MeshPolicy | Self::TrafficPolicy | Self::AuthorizationPolicy => {
                "mesh.covet.dev/v1alpha1"
            }
        }
    }

    /// The JSON Schema (draft 2020-12) of what the agent accepts.
    pub fn schema(self) -> Json {
        match self {
            Self::Namespace => of::<Namespace>(),
            Self::Service => of::<Service>(),
            Self::EndpointSlice => of::<EndpointSlice>(),
            Self::Workload => of::<Workload>(),
            Self::MeshPolicy => of::<MeshPolicy>(),
            Self::TrafficPolicy => of::<TrafficPolicy>(),
            Self::AuthorizationPolicy => of::<AuthorizationPolicy>(),
            Self::HttpRoute => of::<HttpRoute>(),
            Self::GrpcRoute => of::<GrpcRoute>(),
        }
    }
}

fn of<T: JsonSchema>() -> Json {
    let generator = SchemaSettings::draft2020_12().into_generator();
    let mut schema = generator.into_root_schema_for::<T>().to_value();
    tidy(&mut schema);
    schema
}

/// Takes out what serde's attributes add and no reader of the schema needs.
fn tidy(schema: &mut Json) {
    match schema {
        Json::Object(object) => {
            if object.get("writeOnly") == Some(&Json::Bool(true)) {
                object.remove("writeOnly");
            }
            object.values_mut().for_each(tidy);
        }
        Json::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}
