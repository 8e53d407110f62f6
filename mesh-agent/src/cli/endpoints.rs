//! `mesh-agent endpoints SERVICE`: each endpoint as this agent sees it, once or live.

use std::{fmt::Write as _, process::ExitCode, time::Duration};

use clap::Args;

use super::{
    Global,
    failure::Failure,
    output::Screen,
    reach,
    services::{breaker_tint, port_text},
    table::{Cell, Table, Tint},
    units,
    watch::{self, Drawing},
    workloads::dash,
};
use crate::admin::{
    api::{EndpointDetail, PortEndpoints},
    query,
};

#[derive(Debug, Args)]
pub(super) struct Endpoints {
    /// NAME or NAMESPACE/NAME
    #[arg(value_name = "SERVICE")]
    service: String,
    /// Draw again each second; ends with Ctrl-C
    #[arg(short, long)]
    watch: bool,
    /// Seconds between two drawings
    #[arg(long, value_name = "SECONDS", default_value_t = 1, requires = "watch", value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
    /// Drawings before the end [default: until Ctrl-C]
    #[arg(long, value_name = "N", requires = "watch")]
    count: Option<u64>,
}

impl Endpoints {
    pub(super) async fn execute(
        &self,
        global: &Global,
        screen: &Screen,
    ) -> Result<ExitCode, Failure> {
        let asked = std::iter::once(("service", self.service.as_str()));
        let within = global.namespace.iter().map(|ns| ("namespace", ns.as_str()));
        let path = format!("/v1/endpoints{}", query::build(asked.chain(within)));
        let client = reach::client(global)?;
        if self.watch {
            let pace = Duration::from_secs(self.interval);
            let drawing = &mut Live;
            return watch::run(
                &client,
                &path,
                global.output,
                screen,
                pace,
                self.count,
                drawing,
            )
            .await;
        }
        let rows: Vec<PortEndpoints> = client.get(&path).await?;
        let now = units::now_ms();
        screen.list(global.output, &rows, "ports", |rows, wide| {
            table(rows, wide, now)
        })
    }
}

/// `--watch`
struct Live;

impl Drawing for Live {
    type Row = PortEndpoints;

    fn frame(&mut self, rows: Vec<PortEndpoints>, wide: bool, screen: &Screen) -> String {
        frame(&rows, wide, units::now_ms(), screen)
    }
}

/// A line for each port, then the table.
pub(super) fn frame(rows: &[PortEndpoints], wide: bool, now_ms: u64, screen: &Screen) -> String {
    let mut text = String::new();
    for port in rows {
        let ready = port.endpoints.iter().filter(|e| e.ready).count();
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "{} {}, {}: {ready} of {} endpoints take traffic; {} connections, {} requests",
            port.service,
            port_text(port.port, &port.protocol, port.name.as_deref()),
            port.strategy,
            port.endpoints.len(),
            limited(port.connections, port.max_connections),
            limited(port.requests, port.max_requests),
        );
    }
    text.push('\n');
    text.push_str(&table(rows, wide, now_ms).render(screen.width, screen.colour));
    text
}

/// `12`, or with a limit `12/100`.
fn limited(now: u32, most: Option<u32>) -> String {
    match most {
        Some(most) => format!("{now}/{most}"),
        None => now.to_string(),
    }
}

