//! `mesh-agent policies`: what applies to whom.

use std::process::ExitCode;

use clap::Args;

use super::{
    Global,
    failure::Failure,
    output::Screen,
    reach,
    table::{Cell, Table, Tint},
    workloads::dash,
};
use crate::admin::{api::Policy, named, query};

/// Workloads that the short table names.
const NAMED: usize = 3;

#[derive(Debug, Args)]
pub(super) struct Policies {
    /// Only those that apply to this workload, NAME or NAMESPACE/NAME
    #[arg(long, value_name = "NAME")]
    workload: Option<String>,
}

impl Policies {
    pub(super) async fn execute(
        &self,
        global: &Global,
        screen: &Screen,
    ) -> Result<ExitCode, Failure> {
        let query = query::build(global.namespace.iter().map(|n| ("namespace", n.as_str())));
        let mut rows: Vec<Policy> = reach::client(global)?
            .get(&format!("/v1/policies{query}"))
            .await?;
        if let Some(wanted) = &self.workload {
            rows.retain(|p| p.workloads.iter().any(|w| named(wanted, w)));
        }
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        screen.list(global.output, &rows, "policies", table)
    }
}

pub(super) fn table(rows: &[Policy], wide: bool) -> Table {
    let mut table = Table::new()
        .text("NAME")
        .text("ACTION")
        .text("MODE")
        .text("SCOPE")
        .spare(2)
        .number("RULES");
    if wide {
        table = table.text("SELECTOR").number("ON THIS NODE");
    }
    table = table.text("APPLIES TO");
    for p in rows {
        let (mode, tint) = if p.dry_run {
            ("dry run", Some(Tint::Warn))
        } else {
            ("in effect", None)
        };
        let mut cells = vec![
            Cell::from(p.name.as_str()),
            p.action.as_str().into(),
            Cell::tinted(mode, tint),
            p.scope.as_str().into(),
            p.rules.to_string().into(),
        ];
        if wide {
            cells.push(dash(Some(p.selector.as_str())));
            cells.push(p.local.to_string().into());
        }
        cells.push(applies_to(p, wide));
        table.row(cells);
    }
    table
}

fn applies_to(policy: &Policy, wide: bool) -> Cell {
    let all = policy.workloads.len();
    if all == 0 {
        return Cell::tinted("nothing", Some(Tint::Warn));
    }
    if wide || all <= NAMED {
        return policy.workloads.join(",").into();
    }
    let named = policy.workloads.iter().take(NAMED).cloned();
    let named: Vec<String> = named.collect();
    format!("{} and {} more", named.join(","), all - NAMED).into()
}
