//! A certificate authority for a mesh without Kubernetes: Istio's certificate service, for nodes that are known by a
//! token and may ask for the identities of the workloads that the configuration places on them.

pub mod token;
