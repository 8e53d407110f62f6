//! Fields and values that Kubernetes or a later version of ours knows and this version cannot honour. They are refused
//! by name: a policy that is silently ignored is worse than one that does not load.

use super::path::{Path, Segment};

/// Why a field of a kind is refused, if it is one we know of.
pub(super) fn field(kind: &str, path: &Path) -> Option<String> {
    let reason = match (kind, dotted(path).as_str()) {
        ("MeshPolicy", "spec.ca") => {
            "not yet supported: the certificate authority is an option of the agent"
        }
        (
            "AuthorizationPolicy",
            "spec.rules.from.source.requestPrincipals"
            | "spec.rules.from.source.notRequestPrincipals",
        ) => "not supported: the agent verifies no tokens (JWT)",
        (
            "AuthorizationPolicy",
            "spec.rules.from.source.remoteIpBlocks" | "spec.rules.from.source.notRemoteIpBlocks",
        ) => {
            "not supported: the agent trusts no X-Forwarded-For; source.ipBlocks are about the client's own address"
        }
        ("AuthorizationPolicy", "spec.targetRef" | "spec.targetRefs") => {
            "not yet supported: a policy is for workloads, which spec.selector names"
        }
        ("AuthorizationPolicy", "spec.provider") => "not supported: the agent decides by itself",
        ("TrafficPolicy", "spec.retry") => "write retries",
        ("TrafficPolicy", "spec.rateLimit") => "write rateLimits, a list",
        ("TrafficPolicy", "spec.health") => "write healthCheck",
        ("TrafficPolicy", "spec.outlierDetection") => "write circuitBreaker",
        ("TrafficPolicy", "spec.tls") => {
            "not supported: mTLS between workloads is of the mesh, see MeshPolicy spec.mtls"
        }
        ("TrafficPolicy", "spec.timeouts.backendRequest") => "write timeouts.attempt",
        ("TrafficPolicy", "spec.timeouts.perTry" | "spec.retries.perTryTimeout") => {
            "write timeouts.attempt"
        }
        ("TrafficPolicy", "spec.targetRefs.sectionName") => {
            "not yet supported: a TrafficPolicy applies to every port of a Service and every rule of a route"
        }
        ("TrafficPolicy", "spec.targetRefs.namespace") => {
            "not supported: a TrafficPolicy applies to Services and routes of its own namespace"
        }
        ("HTTPRoute" | "GRPCRoute", "spec.rules.sessionPersistence") => {
            "not supported: a TrafficPolicy for the backend Service keeps sessions, with spec.loadBalancer.consistentHash and a cookie"
        }
        ("HTTPRoute" | "GRPCRoute", "spec.useDefaultGateways") => {
            "not supported: the parents of a route in a mesh are Services"
        }
        ("GRPCRoute", "spec.rules.timeouts" | "spec.rules.retry") => {
            "not part of GRPCRoute: a TrafficPolicy for the route or the Service sets it"
        }
        (
            "HTTPRoute" | "GRPCRoute",
            "spec.rules.filters.extensionRef" | "spec.rules.backendRefs.filters.extensionRef",
        ) => "not supported: the mesh has no filters of its own",
        (
            "HTTPRoute",
            "spec.rules.filters.externalAuth" | "spec.rules.backendRefs.filters.externalAuth",
        ) => "not supported: the mesh decides by AuthorizationPolicy",
        ("Service", "spec.topologyKeys") => {
            "removed from Kubernetes in 1.22: write trafficDistribution"
        }
        ("Service", "spec.externalName") => {
            "not supported: the mesh serves addresses, not DNS names"
        }
        ("Service", "spec.externalIPs") => {
            "not supported: only clusterIPs are virtual addresses of the mesh"
        }
        (
            "Service",
            "spec.loadBalancerIP"
            | "spec.loadBalancerClass"
            | "spec.loadBalancerSourceRanges"
            | "spec.allocateLoadBalancerNodePorts"
            | "spec.externalTrafficPolicy"
            | "spec.healthCheckNodePort"
            | "spec.ports.nodePort",
        ) => "not supported: the mesh serves type ClusterIP only",
        (
            "Namespace"
            | "Service"
            | "EndpointSlice"
            | "Workload"
            | "MeshPolicy"
            | "TrafficPolicy"
            | "AuthorizationPolicy"
            | "HTTPRoute"
            | "GRPCRoute",
            "metadata.generateName",
        ) => "not supported: a resource in a file needs a name",
        _ => return None,
    };
    Some(reason.to_owned())
}

