//! `cargo xtask bench http`: requests through nothing, the mesh, Envoy, HAProxy and nginx, in turns.

mod config;
pub(super) mod mtls;
mod peak;
mod pods;
mod routes;
mod subjects;
mod works;

use anyhow::Result;

use super::Args;
use super::bed::Bed;
use super::figures::{Columns, Figures};
use super::proxies::{Proxies, Subject};
use super::works::Run;

const COLUMNS: Columns = Columns {
    subjects: &["direct", "mesh", "envoy", "haproxy", "nginx"],
    against: &["envoy", "haproxy", "nginx"],
};

/// Without the others, which take no part in `--quick`.
const QUICK: Columns = Columns {
    subjects: &["direct", "mesh", "envoy"],
    against: &["envoy"],
};

pub(super) fn run(args: &Args, figures: &mut Figures) -> Result<()> {
    let columns = if args.quick { QUICK } else { COLUMNS };
    figures.show(columns);
    let wants = |name: &str| columns.subjects.contains(&name) && args.wants_subject(name);
    // Optimised also when it is to be quick: it is a selection, whose figures mean something.
    let programs = args.build_as(wants("mesh"), true)?;
    let mut bed = Bed::new("http", programs.load)?;
    pods::build(&mut bed)?;
    let mut proxies = Proxies::default();
    subjects::start_server(&bed, "server", &mut proxies)?;
    let agent = programs.agent.as_ref();
    let list = subjects::start(&wants, &bed, agent, &mut proxies)?;
    measure(args, bed, proxies, &list, figures, |run| {
        works::all(run)?;
        routes::run(run)
    })
}

/// Does the works with those that take part, and says at the end who could not.
fn measure(
    args: &Args,
    mut bed: Bed,
    mut proxies: Proxies,
    subjects: &[Subject],
    figures: &mut Figures,
    works: impl FnOnce(&mut Run<'_>) -> Result<()>,
) -> Result<()> {
    peak::note_versions(&mut proxies);
    println!("{}", proxies.preamble());
    let mut run = Run {
        args,
        bed: &mut bed,
        proxies: &mut proxies,
        subjects,
        figures,
    };
    let outcome = works(&mut run).and_then(|()| proxies.complete());
    drop(proxies);
    bed.keep_logs(outcome.is_err());
    outcome
}
