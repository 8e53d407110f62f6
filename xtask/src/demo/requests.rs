//! `cargo xtask demo traffic`: what the mesh does with HTTP requests. Versions side by side, retries, a circuit breaker,
//! timeouts, rate limits; told with real clients and servers.

mod config;
mod failures;
mod limits;
mod routing;
mod stage;

use std::time::Duration;

use anyhow::Result;

use super::narrator::Narrator;
use stage::Stage;

/// Within this the agent must have done what it does by itself.
const SOON: Duration = Duration::from_secs(20);

pub(super) fn run() -> Result<()> {
    let mut tell = Narrator::default();
    let mut stage = Stage::new()?;
    match steps(&mut tell, &mut stage) {
        Ok(()) => super::end(tell, &stage.clean_up()),
        Err(error) => {
            stage.tell_log();
            stage.clean_up();
            Err(super::failed(&tell, error))
        }
    }
}

fn steps(tell: &mut Narrator, stage: &mut Stage) -> Result<()> {
    routing::begin(tell, stage)?;
    routing::canary(tell, stage)?;
    routing::testers(tell, stage)?;
    routing::mirror(tell, stage)?;
    failures::retries(tell, stage)?;
    failures::breaker(tell, stage)?;
    failures::recovery(tell, stage)?;
    failures::timeout(tell, stage)?;
    limits::rate_limit(tell, stage)?;
    limits::tap(tell, stage)?;
    tell.step(
        "Clean up",
        "The pods, their servers, the agent and its files go; nothing of the demo is left on the machine.",
    )
}
