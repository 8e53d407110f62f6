//! enrol-100: from the edit that adds 100 pods until all are enrolled.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::config::Config;
use super::pods::NODE;
use crate::bench::admin;
use crate::bench::bed::{Bed, batch, netns_path};
use crate::bench::figures::Figures;
use crate::bench::resources::workload;
use crate::interrupt;

const PODS: usize = 100;
const FILE: &str = "many.yaml";
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) fn run(
    bed: &mut Bed,
    config: &Config,
    rounds: usize,
    figures: &mut Figures,
) -> Result<()> {
    let before = bed.namespaces();
    let outcome = measure(bed, config, rounds, figures);
    bed.remove_namespaces_after(before);
    outcome
}

fn measure(bed: &mut Bed, config: &Config, rounds: usize, figures: &mut Figures) -> Result<()> {
    let mut pods = String::new();
    for n in 0..PODS {
        let ns = bed.add_namespace(&format!("many-{n}"), &[])?;
        let address = format!("10.99.1.{}", n + 1);
        // Both ends of the wire in the pod: an address is all that enrolment needs.
        batch(
            &ns,
            &format!(
                "link set lo up
                 link add eth0 type veth peer name wire0
                 addr add {address}/24 dev eth0
                 link set wire0 up
                 link set eth0 up"
            ),
        )?;
        pods += &workload(
            &bed.ns(NODE),
            &format!("many-{n}"),
            &[address],
            &netns_path(&ns),
            "default",
        );
    }
    let already = enrolled(&admin::workload_states(&bed.ns(NODE))?);
    for _ in 0..rounds {
        let start = Instant::now();
        config.folder.put(FILE, &pods)?;
        wait(bed, "enrolled", |states| enrolled(states) == already + PODS)?;
        let seconds = start.elapsed().as_secs_f64();
        figures.add("enrol-100", "mesh", "seconds", "s", seconds);
        figures.add(
            "enrol-100",
            "mesh",
            "seconds_per_pod",
            "s",
            seconds / PODS as f64,
        );
        config.folder.remove(FILE)?;
        // A pod that is being released cannot be enrolled again yet.
        wait(bed, "released", |states| {
            enrolled(states) == already && !states.iter().any(|s| s == "releasing")
        })?;
    }
    Ok(())
}

fn enrolled(states: &[String]) -> usize {
    states.iter().filter(|s| *s == "enrolled").count()
}

fn wait(bed: &Bed, what: &str, holds: impl Fn(&[String]) -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        interrupt::check()?;
        let states = admin::workload_states(&bed.ns(NODE))?;
        if holds(&states) {
            return Ok(());
        }
        if Instant::now() > deadline {
            let now = enrolled(&states);
            bail!("not all {what} within {PATIENCE:?}; enrolled are {now}");
        }
        thread::sleep(Duration::from_millis(5));
    }
}
