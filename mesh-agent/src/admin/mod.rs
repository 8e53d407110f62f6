//! The interface behind the command line (Unix socket, root only) and behind Prometheus and the kubelet (TCP).

pub mod api;
