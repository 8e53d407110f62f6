//! `cargo xtask bench http-mtls`: requests from node to node through nothing, the mesh's tunnels, and two Envoys with mutual
//! TLS, in turns. Both agents and both Envoys read the requests.

use anyhow::Result;

use super::{config, subjects, works};
use crate::bench::Args;
use crate::bench::bed::Bed;
use crate::bench::figures::{Columns, Figures};
use crate::bench::mtls::agents::Agents;
use crate::bench::mtls::pods::{self, DIRECT_SERVER, MESH_SERVER};
use crate::bench::mtls::{certificates, envoys};
use crate::bench::proxies::{Proxies, Subject, subject};

const ALL: [Subject; 3] = [
    subject("direct", ("direct", "direct-server"), DIRECT_SERVER, 0),
    subject("mesh", ("mesh", "mesh-server"), config::VIP, 0),
    subject(
        "envoy-mtls",
        ("envoy-mtls", "envoy-mtls-server"),
        "10.98.1.13",
        20_000,
    ),
];

const COLUMNS: Columns = Columns {
    subjects: &["direct", "mesh", "envoy-mtls"],
    against: &["envoy-mtls"],
};

pub(in crate::bench) fn run(args: &Args, figures: &mut Figures) -> Result<()> {
    figures.show(COLUMNS);
    let programs = args.build_as(args.wants_subject("mesh"), true)?;
    let mut bed = Bed::new("http-mtls", programs.load.clone())?;
    pods::build(&mut bed)?;
    certificates::make(&bed.dir)?;
    let mut proxies = Proxies::default();
    let mut list = Vec::new();
    for subject in ALL.into_iter().filter(|s| args.wants_subject(s.name)) {
        subjects::start_server(&bed, subject.server, &mut proxies)?;
        let started = match (subject.name, &programs.agent) {
            ("mesh", Some(agent)) => {
                let service = config::service(MESH_SERVER);
                Agents::start(&bed, agent, &service, &[], &mut proxies).map(drop)
            }
            ("envoy-mtls", _) => {
                let ports = (28_081, 18_081);
                envoys(&bed, "http", subject.name, ports, &mut proxies)
            }
            _ => Ok(()),
        };
        if proxies.note(subject.name, started) {
            list.push(subject);
        }
    }
    super::measure(args, bed, proxies, &list, figures, works::all)
}
