//! `cargo xtask demo mtls`: two nodes and three identities. Certificates from an authority of its own, traffic in
//! tunnels, plain text refused, policies tried, put into effect and cutting connections that live.

mod certificates;
mod config;
mod policies;
mod stage;
mod tunnels;
mod wire;

use std::time::Duration;

use anyhow::Result;

use super::narrator::Narrator;
use stage::Stage;

/// Within this the agents must have done what they do by themselves.
const SOON: Duration = Duration::from_secs(20);

pub(super) fn run() -> Result<()> {
    let mut tell = Narrator::default();
    let mut stage = Stage::new()?;
    match steps(&mut tell, &mut stage) {
        Ok(()) => super::end(tell, &stage.clean_up()),
        Err(error) => {
            stage.tell_logs();
            stage.clean_up();
            Err(super::failed(&tell, error))
        }
    }
}

fn steps(tell: &mut Narrator, stage: &mut Stage) -> Result<()> {
    tunnels::before_the_mesh(tell, stage)?;
    certificates::authority(tell, stage)?;
    certificates::agents(tell, stage)?;
    tunnels::nothing_plain(tell, stage)?;
    tunnels::strict(tell, stage)?;
    policies::dry_run(tell, stage)?;
    policies::edit(tell, stage)?;
    certificates::renewal(tell, stage)?;
    certificates::killed(tell, stage)?;
    tell.step(
        "Clean up",
        "The pods, both agents, the authority and its keys go; nothing of the demo is left on the machine.",
    )
}
