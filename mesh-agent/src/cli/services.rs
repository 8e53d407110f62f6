//! `mesh-agent services`: one line a port; with `-o wide` one line an endpoint.

use std::process::ExitCode;

use super::{
    Global,
    failure::Failure,
    output::Screen,
    reach,
    table::{Cell, Table, Tint},
    workloads::dash,
};
use crate::admin::{
    api::{Service, ServicePort},
    query,
};

pub(super) async fn execute(global: &Global, screen: &Screen) -> Result<ExitCode, Failure> {
    let query = query::build(global.namespace.iter().map(|n| ("namespace", n.as_str())));
    let mut rows: Vec<Service> = reach::client(global)?
        .get(&format!("/v1/services{query}"))
        .await?;
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    screen.list(global.output, &rows, "services", |rows, wide| {
        if wide { endpoints(rows) } else { ports(rows) }
    })
}

pub(super) fn ports(rows: &[Service]) -> Table {
    let mut table = Table::new()
        .text("NAME")
        .text("ADDRESSES")
        .spare(1)
        .text("PORT")
        .text("STRATEGY")
        .spare(2)
        .text("ENDPOINTS")
        .number("CONNECTIONS");
    for service in rows {
        for port in &both_families(&service.ports) {
            table.row(vec![
                service.name.as_str().into(),
                dash(Some(service.addresses.join(",").as_str())),
                text_of(port).into(),
                port.strategy.as_str().into(),
                ready(port),
                connections(port).into(),
            ]);
        }
    }
    table
}

/// The agent tells a port once for each address family of the service, because endpoints have one; a reader of the
/// short table wants one line.
fn both_families(ports: &[ServicePort]) -> Vec<ServicePort> {
    let mut merged: Vec<ServicePort> = Vec::new();
    for port in ports {
        match merged.last_mut() {
            Some(last) if last.port == port.port => last.endpoints.extend(port.endpoints.clone()),
            _ => merged.push(port.clone()),
        }
    }
    merged
}

pub(super) fn endpoints(rows: &[Service]) -> Table {
    let mut table = Table::new()
        .text("NAME")
        .text("PORT")
        .text("STRATEGY")
        .spare(3)
        .text("ENDPOINT")
        .text("WORKLOAD")
        .number("WEIGHT")
        .text("ZONE")
        .spare(2)
        .number("IN FLIGHT")
        .text("BREAKER")
        .text("LAST ERROR")
        .spare(1);
    for service in rows {
        for port in &service.ports {
            let lead = [
                Cell::from(service.name.as_str()),
                text_of(port).into(),
                port.strategy.as_str().into(),
            ];
            if port.endpoints.is_empty() {
                let mut cells = lead.to_vec();
                cells.push(Cell::tinted("none", Some(Tint::Bad)));
                cells.extend(std::iter::repeat_n(Cell::from("-"), 6));
                table.row(cells);
            }
            for e in &port.endpoints {
                let mut cells = lead.to_vec();
                cells.extend([
                    e.address.as_str().into(),
                    dash(e.workload.as_deref()),
                    e.weight.to_string().into(),
                    dash(e.zone.as_deref()),
                    e.in_flight.to_string().into(),
                    Cell::tinted(e.breaker.as_str(), breaker_tint(&e.breaker)),
                    dash(e.last_error.as_deref()),
                ]);
                table.row(cells);
            }
        }
    }
    table
}

fn text_of(port: &ServicePort) -> String {
    port_text(port.port, &port.protocol, port.name.as_deref())
}

/// `80/tcp (http)`
pub(super) fn port_text(port: u16, protocol: &str, name: Option<&str>) -> String {
    let name = name.map(|n| format!(" ({n})")).unwrap_or_default();
    format!("{port}/{protocol}{name}")
}

/// Endpoints that take traffic, of all: `2/3`.
fn ready(port: &ServicePort) -> Cell {
    let all = port.endpoints.len();
    let ready = port
        .endpoints
        .iter()
        .filter(|e| e.weight > 0 && e.breaker != "open")
        .count();
    let tint = match ready {
        0 => Some(Tint::Bad),
        n if n < all => Some(Tint::Warn),
        _ => None,
    };
    Cell::tinted(format!("{ready}/{all}"), tint)
}

/// `12`, or with a limit `12/100`.
fn connections(port: &ServicePort) -> String {
    match port.max_connections {
        Some(max) => format!("{}/{max}", port.connections),
        None => port.connections.to_string(),
    }
}

pub(super) fn breaker_tint(state: &str) -> Option<Tint> {
    match state {
        "open" => Some(Tint::Bad),
        "half-open" => Some(Tint::Warn),
        _ => None,
    }
}