/// Why a value is refused where only some are allowed.
pub(super) fn value(kind: &str, path: &Path, value: &str) -> Option<String> {
    let reason = match (kind, dotted(path).as_str(), value) {
        ("Service", "spec.type", "NodePort" | "LoadBalancer" | "ExternalName") => {
            "not supported, the mesh serves inside the cluster only: expected ClusterIP"
        }
        ("Service", "spec.ports.protocol", "UDP" | "SCTP")
        | ("EndpointSlice", "ports.protocol", "UDP" | "SCTP") => {
            "not supported, the mesh carries TCP only: expected TCP"
        }
        ("Service", "spec.internalTrafficPolicy", "Local") => {
            "not yet supported, traffic is spread over all nodes: expected Cluster"
        }
        ("EndpointSlice", "addressType", "FQDN") => {
            "not supported, the mesh serves addresses and not DNS names: expected IPv4 or IPv6"
        }
        ("MeshPolicy", "spec.sameNode", "direct") => {
            "not yet supported, traffic within a node takes the tunnel as well: expected mtls"
        }
        ("AuthorizationPolicy", "spec.action", "AUDIT" | "CUSTOM") => {
            "not supported: expected ALLOW or DENY"
        }
        (
            "HTTPRoute" | "GRPCRoute",
            "spec.rules.filters.type" | "spec.rules.backendRefs.filters.type",
            "ExtensionRef",
        ) => "not supported: the mesh has no filters of its own",
        (
            "HTTPRoute",
            "spec.rules.filters.type" | "spec.rules.backendRefs.filters.type",
            "ExternalAuth",
        ) => "not supported: the mesh decides by AuthorizationPolicy",
        (
            "GRPCRoute",
            "spec.rules.filters.type" | "spec.rules.backendRefs.filters.type",
            "RequestRedirect" | "URLRewrite" | "CORS",
        ) => {
            "a filter of HTTPRoute: expected RequestHeaderModifier, ResponseHeaderModifier or RequestMirror"
        }
        _ => return None,
    };
    Some(format!("{value} is {reason}"))
}

/// Kinds that later versions will read.
pub(super) fn kind(api_version: &str, kind: &str) -> Option<&'static str> {
    match (api_version.split('/').next().unwrap_or_default(), kind) {
        ("gateway.networking.k8s.io", "ReferenceGrant") => {
            Some("not needed: in a mesh a route may refer to Services of any namespace")
        }
        ("gateway.networking.k8s.io", "Gateway" | "GatewayClass" | "ListenerSet") => {
            Some("not supported: the mesh routes traffic to Services, and has no gateways")
        }
        ("gateway.networking.k8s.io", _) => {
            Some("not yet supported: this version has HTTPRoute and GRPCRoute")
        }
        ("security.istio.io", "PeerAuthentication") => {
            Some("not supported: write a MeshPolicy (mesh.covet.dev/v1alpha1) with spec.mtls")
        }
        ("v1", "Endpoints") => Some("not supported: write an EndpointSlice (discovery.k8s.io/v1)"),
        ("v1", "Pod") | ("apps", _) => {
            Some("not supported in files: write a Workload (mesh.covet.dev/v1alpha1)")
        }
        _ => None,
    }
}

/// The path without list indexes.
fn dotted(path: &Path) -> String {
    let keys: Vec<&str> = path
        .segments()
        .iter()
        .filter_map(|segment| match segment {
            Segment::Key(key) => Some(key.as_ref()),
            Segment::Index(_) => None,
        })
        .collect();
    keys.join(".")
}
