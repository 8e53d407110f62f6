//! `mesh-agent routes [SERVICE]`: what is bound in the order of precedence, and what was rejected and why.

use std::process::ExitCode;

use clap::Args;

use super::{
    Global,
    failure::Failure,
    output::{Format, Screen},
    reach,
    table::{Cell, Table, Tint},
    workloads::dash,
};
use crate::admin::{
    api::{self, BoundMatch, RouteBackend},
    query,
};

#[derive(Debug, Args)]
pub(super) struct Routes {
    /// NAME or NAMESPACE/NAME [default: every service]
    #[arg(value_name = "SERVICE")]
    service: Option<String>,
}

impl Routes {
    pub(super) async fn execute(
        &self,
        global: &Global,
        screen: &Screen,
    ) -> Result<ExitCode, Failure> {
        let service = self.service.iter().map(|name| ("service", name.as_str()));
        let within = global.namespace.iter().map(|ns| ("namespace", ns.as_str()));
        let path = format!("/v1/routes{}", query::build(service.chain(within)));
        let routes: api::Routes = reach::client(global)?.get(&path).await?;
        match global.output {
            Format::Json | Format::Yaml => screen.serialized(global.output, &routes)?,
            _ if routes.routes.is_empty() => {
                screen.remark("no routes: requests go to the service's own endpoints");
            }
            format => screen.print(&render(&routes, format == Format::Wide, screen))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

pub(super) fn render(routes: &api::Routes, wide: bool, screen: &Screen) -> String {
    let mut out = match routes.bound.is_empty() {
        true => "no route is in effect\n".to_owned(),
        false => bound(&routes.bound, wide).render(screen.width, screen.colour),
    };
    let rejected = rejected(&routes.routes);
    if let Some(rejected) = rejected {
        out.push('\n');
        out += &rejected.render(screen.width, screen.colour);
    }
    out
}

fn bound(rows: &[BoundMatch], wide: bool) -> Table {
    let several = rows.iter().any(|row| row.service != rows[0].service);
    let mut table = Table::new();
    if several {
        table = table.text("SERVICE");
    }
    table = table
        .number("PORT")
        .text("CLIENTS")
        .number("ORDER")
        .spare(3)
        .text("RULE")
        .text("MATCHES")
        .text("GOES TO");
    if wide {
        table = table.text("FILTERS").text("SETTINGS");
    }
    let mut last: Option<&BoundMatch> = None;
    for row in rows {
        // What is as in the line before is left out, so that groups are seen.
        let same_service = last.is_some_and(|last| last.service == row.service);
        let same_port = same_service && last.is_some_and(|last| last.port == row.port);
        let same_clients = same_port && last.is_some_and(|last| last.clients == row.clients);
        let shown = |same: bool, text: String| Cell::from(if same { String::new() } else { text });
        let mut cells = Vec::new();
        if several {
            cells.push(shown(same_service, row.service.clone()));
        }
        cells.push(shown(same_port, row.port.to_string()));
        let clients = row.clients.as_deref().unwrap_or("all").to_owned();
        cells.push(shown(same_clients, clients));
        cells.push(row.order.to_string().into());
        cells.push(match &row.rule_name {
            Some(name) => format!("{} ({name})", row.rule).into(),
            None => row.rule.as_str().into(),
        });
        cells.push(row.matches.as_str().into());
        cells.push(goes_to(row));
        if wide {
            cells.push(dash(Some(row.filters.join(", ").as_str())));
            cells.push(dash(Some(row.settings.join(", ").as_str())));
        }
        table.row(cells);
        last = Some(row);
    }
    table
}

fn goes_to(row: &BoundMatch) -> Cell {
    let total: u64 = row.backends.iter().map(|b| u64::from(b.weight)).sum();
    if total == 0 {
        let redirect = row
            .filters
            .iter()
            .find(|filter| filter.starts_with("redirect"));
        return match redirect {
            Some(redirect) => redirect.as_str().into(),
            None => Cell::tinted("500: no backend has weight", Some(Tint::Bad)),
        };
    }
    let weighted = || row.backends.iter().filter(|backend| backend.weight > 0);
    let bad = weighted().any(|backend| backend.error.is_some() || backend.endpoints == 0);
    let texts = weighted().map(|backend| {
        let name = match (&backend.error, backend.endpoints) {
            (Some(error), _) => format!("500 {error}"),
            (None, 0) => format!("{} (503: no endpoints)", backend.name),
            (None, _) => backend.name.clone(),
        };
        match row.backends.len() {
            1 => name,
            _ => format!("{name} {}", percent(backend, total)),
        }
    });
    let texts: Vec<String> = texts.collect();
    Cell::tinted(texts.join(", "), bad.then_some(Tint::Warn))
}

/// With one decimal where it is not whole.
fn percent(backend: &RouteBackend, total: u64) -> String {
    let tenths = (u64::from(backend.weight) * 1000 + total / 2) / total;
    match (tenths / 10, tenths % 10) {
        (0, 0) => "<0.1%".to_owned(),
        (whole, 0) => format!("{whole}%"),
        (whole, tenth) => format!("{whole}.{tenth}%"),
    }
}

fn rejected(routes: &[api::Route]) -> Option<Table> {
    let mut table = Table::new()
        .text("ROUTE")
        .text("PARENT")
        .text("CONDITION")
        .text("REASON")
        .text("WHY");
    let mut any = false;
    for route in routes {
        for (name, about, condition) in route.problems() {
            any = true;
            let (value, tint) = match condition.status {
                true => ("True", Tint::Warn),
                false => ("False", Tint::Bad),
            };
            table.row(vec![
                format!("{}/{}", route.kind, route.name).into(),
                about.into(),
                Cell::tinted(format!("{name}={value}"), Some(tint)),
                condition.reason.as_str().into(),
                condition.message.as_str().into(),
            ]);
        }
    }
    any.then_some(table)
}
