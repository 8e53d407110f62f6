//! `mesh-agent workloads`: who is enrolled, and who is not and why.

use std::process::ExitCode;

use super::{
    Global,
    failure::Failure,
    output::Screen,
    reach,
    table::{Cell, Table, Tint},
    units,
};
use crate::admin::{api::Workload, query};

pub(super) async fn execute(global: &Global, screen: &Screen) -> Result<ExitCode, Failure> {
    let query = query::build(global.namespace.iter().map(|n| ("namespace", n.as_str())));
    let mut rows: Vec<Workload> = reach::client(global)?
        .get(&format!("/v1/workloads{query}"))
        .await?;
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    screen.list(global.output, &rows, "workloads", table)
}

pub(super) fn table(rows: &[Workload], wide: bool) -> Table {
    let mut table = Table::new()
        .text("NAME")
        .text("STATE")
        .text("ADDRESSES")
        .spare(1)
        .number("CONNECTIONS")
        .text("REASON");
    if wide {
        table = table
            .text("NODE")
            .text("SINCE")
            .text("LISTENS")
            .text("FAIL POLICY")
            .text("OUTBOUND")
            .text("MTLS")
            .text("REACHED BY")
            .text("IDENTITY")
            .text("SERVICE ACCOUNT")
            .text("ZONE")
            .number("WEIGHT")
            .text("NETNS")
            .number("COOKIE");
    }
    for w in rows {
        let mut cells = vec![
            Cell::from(w.name.as_str()),
            Cell::tinted(w.state.as_str(), tint(&w.state)),
            w.addresses.join(",").into(),
            w.connections.to_string().into(),
            dash(w.reason.as_deref()),
        ];
        if wide {
            let ports: Vec<_> = w.listen_ports.iter().map(u16::to_string).collect();
            cells.extend([
                dash(w.node.as_deref()),
                dash(
                    w.since_unix_ms
                        .map(|at| units::age(units::since(at)))
                        .as_deref(),
                ),
                dash(Some(ports.join(",").as_str())),
                w.fail_policy.as_str().into(),
                w.outbound.as_str().into(),
                dash(Some(w.mtls.as_str())),
                dash(Some(w.protocol.as_str())),
                dash(Some(w.identity.as_str())),
                dash(Some(w.service_account.as_str())),
                dash(w.zone.as_deref()),
                w.weight.to_string().into(),
                dash(w.netns.as_deref()),
                dash(w.netns_cookie.map(|c| c.to_string()).as_deref()),
            ]);
        }
        table.row(cells);
    }
    table
}

fn tint(state: &str) -> Option<Tint> {
    match state {
        "enrolled" => Some(Tint::Good),
        "failed" => Some(Tint::Bad),
        "not enrolled" => Some(Tint::Faint),
        _ => Some(Tint::Warn),
    }
}

/// `-` for nothing.
pub(super) fn dash(text: Option<&str>) -> Cell {
    text.filter(|t| !t.is_empty()).unwrap_or("-").into()
}
