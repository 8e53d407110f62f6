//! `cargo xtask bench mtls`: from node to node through nothing, the mesh's tunnels, and two Envoys with mutual TLS, in
//! turns.

pub(super) mod agents;
pub(super) mod certificates;
pub(super) mod pods;

use std::path::Path;

use anyhow::{Context, Result};

use super::bed::{Bed, PROXY_CPU};
use super::figures::{Columns, Figures};
use super::process::Running;
use super::proxies::{Proxies, Subject, subject};
use super::works::{PING, Run, SPREAD};
use super::{Args, Programs, load};
use agents::{Agents, VIP};
use pods::{ColdPod, DIRECT_SERVER, SERVER_PODS};

const ALL: [Subject; 4] = [
    subject("direct", ("direct", "direct-server"), DIRECT_SERVER, 0),
    subject("mesh", ("mesh", "mesh-server"), VIP, 0),
    // Each connection in a TLS connection of its own.
    subject(
        "envoy-mtls",
        ("envoy-mtls", "envoy-mtls-server"),
        "10.98.1.13",
        20_000,
    ),
    // Each connection a stream of HTTP/2.
    subject(
        "envoy-connect",
        ("envoy-connect", "envoy-connect-server"),
        "10.98.1.14",
        20_000,
    ),
];

const COLUMNS: Columns = Columns {
    subjects: &["direct", "mesh", "envoy-mtls", "envoy-connect"],
    against: &["direct", "envoy-mtls", "envoy-connect"],
};

/// Above the ports of the warm ones: there the Envoys make a new TLS connection for each connection.
const COLD_OFFSET: u16 = 10_000;

pub(super) fn run(args: &Args, figures: &mut Figures) -> Result<()> {
    figures.show(COLUMNS);
    let programs = args.build(args.wants_subject("mesh"))?;
    let mut bed = Bed::new("mtls", programs.load.clone())?;
    pods::build(&mut bed)?;
    let cold = if args.wants_subject("mesh") && args.wants("connect-cold") {
        pods::build_cold(&mut bed, if args.quick { 4 } else { 64 })?
    } else {
        Vec::new()
    };
    let servers = serve(&bed, &cold)?;
    let mut proxies = Proxies::default();
    let (list, agents) = start(args, &bed, &programs, &cold, &mut proxies)?;
    cipher(args, figures, &mut proxies)?;
    println!("{}", proxies.preamble());
    let mut run = Run {
        args,
        bed: &mut bed,
        proxies: &mut proxies,
        subjects: &list,
        figures,
    };
    let outcome = all(&mut run, agents.as_ref(), &cold).and_then(|()| proxies.complete());
    drop(proxies);
    drop(servers);
    bed.keep_logs(outcome.is_err());
    outcome
}

/// A server in each pod. Those of the cold ones take every address.
fn serve(bed: &Bed, cold: &[ColdPod]) -> Result<Vec<Running>> {
    let mut servers = Vec::new();
    for (pod, ip) in SERVER_PODS {
        servers.push(load::serve(bed, pod, ip, &[])?);
    }
    for pod in cold {
        servers.push(load::serve(bed, &pod.name, "0.0.0.0", &[])?);
    }
    Ok(servers)
}

/// Starts the proxies of those that are wanted; gives those that take part.
fn start(
    args: &Args,
    bed: &Bed,
    programs: &Programs,
    cold: &[ColdPod],
    proxies: &mut Proxies,
) -> Result<(Vec<Subject>, Option<Agents>)> {
    certificates::make(&bed.dir)?;
    let mut list = Vec::new();
    let mut agents = None;
    for subject in ALL {
        let name = subject.name;
        if !args.wants_subject(name) {
            continue;
        }
        let started = match (name, &programs.agent) {
            ("mesh", Some(agent)) => Agents::start(bed, agent, &agents::all_ports(), cold, proxies)
                .map(|both| agents = Some(both)),
            ("envoy-mtls", _) => envoys(bed, "mtls", name, (37_017, 17_010), proxies),
            ("envoy-connect", _) => envoys(bed, "mtls", name, (37_017, 15_008), proxies),
            _ => Ok(()),
        };
        if proxies.note(name, started) {
            list.push(subject);
        }
    }
    Ok((list, agents))
}

