//! `mesh-agent connections`: open ones, closed ones (`--closed`), or a live view (`--watch`).

use std::{process::ExitCode, time::Duration};

use clap::Args;

use super::{
    Global,
    failure::Failure,
    output::Screen,
    reach,
    table::{Cell, Table, Tint},
    units, watch,
    workloads::dash,
};
use crate::{
    admin::{ConnectionFilter, api::Connection},
    telemetry::{Reason, security},
};

#[derive(Debug, Args)]
pub(super) struct Connections {
    /// Draw again each second, with rates; ends with Ctrl-C
    #[arg(short, long, conflicts_with_all = ["closed", "reason"])]
    watch: bool,
    /// Seconds between two drawings
    #[arg(long, value_name = "SECONDS", default_value_t = 1, requires = "watch", value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
    /// Drawings before the end [default: until Ctrl-C]
    #[arg(long, value_name = "N", requires = "watch")]
    count: Option<u64>,
    /// Closed connections, newest first, as far as the agent keeps them (10,000 for 10 minutes)
    #[arg(long)]
    closed: bool,
    /// NAME or NAMESPACE/NAME, at either end
    #[arg(long, value_name = "NAME")]
    workload: Option<String>,
    /// NAME or NAMESPACE/NAME
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Dialled port, or the endpoint's
    #[arg(long)]
    port: Option<u16>,
    /// TCP state (established, close_wait ...) or open
    #[arg(long)]
    state: Option<String>,
    /// Why it ended; implies --closed
    #[arg(long, value_parser = reason)]
    reason: Option<Reason>,
    /// How it is secured: mutual_tls or none
    #[arg(long, value_name = "SECURITY", value_parser = [security::MUTUAL_TLS, security::NONE])]
    security: Option<String>,
    /// SPIFFE ID at either end; PREFIX* and *SUFFIX match too
    #[arg(long, value_name = "SPIFFE_ID")]
    principal: Option<String>,
}

fn reason(text: &str) -> Result<Reason, String> {
    text.parse()
}

impl Connections {
    fn filter(&self, global: &Global) -> ConnectionFilter {
        ConnectionFilter {
            namespace: global.namespace.clone(),
            workload: self.workload.clone(),
            service: self.service.clone(),
            port: self.port,
            state: self.state.clone(),
            reason: self.reason.map(|r| r.as_str().to_owned()),
            security: self.security.clone(),
            principal: self.principal.clone(),
            closed: self.closed || self.reason.is_some() || self.state.as_deref() == Some("closed"),
        }
    }

    pub(super) async fn execute(
        &self,
        global: &Global,
        screen: &Screen,
    ) -> Result<ExitCode, Failure> {
        let filter = self.filter(global);
        let path = format!("/v1/connections{}", filter.to_query());
        let client = reach::client(global)?;
        if self.watch {
            let pace = Duration::from_secs(self.interval);
            let drawing = &mut watch::Rates::default();
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
        let rows: Vec<Connection> = client.get(&path).await?;
        let what = if filter.closed {
            "closed connections"
        } else {
            "open connections"
        };
        screen.list(global.output, &rows, what, |rows, wide| {
            table(rows, wide, None)
        })
    }
}

/// Bytes a second, sent and received.
pub(super) type Rate = (u64, u64);

/// The table of connections; with rates it is that of `--watch`.
pub(super) fn table(rows: &[Connection], wide: bool, rates: Option<&[Rate]>) -> Table {
    let closed = rows.iter().any(Connection::is_closed);
    let mut table = Table::new()
        .text("WORKLOAD")
        .text("DIR")
        .text("PEER")
        .text("ENDPOINT")
        .spare(2)
        .text("PATH")
        .spare(4)
        .text("SECURITY")
        .spare(5);
    table = if closed {
        table.text("REASON")
    } else {
        table.text("STATE").spare(3)
    };
    table = table.number(if closed { "LASTED" } else { "AGE" });
    table = table.number("SENT").number("RECEIVED");
    if rates.is_some() {
        table = table.number("SENT/S").number("RECEIVED/S");
    }
    table = table.number("RTT").spare(6).number("RETRANS").spare(7);
    if wide {
        table = table
            .text("SOURCE")
            .text("DIALLED")
            .text("UPSTREAM")
            .text("SOURCE PRINCIPAL")
            .text("DESTINATION PRINCIPAL")
            .text("POLICY")
            .text("FLAGS")
            .number("COOKIE");
    }
    for (i, c) in rows.iter().enumerate() {
        let rate = rates.map(|rates| rates.get(i).copied().unwrap_or_default());
        table.row(row(c, wide, closed, rate));
    }
    table
}

fn row(c: &Connection, wide: bool, closed: bool, rate: Option<Rate>) -> Vec<Cell> {
    let mut cells = vec![
        dash(c.workload.as_deref()),
        if c.direction == "inbound" {
            "in"
        } else {
            "out"
        }
        .into(),
        peer(c).into(),
        dash(c.upstream_workload.as_deref().or(c.upstream.as_deref())),
        Cell::tinted(
            c.path.as_str(),
            (c.path != "proxied").then_some(Tint::Faint),
        ),
        Cell::tinted(
            if c.security.is_empty() {
                "-"
            } else {
                &c.security
            },
            (c.security == security::MUTUAL_TLS).then_some(Tint::Good),
        ),
    ];
    cells.push(if closed {
        let reason = c.reason.as_deref().unwrap_or("-");
        Cell::tinted(reason, (reason != "completed").then_some(Tint::Bad))
    } else {
        c.state.as_str().into()
    });
    cells.extend([
        units::age(Duration::from_millis(c.duration_ms)).into(),
        units::bytes(c.bytes_sent).into(),
        units::bytes(c.bytes_received).into(),
    ]);
    if let Some((sent, received)) = rate {
        cells.push(units::bytes(sent).into());
        cells.push(units::bytes(received).into());
    }
    cells.extend([
        dash(c.rtt_us.map(units::micros).as_deref()),
        dash(c.retransmits.map(|n| n.to_string()).as_deref()),
    ]);
    if wide {
        cells.extend([
            c.source.as_str().into(),
            c.original_dst.as_str().into(),
            dash(c.upstream.as_deref()),
            dash(c.source_principal.as_deref()),
            dash(c.destination_principal.as_deref()),
            dash(c.policy.as_deref()),
            dash(c.response_flags.as_deref()),
            c.app_cookie.to_string().into(),
        ]);
    }
    cells
}

/// The other end as an operator thinks of it: the service and port dialled, or who dialled.
fn peer(c: &Connection) -> String {
    if c.direction == "inbound" {
        return c
            .source_workload
            .clone()
            .unwrap_or_else(|| c.source.clone());
    }
    match (&c.service, c.original_dst.rsplit_once(':')) {
        (Some(service), Some((_, port))) => format!("{service}:{port}"),
        _ => c.original_dst.clone(),
    }
}
