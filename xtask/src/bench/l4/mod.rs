//! `cargo xtask bench l4`: TCP through nothing, the mesh, HAProxy and Envoy, in turns.

mod config;
mod enrol;
mod pods;
mod reload;
mod subjects;

use anyhow::{Result, ensure};

use super::bed::Bed;
use super::figures::{Columns, Figures};
use super::proxies::Proxies;
use super::works::Run;
use super::{Args, admin, load};
use config::{Config, SWITCH_TARGETS};
use pods::{MESH_SERVER, NODE, SERVER};

const COLUMNS: Columns = Columns {
    subjects: &["direct", "mesh", "mesh-both", "haproxy", "envoy"],
    against: &["haproxy", "envoy"],
};

pub(super) fn run(args: &Args, figures: &mut Figures) -> Result<()> {
    figures.show(COLUMNS);
    let programs = args.build(subjects::want_agent(args))?;
    let mut bed = Bed::new("l4", programs.load)?;
    pods::build(&mut bed)?;
    let config = Config::new(&bed)?;
    let [first, second] = SWITCH_TARGETS;
    let greet = [format!("greet={first},{second}")];
    let servers = [
        load::serve(&bed, "server", SERVER, &greet)?,
        load::serve(&bed, "meshserver", MESH_SERVER, &greet)?,
    ];
    let mut proxies = Proxies::default();
    let agent = programs.agent.as_ref();
    let list = subjects::start(args, &bed, &config, agent, &mut proxies)?;
    println!("{}", proxies.preamble());
    let mut run = Run {
        args,
        bed: &mut bed,
        proxies: &mut proxies,
        subjects: &list,
        figures,
    };
    let outcome = all(&mut run, &config).and_then(|()| proxies.complete());
    drop(proxies);
    drop(servers);
    bed.keep_logs(outcome.is_err());
    outcome
}

fn all(run: &mut Run<'_>, config: &Config) -> Result<()> {
    // First, while every proxy is fresh: memory that it keeps from earlier connections would hide what one costs.
    run.idle()?;
    if run.has("mesh") && run.args.wants("enrol-100") {
        println!("enrol-100 ...");
        enrol::run(run.bed, config, run.args.rounds(), run.figures)?;
    }
    run.ping()?;
    for connections in [1, 8, 64] {
        run.stream(connections)?;
    }
    run.connect("connect-warm", &[])?;
    if run.has("mesh") {
        changes(run, config)?;
    }
    Ok(())
}

/// Reload, and the cost of a connection with few and many services.
fn changes(run: &mut Run<'_>, config: &Config) -> Result<()> {
    let (small, large) = (run.args.wants("connect"), run.args.wants("reload-10k"));
    if !small && !large {
        return Ok(());
    }
    // Ten services with the three that the bench has.
    config.crowd(7)?;
    settle(run, config, 10)?;
    run.connect("connect-10", &["direct", "mesh"])?;
    let rounds = run.args.rounds();
    if large {
        reload::run(run.bed, config, "reload-10", rounds, run.figures)?;
    }
    config.crowd(10_000)?;
    settle(run, config, 10_003)?;
    run.connect("connect-10k", &["direct", "mesh"])?;
    if large {
        println!("reload-10k ...");
        reload::run(run.bed, config, "reload-10k", rounds, run.figures)?;
    }
    config.disperse()
}

/// Waits until the last edit is in effect: one more edit, which comes after it, is.
fn settle(run: &Run<'_>, config: &Config, services: usize) -> Result<()> {
    let mut unused = Figures::default();
    reload::run(run.bed, config, "settle", 2, &mut unused)?;
    let known = admin::services(&run.bed.ns(NODE))?;
    ensure!(
        known == services,
        "the agent knows {known} services of {services}"
    );
    Ok(())
}
