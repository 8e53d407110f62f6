//! The steps, in order. Each says what it shows, does it, and checks it.

mod begin;
mod show;
mod trouble;

use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use super::machine::eventually;
use super::narrator::Narrator;
use super::stage::Stage;

/// Within this the agent must have done what it does by itself.
const SOON: Duration = Duration::from_secs(20);
const NAMES: [&str; 3] = ["shop/client", "shop/web-1", "shop/web-2"];

pub(super) fn all(tell: &mut Narrator, stage: &mut Stage, keep: bool) -> Result<()> {
    let mut old = begin::before_the_mesh(tell, stage)?;
    begin::agent_starts(tell, stage)?;
    begin::enrol(tell, stage, &mut old)?;
    show::balance(tell, stage)?;
    let mut live = show::connections(tell, stage)?;
    show::outside_view(tell, stage, &mut live)?;
    show::metrics(tell, stage)?;
    trouble::dead_backend(tell, stage)?;
    trouble::bad_edit(tell, stage)?;
    trouble::killed(tell, stage, &mut old, &mut live)?;
    if keep {
        tell.done();
        return Ok(());
    }
    drop((old, live));
    trouble::release(tell, stage)?;
    tell.step(
        "Clean up",
        "The pods, their servers and files go; nothing of the demo is left on the machine.",
    )
}

fn wait_connection(stage: &Stage, what: &str, is: impl Fn(&Value) -> bool) -> Result<()> {
    eventually(what, SOON, || {
        Ok(stage.agent.list("connections")?.iter().any(&is))
    })
}