pub(super) fn table(rows: &[PortEndpoints], wide: bool, now_ms: u64) -> Table {
    let several = rows.iter().any(|port| port.service != rows[0].service);
    let mut table = Table::new();
    if several {
        table = table.text("SERVICE");
    }
    table = table
        .text("PORT")
        .spare(3)
        .text("ENDPOINT")
        .text("WORKLOAD")
        .spare(6)
        .number("WEIGHT")
        .spare(4)
        .number("CONNS")
        .number("REQS")
        .number("LATENCY")
        .text("BREAKER")
        .number("FAILURES")
        .spare(5)
        .text("HEALTH")
        .text("ZONE")
        .spare(2);
    if wide {
        table = table.text("NODE").text("LAST CHECK");
    }
    table = table.text("LAST ERROR").spare(1);
    for port in rows {
        let lead = || {
            let service = several.then(|| Cell::from(port.service.as_str()));
            let text = port_text(port.port, &port.protocol, port.name.as_deref());
            service.into_iter().chain([text.into()])
        };
        if port.endpoints.is_empty() {
            let mut cells: Vec<Cell> = lead().collect();
            cells.push(Cell::tinted("none", Some(Tint::Bad)));
            cells.extend(std::iter::repeat_n(
                Cell::from("-"),
                if wide { 12 } else { 10 },
            ));
            table.row(cells);
        }
        for endpoint in &port.endpoints {
            table.row(lead().chain(row(endpoint, wide, now_ms)).collect());
        }
    }
    table
}

fn row(e: &EndpointDetail, wide: bool, now_ms: u64) -> Vec<Cell> {
    let mut cells = vec![
        Cell::tinted(e.address.as_str(), (!e.ready).then_some(Tint::Warn)),
        dash(e.workload.as_deref()),
        weight(e),
        e.connections.to_string().into(),
        e.requests.to_string().into(),
        dash(e.latency_us.map(latency).as_deref()),
        breaker(e, now_ms),
        Cell::tinted(
            e.consecutive_failures.to_string(),
            (e.consecutive_failures > 0).then_some(Tint::Warn),
        ),
        health(e),
        dash(e.zone.as_deref()),
    ];
    if wide {
        cells.push(dash(e.node.as_deref()));
        cells.push(last_check(e, now_ms));
    }
    cells.push(last_error(e, wide, now_ms));
    cells
}

/// `3`, or while slow start holds it back `1.2 of 3`.
fn weight(e: &EndpointDetail) -> Cell {
    if e.slow_start < 1.0 {
        let text = format!("{:.1} of {}", e.effective_weight, e.weight);
        return Cell::tinted(text, Some(Tint::Warn));
    }
    e.weight.to_string().into()
}

fn latency(us: u64) -> String {
    units::micros(u32::try_from(us).unwrap_or(u32::MAX))
}

/// `closed`, `open, in 12s`
fn breaker(e: &EndpointDetail, now_ms: u64) -> Cell {
    let until = e.open_until_unix_ms.filter(|until| *until > now_ms);
    let text = match until {
        Some(until) => format!("{}, probe {}", e.breaker, units::relative(until, now_ms)),
        None => e.breaker.clone(),
    };
    Cell::tinted(text, breaker_tint(&e.breaker))
}

fn health(e: &EndpointDetail) -> Cell {
    let tint = match e.health.as_str() {
        "healthy" => Some(Tint::Good),
        "unhealthy" => Some(Tint::Bad),
        _ => Some(Tint::Faint),
    };
    Cell::tinted(e.health.as_str(), tint)
}

/// `2s ago`, with what was wrong.
fn last_check(e: &EndpointDetail, now_ms: u64) -> Cell {
    match (&e.check_error, e.last_check_unix_ms) {
        (None, Some(at)) => units::relative(at, now_ms).into(),
        (error, at) => happened(error.as_deref(), at, now_ms),
    }
}

/// Of traffic; without one, and where the column of the last check is not there, that of the check.
fn last_error(e: &EndpointDetail, wide: bool, now_ms: u64) -> Cell {
    match &e.check_error {
        Some(error) if e.last_error.is_none() && !wide => happened(
            Some(&format!("check: {error}")),
            e.last_check_unix_ms,
            now_ms,
        ),
        _ => happened(e.last_error.as_deref(), e.last_error_unix_ms, now_ms),
    }
}

/// `connection refused, 2s ago`
fn happened(what: Option<&str>, at_ms: Option<u64>, now_ms: u64) -> Cell {
    match (what, at_ms) {
        (Some(what), Some(at)) => format!("{what}, {}", units::relative(at, now_ms)).into(),
        (what, _) => dash(what),
    }
}
