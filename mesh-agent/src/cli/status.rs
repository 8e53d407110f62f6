//! `mesh-agent status`

use std::{fmt::Write as _, process::ExitCode, time::Duration};

use super::{
    Global,
    failure::Failure,
    output::{Format, Screen},
    reach,
    table::Tint,
    units,
};
use crate::admin::api::{IdentitySummary, Status};

/// A map fuller than this is pointed at.
const FULL: f64 = 0.8;

pub(super) async fn execute(global: &Global, screen: &Screen) -> Result<ExitCode, Failure> {
    let status: Status = reach::client(global)?.get("/v1/status").await?;
    match global.output {
        Format::Json | Format::Yaml => screen.serialized(global.output, &status)?,
        format => screen.print(&render(
            &status,
            format == Format::Wide,
            units::now_ms(),
            screen.colour,
        ))?,
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn render(s: &Status, wide: bool, now_ms: u64, colour: bool) -> String {
    let mut out = String::new();
    let mut line = |key: &str, value: String| {
        // Writing to a String does not fail.
        let _ = writeln!(out, "{key:<15}{value}");
    };
    line("node", s.node.clone());
    line(
        "agent",
        format!(
            "{} pid {}, up {}",
            s.version,
            s.pid,
            units::age(Duration::from_secs(s.uptime_seconds))
        ),
    );
    let ready = if s.ready {
        Tint::Good.paint("ready", colour)
    } else {
        Tint::Bad.paint("not ready", colour)
    };
    line("state", ready);
    for c in s.conditions.iter().filter(|c| wide || !c.ok) {
        let mark = if c.ok {
            Tint::Good.paint("ok", colour)
        } else {
            Tint::Bad.paint("not ok", colour)
        };
        line("", format!("{mark}: {}: {}", c.name, c.detail));
    }
    for source in &s.sources {
        let applied = source.last_applied_unix_ms.map_or_else(
            || "never applied".to_owned(),
            |at| format!("applied {} ago", units::age(units::since(at))),
        );
        let refused = if source.errors.is_empty() {
            String::new()
        } else {
            let text = format!(
                "; the newest is refused ({}), this one stays",
                units::count(source.errors.len(), "error")
            );
            Tint::Bad.paint(&text, colour)
        };
        line(
            "configuration",
            format!(
                "{}: {} resources, {applied}{refused}",
                source.name, source.resources
            ),
        );
        for error in &source.errors {
            line("", Tint::Bad.paint(error, colour));
        }
        for warning in &source.warnings {
            line("", Tint::Warn.paint(&format!("warning: {warning}"), colour));
        }
    }
    line(
        "workloads",
        format!(
            "{} known, {} on this node, {} enrolled, {} failed",
            s.workloads.known, s.workloads.local, s.workloads.enrolled, s.workloads.failed
        ),
    );
    line("services", s.services.to_string());
    line(
        "connections",
        format!(
            "{} of at most {} ({} for one workload); {} closed ones kept",
            s.connections.active,
            s.limits.max_connections,
            s.limits.max_connections_per_workload,
            s.connections.closed_kept
        ),
    );
    if s.unmeshed_forbidden > 0 {
        let text = format!(
            "{} older than the enrolment, forbidden by policy, could not be closed (connections, path unmeshed)",
            s.unmeshed_forbidden
        );
        line("", Tint::Bad.paint(&text, colour));
    }
    if !s.identity.ca.name.is_empty() {
        identity(&mut line, &s.identity, now_ms, colour);
    }
    let number = |n: Option<u64>| n.map_or_else(|| "?".to_owned(), |n| n.to_string());
    line(
        "process",
        format!(
            "{} of {} descriptors, {} resident",
            number(s.limits.open_fds),
            number(s.limits.max_fds),
            s.limits
                .resident_bytes
                .map_or_else(|| "?".to_owned(), units::bytes)
        ),
    );
    let attached = if s.kernel.attached {
        "attached".to_owned()
    } else {
        Tint::Bad.paint("not attached", colour)
    };
    line(
        "kernel",
        format!("programs {attached}, pinned in {}", s.kernel.bpffs),
    );
    if wide {
        line("", format!("programs: {}", s.kernel.programs.join(", ")));
    }
    for map in &s.kernel.maps {
        let share = map.entries as f64 / map.max_entries.max(1) as f64;
        if wide || share >= FULL {
            let text = format!("map {}: {} of {}", map.name, map.entries, map.max_entries);
            let tint = (share >= FULL).then_some(Tint::Warn);
            line("", tint.map_or(text.clone(), |t| t.paint(&text, colour)));
        }
    }
    for counter in s.kernel.counters.iter().filter(|c| wide && c.value > 0) {
        line("", format!("counter {}: {}", counter.name, counter.value));
    }
    for warning in &s.warnings {
        line("warning", Tint::Warn.paint(warning, colour));
    }
    out
}

fn identity(
    line: &mut impl FnMut(&str, String),
    identity: &IdentitySummary,
    now_ms: u64,
    colour: bool,
) {
    let (all, valid) = (identity.certificates, identity.valid);
    let soonest = match (&identity.soonest_identity, identity.soonest_expiry_unix_ms) {
        (Some(id), Some(at)) => format!(
            "; the first to end is {id}, {}",
            units::relative(at, now_ms)
        ),
        _ => String::new(),
    };
    let text = format!("{valid} of {all} valid{soonest}");
    let text = if valid < all {
        Tint::Bad.paint(&text, colour)
    } else {
        text
    };
    line("certificates", text);
    let ca = &identity.ca;
    let signed = ca.last_signed_unix_ms.map_or_else(
        || "has not signed yet".to_owned(),
        |at| format!("signed {}", units::relative(at, now_ms)),
    );
    line("", format!("authority {}: {signed}", ca.name));
    if let Some(error) = &ca.last_error {
        line("", Tint::Bad.paint(error, colour));
    }
}
