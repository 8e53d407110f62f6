//! The one vocabulary for how a connection ended, used by metric labels, the access log and the CLI.

use std::fmt;

/// Who caused it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Party {
    /// This agent decided.
    Agent,
    /// The side that dialled.
    Client,
    /// The side that was dialled, or the network before it.
    Upstream,
    /// The kernel of this node.
    Node,
}

impl Party {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Client => "client",
            Self::Upstream => "upstream",
            Self::Node => "node",
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $flag:literal, $party:ident, $explain:literal;)*) => {
        /// Why a connection ended as it did.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason { $($(#[$doc])* $variant,)* }

        impl Reason {
            /// Every reason.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant,)*];

            /// Value of the metric label and of the CLI's filter.
            pub const fn as_str(self) -> &'static str {
                match self { $(Reason::$variant => $name,)* }
            }

            /// Envoy's short response flag; "-" on success.
            pub const fn flag(self) -> &'static str {
                match self { $(Reason::$variant => $flag,)* }
            }

            /// Who caused it.
            pub const fn party(self) -> Party {
                match self { $(Reason::$variant => Party::$party,)* }
            }

            /// Position in [`Reason::ALL`].
            pub const fn index(self) -> usize {
                self as usize
            }

            /// A sentence for the operator: what happened and what to check.
            pub const fn explain(self) -> &'static str {
                match self { $(Reason::$variant => $explain,)* }
            }
        }
    };
}

