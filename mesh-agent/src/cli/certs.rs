//! `mesh-agent certs`: the identities of this node, the roots and the revocation list behind them.

use std::{fmt::Write as _, process::ExitCode};

use super::{
    Global,
    failure::Failure,
    output::{Format, Screen},
    reach,
    table::{Cell, Table, Tint},
    units,
    workloads::dash,
};
use crate::admin::{
    api::{CaState, Certificate, Certificates, RevocationList, TrustRoot},
    query,
};

pub(super) async fn execute(global: &Global, screen: &Screen) -> Result<ExitCode, Failure> {
    let query = query::build(global.namespace.iter().map(|n| ("namespace", n.as_str())));
    let mut certs: Certificates = reach::client(global)?
        .get(&format!("/v1/certs{query}"))
        .await?;
    certs.identities.sort_by(|a, b| a.identity.cmp(&b.identity));
    match global.output {
        Format::Json | Format::Yaml => screen.serialized(global.output, &certs)?,
        format => {
            let wide = format == Format::Wide;
            screen.print(&render(&certs, wide, units::now_ms(), screen))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn render(certs: &Certificates, wide: bool, now_ms: u64, screen: &Screen) -> String {
    let mut out = if certs.identities.is_empty() {
        "no identities (a workload gets one when it is enrolled)\n".to_owned()
    } else {
        identities(&certs.identities, wide, now_ms).render(screen.width, screen.colour)
    };
    out.push('\n');
    authority(&certs.ca, now_ms, screen.colour, &mut out);
    let aliases = match certs.trust_domain_aliases.join(", ") {
        aliases if aliases.is_empty() => aliases,
        aliases => format!(", and as aliases {aliases}"),
    };
    // Writing to a String does not fail, here and below.
    let _ = writeln!(out, "trust domain   {}{aliases}\n", certs.trust_domain);
    if certs.roots.is_empty() {
        let text = "no root is trusted: every tunnel is refused";
        let _ = writeln!(out, "{}", Tint::Bad.paint(text, screen.colour));
    } else {
        out += &roots(&certs.roots, wide, now_ms).render(screen.width, screen.colour);
    }
    if let Some(bundle) = &certs.trust_bundle {
        let _ = writeln!(out, "\ntrust bundle   {}", bundle.path);
        stale(bundle.error.as_deref(), screen.colour, &mut out);
    }
    if let Some(list) = &certs.revocation_list {
        out.push('\n');
        revocation_list(list, now_ms, screen.colour, &mut out);
    }
    out
}

fn identities(rows: &[Certificate], wide: bool, now_ms: u64) -> Table {
    let mut table = Table::new().text("IDENTITY").text("STATE");
    table = if wide {
        table
            .text("NOT BEFORE")
            .text("NOT AFTER")
            .text("NEXT ROTATION")
    } else {
        table.text("BEGAN").spare(3).text("ENDS").text("ROTATES")
    };
    table = table.text("SERIAL").spare(2).text("ISSUER").spare(4);
    if wide {
        table = table.text("WORKLOADS").number("FAILURES");
    }
    table = table.text("LAST ERROR");
    let when = |at: Option<u64>| {
        at.map(|at| {
            if wide {
                units::rfc3339(at)
            } else {
                units::relative(at, now_ms)
            }
        })
    };
    for c in rows {
        let mut cells = vec![
            c.identity.as_str().into(),
            Cell::tinted(
                c.state.as_str(),
                Some(if c.is_valid() { Tint::Good } else { Tint::Bad }),
            ),
            dash(when(c.not_before_unix_ms).as_deref()),
            dash(when(c.not_after_unix_ms).as_deref()),
            dash(when(c.next_rotation_unix_ms).as_deref()),
            dash(Some(c.serial.as_str())),
            dash(Some(c.issuer.as_str())),
        ];
        if wide {
            cells.push(dash(Some(c.workloads.join(",").as_str())));
            cells.push(c.failures.to_string().into());
        }
        cells.push(match &c.last_error {
            Some(error) => Cell::tinted(error.as_str(), Some(Tint::Bad)),
            None => dash(None),
        });
        table.row(cells);
    }
    table
}

fn authority(ca: &CaState, now_ms: u64, colour: bool, out: &mut String) {
    let signed = ca.last_signed_unix_ms.map_or_else(
        || "has not signed since the agent started".to_owned(),
        |at| format!("signed {}", units::relative(at, now_ms)),
    );
    let _ = writeln!(out, "authority      {}: {signed}", ca.name);
    if let Some(error) = &ca.last_error {
        let when = ca
            .last_error_unix_ms
            .map(|at| format!(" ({})", units::relative(at, now_ms)));
        let text = format!("{error}{}", when.unwrap_or_default());
        let _ = writeln!(out, "               {}", Tint::Bad.paint(&text, colour));
    }
}

fn roots(rows: &[TrustRoot], wide: bool, now_ms: u64) -> Table {
    let mut table = Table::new().text("TRUSTED ROOT");
    if wide {
        table = table.text("SERIAL").text("NOT BEFORE").text("NOT AFTER");
    } else {
        table = table.text("ENDS");
    }
    table = table.text("SHA-256").spare(1);
    for root in rows {
        let mut cells = vec![Cell::from(root.subject.as_str())];
        if wide {
            cells.extend([
                root.serial.as_str().into(),
                units::rfc3339(root.not_before_unix_ms).into(),
                units::rfc3339(root.not_after_unix_ms).into(),
            ]);
        } else {
            let ended = root.not_after_unix_ms <= now_ms;
            cells.push(Cell::tinted(
                units::relative(root.not_after_unix_ms, now_ms),
                ended.then_some(Tint::Bad),
            ));
        }
        cells.push(dash(Some(root.fingerprint.as_str())));
        table.row(cells);
    }
    table
}

fn revocation_list(list: &RevocationList, now_ms: u64, colour: bool, out: &mut String) {
    let loaded = list.loaded_unix_ms.map_or_else(
        || "never read".to_owned(),
        |at| format!("read {}", units::relative(at, now_ms)),
    );
    let due = list.next_update_unix_ms.map(|at| {
        let text = format!(", its next was due {}", units::relative(at, now_ms));
        if at <= now_ms {
            Tint::Warn.paint(&text, colour)
        } else {
            text.replace("was due", "is due")
        }
    });
    let _ = writeln!(
        out,
        "revocations    {}: {}, {loaded}{}",
        list.path,
        units::count(
            usize::try_from(list.revoked).unwrap_or(usize::MAX),
            "certificate"
        ),
        due.unwrap_or_default()
    );
    stale(list.error.as_deref(), colour, out);
}

/// The file has changed, to something that cannot be used.
fn stale(error: Option<&str>, colour: bool, out: &mut String) {
    if let Some(error) = error {
        let text = format!("as it is now it is refused, the last good one stays: {error}");
        let _ = writeln!(out, "               {}", Tint::Bad.paint(&text, colour));
    }
}
