//! `mesh-agent explain SRC DST[:PORT]`: what would happen to a connection or a request, and why.

use std::{fmt::Write as _, process::ExitCode};

use clap::Args;

use super::{
    Global,
    failure::Failure,
    output::{Format, Screen},
    reach,
    table::Tint,
};
use crate::admin::api::{Candidate, Considered, ExplainQuery, Explanation, Party, Verdict};

#[derive(Debug, Args)]
pub(super) struct Explain {
    /// Who dials: a workload, NAME or NAMESPACE/NAME, or an address
    #[arg(value_name = "SRC")]
    source: String,
    /// Whom: a service or workload (NAME, NAMESPACE/NAME, NAME.NAMESPACE[.svc...]) or an address, and the port; a
    /// service with a single port needs none
    #[arg(value_name = "DST[:PORT]")]
    destination: String,
    /// Ask about a request with this method; GET where only --path or --header is given
    #[arg(short = 'X', long, value_name = "METHOD")]
    method: Option<String>,
    /// Path of the request, with its query
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// A header of the request; Host is DST where it is not given
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
}

impl Explain {
    pub(super) async fn execute(
        &self,
        global: &Global,
        screen: &Screen,
    ) -> Result<ExitCode, Failure> {
        let query = ExplainQuery {
            source: self.source.clone(),
            destination: self.destination.clone(),
            namespace: global.namespace.clone(),
            method: self.method.clone(),
            path: self.path.clone(),
            headers: self.headers.clone(),
        };
        let explanation: Explanation = reach::client(global)?
            .get(&format!("/v1/explain{}", query.to_query()))
            .await?;
        match global.output {
            Format::Json | Format::Yaml => screen.serialized(global.output, &explanation)?,
            format => screen.print(&render(&explanation, format == Format::Wide, screen.colour))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Lines of `key  value`, indented.
struct Lines {
    out: String,
    colour: bool,
}

impl Lines {
    fn line(&mut self, indent: usize, key: &str, value: &str) {
        self.tinted(indent, key, value, None);
    }

    fn tinted(&mut self, indent: usize, key: &str, value: &str, tint: Option<Tint>) {
        let width = 15_usize.saturating_sub(indent);
        // Names come from configuration: none may drive the terminal.
        let mut value: String = value
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        if let Some(tint) = tint {
            value = tint.paint(&value, self.colour);
        }
        // Writing to a String does not fail.
        let _ = writeln!(self.out, "{:indent$}{key:<width$}{value}", "");
    }

    fn verdict(&mut self, indent: usize, v: &Verdict) {
        let (word, tint) = if v.allowed {
            ("allowed", Tint::Good)
        } else {
            ("refused", Tint::Bad)
        };
        let reason = v.reason.as_ref().map(|reason| format!(" ({reason})"));
        let text = format!("{word}{}: {}", reason.unwrap_or_default(), v.why);
        self.tinted(indent, "verdict", &text, Some(tint));
    }
}

/// `wide` shows the policies that did not match as well.
pub(super) fn render(e: &Explanation, wide: bool, colour: bool) -> String {
    let mut lines = Lines {
        out: String::new(),
        colour,
    };
    lines.line(0, "source", &party(&e.source));
    let destination = match &e.service {
        Some(service) => format!("{}:{}, service {service}", e.destination.address, e.port),
        None => format!("{}, port {}", party(&e.destination), e.port),
    };
    lines.line(0, "destination", &destination);
    let captured = if e.captured { "yes" } else { "no" };
    lines.line(0, "captured", &format!("{captured}: {}", e.captured_why));
    if !e.protocol.is_empty() {
        lines.line(0, "protocol", &e.protocol);
    }
    if let Some(route) = &e.route {
        lines.line(
            0,
            "route",
            &format!("{}, match {}: {}", route.rule, route.order, route.matches),
        );
        for backend in &route.backends {
            let text = match &backend.error {
                Some(error) => format!("{} weight {}: {error}", backend.name, backend.weight),
                None => format!(
                    "{} weight {}, {} endpoints ready",
                    backend.name, backend.weight, backend.endpoints
                ),
            };
            lines.line(2, "backend", &text);
        }
    }
    for line in &e.traffic {
        let (key, value) = line.split_once(": ").unwrap_or(("", line));
        lines.line(0, key, value);
    }
    if !e.candidates.is_empty() && e.service.is_some() {
        let eligible = e.candidates.iter().filter(|c| c.eligible).count();
        let text = format!(
            "{eligible} of {} take traffic, chosen by {}",
            e.candidates.len(),
            e.strategy
        );
        lines.line(0, "endpoints", &text);
    }
    for candidate in &e.candidates {
        lines.out.push('\n');
        endpoint(&mut lines, candidate, wide);
    }
    lines.out.push('\n');
    lines.verdict(0, &e.verdict);
    for note in &e.notes {
        lines.tinted(0, "note", note, Some(Tint::Warn));
    }
    lines.out
}

fn endpoint(lines: &mut Lines, c: &Candidate, wide: bool) {
    let mut text = c.address.clone();
    if let Some(workload) = &c.workload {
        text += &format!(" {workload}");
    }
    if let Some(node) = &c.node {
        text += &format!(" on {node}");
    }
    if !c.eligible {
        text += &format!(", takes no traffic: {}", c.why_not);
    }
    lines.tinted(0, "endpoint", &text, (!c.eligible).then_some(Tint::Faint));
    if let Some(identity) = &c.identity {
        lines.line(2, "identity", identity);
    }
    let transport = format!("{}: {}", c.transport.kind, c.transport.why);
    lines.line(2, "transport", &transport);
    match (c.mtls.mode.as_str(), c.mtls.ok) {
        ("", _) => {}
        (mode, true) => lines.line(2, "mtls", mode),
        (mode, false) => {
            let text = format!("{mode}: plain text is refused");
            lines.tinted(2, "mtls", &text, Some(Tint::Bad));
        }
    }
    policies(lines, &c.policies, wide);
    lines.verdict(2, &c.verdict);
}

fn policies(lines: &mut Lines, all: &[Considered], wide: bool) {
    if all.is_empty() {
        return lines.line(2, "policies", "none applies");
    }
    let mut key = "policies";
    for p in all.iter().filter(|p| wide || p.matched) {
        let (answer, tint) = match (p.matched, p.dry_run, p.action.as_str()) {
            (false, ..) => ("no match", Tint::Faint),
            (true, true, _) => ("matches", Tint::Warn),
            (true, false, "DENY") => ("matches", Tint::Bad),
            (true, false, _) => ("matches", Tint::Good),
        };
        let mode = if p.dry_run { " (dry run)" } else { "" };
        let text = format!("{} {}{mode} {answer}: {}", p.action, p.policy, p.why);
        lines.tinted(2, key, &text, Some(tint));
        key = "";
    }
    let silent = all.iter().filter(|p| !p.matched).count();
    if !wide && silent > 0 {
        let text = format!("{silent} looked at did not match (-o wide shows why)");
        lines.line(2, key, &text);
    }
}

/// `shop/web-1 at 10.0.0.2 on n1, enrolled, spiffe://...`
fn party(p: &Party) -> String {
    let mut text = match &p.workload {
        Some(workload) => format!("{workload} at {}", p.address),
        None => p.address.clone(),
    };
    if let Some(node) = &p.node {
        text += &format!(" on {node}");
    }
    for part in [Some(&p.state), p.identity.as_ref()].into_iter().flatten() {
        if !part.is_empty() {
            text += ", ";
            text += part;
        }
    }
    text
}
