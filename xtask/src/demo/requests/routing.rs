//! Which version a request reaches.

use anyhow::{Result, ensure};

use super::SOON;
use super::config::{self, CANARY, PODS, WEB};
use super::stage::Stage;
use crate::demo::machine::eventually;
use crate::demo::narrator::Narrator;

pub(super) fn begin(tell: &mut Narrator, stage: &mut Stage) -> Result<()> {
    tell.step(
        "A shop",
        "A client; web in two versions, two pods of the first and one of the second; an api. The servers are small Python \
         programs that can be told to fail or to be slow. Clients dial the service `web`; `web-v1` and `web-v2` \
         stand for its versions. One agent on the node, nothing in the pods.",
    )?;
    stage.build()?;
    tell.say(format!("$ {} &", stage.agent.shown_run()));
    stage.agent.start()?;
    let names = PODS.map(|pod| format!("shop/{}", pod.name));
    let names = names.each_ref().map(String::as_str);
    stage.agent.wait_state(&names, "enrolled")?;
    let (shown, mut command) = stage.agent.cli("services");
    tell.show(&shown, &mut command)?;
    let tally = stage.many(30, &[], WEB)?;
    tally.print();
    for pod in ["web-1", "web-2", "web-3"] {
        ensure!(
            tally.of(&format!("200 from {pod}")) == 10,
            "round robin should give ten to each: {tally}"
        );
    }
    tell.ok("thirty requests of one connection, ten to each pod: what is balanced is the request");
    Ok(())
}

pub(super) fn canary(tell: &mut Narrator, stage: &mut Stage) -> Result<()> {
    tell.step(
        "A canary: 90 to 10",
        "A route of the Gateway API, bound to the service that clients dial. The client changes nothing. The split is \
         in turn and not by chance: after any number of requests each version is within two of its share.",
    )?;
    let text = config::canary();
    tell.print(&text, usize::MAX);
    stage.put_route("web", "everybody", &text)?;
    let tally = stage.many(100, &[], WEB)?;
    tally.print();
    let new = tally.of("200 from web-3");
    ensure!(
        (8..=12).contains(&new) && tally.status(200) == 100,
        "90/10 gave {tally}"
    );
    tell.ok(format!("{new} of 100 reached version 2"));
    Ok(())
}

pub(super) fn testers(tell: &mut Narrator, stage: &mut Stage) -> Result<()> {
    tell.step(
        "Testers see the new version",
        "Another rule for requests with a header. It is looked at first, because it says more about a request; `routes` \
         shows the order.",
    )?;
    stage.put_route("web", "testers", &config::testers())?;
    let (shown, mut command) = stage.agent.cli("routes shop/web");
    tell.show(&shown, &mut command)?;
    let tally = stage.many(20, &["-H", "x-tester: true"], WEB)?;
    tally.print();
    ensure!(
        tally.of("200 from web-3") == 20,
        "a tester saw version 1: {tally}"
    );
    let others = stage.many(20, &["-H", "x-tester: no"], WEB)?;
    others.print();
    ensure!(
        others.of("200 from web-3") <= 4 && others.status(200) == 20,
        "the others should be split: {others}"
    );
    tell.ok("testers all, and of the others a tenth");
    let line = "explain shop/client shop/web:80 -X GET --path /cart -H x-tester:true";
    let (shown, mut command) = stage.agent.cli(line);
    let said = tell.show_head(&shown, &mut command, 12)?;
    ensure!(said.contains("verdict"), "explain gives no verdict");
    tell.ok("explain asks the data path's own code, for a request that nobody sends");
    Ok(())
}

pub(super) fn mirror(tell: &mut Narrator, stage: &mut Stage) -> Result<()> {
    tell.step(
        "A mirror",
        "Version 1 answers everybody. Version 2 gets a copy of each request, and its answers are thrown away: it may fail \
         as it likes, and does.",
    )?;
    stage.behave(CANARY, 500, 0.0)?;
    stage.put_route("web", "mirrored", &config::mirror())?;
    let before = stage.seen(CANARY);
    let tally = stage.many(20, &[], WEB)?;
    tally.print();
    ensure!(
        tally.status(200) == 20 && tally.of("200 from web-3") == 0,
        "the copies are visible: {tally}"
    );
    eventually("version 2 has seen 20 copies", SOON, || {
        Ok(stage.seen(CANARY) - before == 20)
    })?;
    tell.ok("20 answers of version 1; version 2 saw 20 copies and failed all of them, unnoticed");
    stage.behave(CANARY, 200, 0.0)
}