reasons! {
    /// FIN both ways.
    Completed = "completed", "-", Client,
        "Both sides closed in order.";
    /// The client reset the connection.
    ClientReset = "client_reset", "DC", Client,
        "The client reset the connection. If this is frequent, look at the client's timeouts.";
    /// The upstream reset an established connection.
    UpstreamReset = "upstream_reset", "UC", Upstream,
        "The upstream reset an established connection. Look at the upstream's log at this time.";
    /// Every candidate refused.
    UpstreamRefused = "upstream_refused", "UF", Upstream,
        "The upstream refused the connection. Is the application listening on that port?";
    /// No candidate answered in time.
    UpstreamTimeout = "upstream_timeout", "UF", Upstream,
        "The upstream did not answer within the connect deadline. Check that the address is alive and that no network policy drops the traffic.";
    /// No route, or another error of the network.
    UpstreamUnreachable = "upstream_unreachable", "UF", Upstream,
        "The network has no way to the upstream. Check the pod's routes.";
    /// The service has no endpoint that takes traffic.
    NoEndpoints = "no_endpoints", "UH", Agent,
        "The service has no ready endpoint. Check its selector and the weights and addresses of its workloads.";
    /// The address is a service's, the port is not.
    NoServicePort = "no_service_port", "NR", Agent,
        "The service has no such port. Check the port that the client dials and the ports of the Service.";
    /// Every endpoint's breaker is open.
    BreakerOpen = "breaker_open", "UO", Agent,
        "The circuit breaker of every endpoint is open. `mesh-agent services -o wide` shows why.";
    /// A connection limit of a TrafficPolicy.
    ConnectionLimit = "connection_limit", "UO", Agent,
        "A connection limit of the service's TrafficPolicy is reached.";
    /// The agent's own limit, whole or of this workload.
    AgentLimit = "agent_limit", "UO", Agent,
        "The agent carries as many connections as it may, in all or for this workload. `mesh-agent status` shows the limits.";
    /// The agent is out of descriptors.
    NoDescriptors = "no_descriptors", "UO", Agent,
        "The agent has no file descriptor left. Raise its RLIMIT_NOFILE.";
    /// MeshPolicy `outbound: registered-only`.
    UnknownDestination = "unknown_destination", "NR", Agent,
        "The destination is not in the mesh and MeshPolicy allows registered ones only.";
    /// The agent shut down before the connection ended.
    Drained = "drained", "DO", Agent,
        "The agent stopped and the connection had not ended within drainTimeout.";
    /// The workload was released or its namespace is gone.
    WorkloadGone = "workload_gone", "DC", Node,
        "The workload was removed while the connection lived.";
    /// Keepalive or user timeout.
    PeerVanished = "peer_vanished", "DC", Client,
        "A side stopped answering and the kernel gave it up (keepalive, user timeout).";
    /// An AuthorizationPolicy of the destination, decided here.
    PolicyDenied = "policy_denied", "DENY", Agent,
        "An AuthorizationPolicy does not allow the connection. `mesh-agent explain SOURCE DESTINATION` names it.";
    /// Plain text to a port whose mTLS mode is strict.
    PlaintextRefused = "plaintext_refused", "DENY", Agent,
        "The workload takes mutual TLS only (MeshPolicy mtls: strict) and the client came without. Enrol the client, or make the port permissive.";
    /// This agent has no valid certificate for the workload.
    NoCertificate = "no_certificate", "TLS", Agent,
        "The agent has no valid certificate for the workload, so it makes and takes no tunnel. `mesh-agent certs` shows the last error of the certificate authority.";
    /// The TLS handshake with the other agent failed or took too long.
    TlsFailed = "tls_failed", "TLS", Upstream,
        "The TLS handshake with the other agent failed. The log names the cause: an unknown root, an expired certificate, a protocol that does not fit.";
    /// The other side's certificate is not that of the workload that was dialled.
    PeerIdentity = "peer_identity", "TLS", Upstream,
        "The certificate at the other end is not that of the workload that was dialled. Is the address of another workload by now?";
    /// The other side's certificate is on the revocation list.
    CertificateRevoked = "certificate_revoked", "CERT", Agent,
        "The certificate of the other side is revoked.";
    /// As many TLS handshakes are under way as the agent allows.
    HandshakeLimit = "handshake_limit", "UO", Agent,
        "As many TLS handshakes are under way as the agent allows; more come than end.";
    /// The destination's agent answered 401.
    DeniedByPeer = "denied_by_peer", "DENY", Upstream,
        "The destination's agent refused the connection by its policy. Ask there: `mesh-agent explain SOURCE DESTINATION`.";
    /// The destination's agent answered 503.
    UnreachableByPeer = "unreachable_by_peer", "UF", Upstream,
        "The destination's agent could not reach the application. Is it listening on that port?";
    /// No tunnel at the destination: connecting to port 15008 failed.
    TunnelUnreachable = "tunnel_unreachable", "UF", Upstream,
        "The tunnel port 15008 of the destination did not answer. Does an agent run there, does a network policy drop the port?";
    /// The other side of a tunnel broke HTTP/2 or the contract of HBONE.
    TunnelProtocol = "tunnel_protocol", "UPE", Upstream,
        "The other side of the tunnel did not speak HBONE as expected. The log names what it did.";
    /// The tunnel broke and with it the connections it carried.
    TunnelBroken = "tunnel_broken", "UC", Upstream,
        "The tunnel that carried the connection broke, or its other agent went away.";
    /// The destination is a port of an agent.
    AgentPort = "agent_port", "NR", Agent,
        "The destination is a port of the mesh itself (15008, the capture ports); workloads have no business there.";
    /// The agent could not learn where the connection was to go.
    NoOriginalDestination = "no_original_destination", "NC", Node,
        "The original destination was lost. Look at `mesh-agent status` for full maps.";
    /// The agent failed otherwise; the log has the error.
    Internal = "internal_error", "IE", Agent,
        "The agent failed. Its log has the error.";
    /// The service port has routes and none matches the request.
    RouteNotFound = "route_not_found", "NR", Agent,
        "The service has routes and none of their rules matches the request. `mesh-agent routes SERVICE` shows them in their order.";
    /// The rule's backend is not a service, or not there.
    BackendNotFound = "backend_not_found", "NC", Agent,
        "The rule sends the request to a backend that does not exist or is not a Service. `mesh-agent routes SERVICE` says which.";
    /// The deadline for the whole request.
    RequestTimeout = "request_timeout", "UT", Upstream,
        "The request was not answered within its timeout, all attempts together. `mesh-agent explain` shows where the timeout is set.";
    /// The deadline of one attempt, and no other was left.
    AttemptTimeout = "attempt_timeout", "UT", Upstream,
        "The last attempt was not answered within the timeout of one attempt.";
    /// Nothing moved for the idle timeout.
    IdleTimeout = "idle_timeout", "SI", Upstream,
        "Nothing moved on the stream in either direction for as long as TrafficPolicy timeouts.idle allows.";
    /// `timeouts.maxStream`.
    StreamTimeout = "stream_timeout", "DT", Agent,
        "The stream lasted as long as TrafficPolicy timeouts.maxStream allows.";
    /// The deadline that the client sent.
    DeadlineExceeded = "deadline_exceeded", "UT", Client,
        "The deadline that the client sent with its request (grpc-timeout) passed.";
    /// A retry was due and the service's budget had none left.
    RetryBudget = "retry_budget", "URX", Agent,
        "The request failed and the retry budget of the service is used up: too large a share of its requests fails. Look at the endpoints.";
    /// Every retry was used and the last attempt failed as well.
    RetriesExhausted = "retries_exhausted", "URX", Upstream,
        "Every attempt that the retry policy allows has failed; the answer is that of the last one.";
    /// Too many requests in flight.
    RequestLimit = "request_limit", "UO", Agent,
        "A limit of requests in flight of the service's TrafficPolicy is reached.";
    /// Too many requests wait, or one waited too long.
    PendingLimit = "pending_limit", "UO", Agent,
        "Too many requests wait for the service's limits, or one waited longer than pendingTimeout.";
    /// A rate limit.
    RateLimited = "rate_limited", "RL", Agent,
        "A rate limit of the destination's TrafficPolicy refused the request.";
    /// The client broke HTTP.
    BadRequest = "bad_request", "DPE", Client,
        "The client sent what is not a valid request, or one that two servers could read in two ways. The log says what.";
    /// Headers, their number or the URI are too large.
    RequestTooLarge = "request_too_large", "DPE", Client,
        "The headers of the request, or their number, are larger than the agent takes.";
    /// The request's target is too long.
    UriTooLong = "uri_too_long", "DPE", Client,
        "The target of the request is longer than the agent takes (8 KiB).";
    /// The client did not send its headers or body in time.
    ClientTimeout = "client_timeout", "DT", Client,
        "The client did not send the request within the time that the agent gives it.";
    /// Not HTTP on a port that is declared as HTTP.
    NotHttp = "not_http", "DPE", Client,
        "The port is declared as HTTP and the client spoke something else. Declare the port (appProtocol: tcp), or leave it undeclared to have it detected.";
    /// The client's protocol violations or floods ended the connection.
    ClientAbuse = "client_abuse", "DPE", Client,
        "The client flooded its HTTP/2 connection (resets, pings, settings, continuations) and it was closed.";
    /// The upstream broke HTTP.
    UpstreamProtocol = "upstream_protocol", "UPE", Upstream,
        "The upstream answered with what is not a valid response. Does it speak the version of HTTP that the port declares?";
    /// The upstream refused the stream (REFUSED_STREAM, GOAWAY).
    StreamRefused = "stream_refused", "UR", Upstream,
        "The upstream refused the HTTP/2 stream before it did anything with it.";
    /// The upstream reset one stream.
    StreamReset = "stream_reset", "UR", Upstream,
        "The upstream reset the HTTP/2 stream of the request.";
    /// A gRPC stream ended without its status.
    GrpcStatusMissing = "grpc_status_missing", "UPE", Upstream,
        "The upstream ended a gRPC stream without a grpc-status.";
    /// Seen by the kernel only: the connection was not established.
    ConnectFailed = "connect_failed", "UF", Upstream,
        "The connection was not captured and could not be established.";
    /// Seen by the kernel only: ended by RST or timeout.
    Aborted = "aborted", "UC", Upstream,
        "The connection was not captured and ended by a reset or a timeout.";
}

impl Reason {
    /// True when the agent refused to carry the connection (metric `mesh_connections_refused_total`).
    pub const fn is_refusal(self) -> bool {
        matches!(
            self,
            Self::NoEndpoints
                | Self::NoServicePort
                | Self::BreakerOpen
                | Self::ConnectionLimit
                | Self::AgentLimit
                | Self::NoDescriptors
                | Self::UnknownDestination
                | Self::NoOriginalDestination
                | Self::PolicyDenied
                | Self::PlaintextRefused
                | Self::NoCertificate
                | Self::CertificateRevoked
                | Self::HandshakeLimit
                | Self::AgentPort
                | Self::RouteNotFound
                | Self::BackendNotFound
                | Self::RetryBudget
                | Self::RequestLimit
                | Self::PendingLimit
                | Self::RateLimited
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl serde::Serialize for Reason {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl std::str::FromStr for Reason {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL
            .iter()
            .copied()
            .find(|r| r.as_str() == s)
            .ok_or_else(|| {
                let known: Vec<_> = Self::ALL.iter().map(|r| r.as_str()).collect();
                format!("unknown reason {s:?}; one of {}", known.join(", "))
            })
    }
}