/// One in the server's pod and one in the client's, until they listen on the last of their ports.
pub(super) fn envoys(
    bed: &Bed,
    folder: &str,
    name: &'static str,
    (client_port, server_port): (u16, u16),
    proxies: &mut Proxies,
) -> Result<()> {
    let config = |side: &str| format!("{folder}/{name}-{side}.yaml");
    let pod = format!("{name}-server");
    proxies.start_envoy(bed, name, &pod, &config("server"), server_port)?;
    proxies.start_envoy(bed, name, name, &config("client"), client_port)
}

fn all(run: &mut Run<'_>, agents: Option<&Agents>, cold: &[ColdPod]) -> Result<()> {
    run.idle()?;
    run.ping()?;
    for connections in [1, 8, 64] {
        run.stream(connections)?;
    }
    run.connect("connect-warm", &[])?;
    connect_cold(run, agents, cold)?;
    println!("the cost of a policy decision: cargo bench -p mesh-agent --bench policy");
    Ok(())
}

/// New connections that each need a full handshake. The Envoys have ports for that. The mesh shares the tunnel between two
/// workloads, so a fresh agent dials every address of the cold pods once: each is another destination.
fn connect_cold(run: &mut Run<'_>, agents: Option<&Agents>, cold: &[ColdPod]) -> Result<()> {
    let addresses: Vec<_> = cold.iter().flat_map(|p| p.addresses.clone()).collect();
    // As many for everybody.
    let count = if addresses.is_empty() {
        1024
    } else {
        addresses.len()
    };
    let count = [format!("count={count}")];
    run.rounds("connect-cold", &[], |run, subject| {
        let Some(agents) = agents.filter(|_| subject.name == "mesh") else {
            let offset = if subject.name == "direct" {
                0
            } else {
                COLD_OFFSET
            };
            let there = Subject {
                port_offset: subject.port_offset + offset,
                ..subject
            };
            return run.dial("connect-cold", there, there.address, SPREAD, &count);
        };
        agents.renew_client(run.bed, run.proxies)?;
        // With a destination that is not among them, so that the certificate is there and the code has run.
        run.load(subject, "connect", VIP, SPREAD, &["threads=1".to_owned()])?;
        run.dial("connect-cold", subject, &addresses.join(","), PING, &count)
    })
}

/// What one core encrypts, as the limit of everybody's streams.
fn cipher(args: &Args, figures: &mut Figures, proxies: &mut Proxies) -> Result<()> {
    if !args.wants("stream") {
        return Ok(());
    }
    for name in ["aes-128-gcm", "aes-256-gcm"] {
        let mut openssl = std::process::Command::new("taskset");
        openssl
            .args(["--cpu-list", &PROXY_CPU.to_string(), "openssl", "speed"])
            .args(["-mr", "-seconds", "1", "-bytes", "16384", "-evp", name]);
        let said = crate::sh::output(&mut openssl)?;
        // +F:<number>:<name>:<bytes a second>
        let bytes = said.lines().find_map(|l| l.strip_prefix("+F:"));
        let bytes: f64 = bytes
            .and_then(|l| l.rsplit(':').next()?.parse().ok())
            .with_context(|| format!("openssl speed said {said:?}"))?;
        let gbps = bytes * 8.0 / 1e9;
        figures.add(name, "openssl", "gbps", "Gbit/s", gbps);
        let version = super::proxies::version(Path::new("openssl"), "version");
        proxies.add_version(&format!(
            "{version}: {name} {gbps:.1} Gbit/s on one CPU, records of 16 KiB"
        ));
    }
    Ok(())
}
