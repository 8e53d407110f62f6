//! Tables against the files in `golden/`. After a wanted change: `UPDATE_GOLDEN=1 cargo test -p mesh-agent golden`,
//! then read the difference.

use std::path::PathBuf;

use crate::cli::{
    certs, check, connections, endpoints, explain, output::Screen, policies, routes, services,
    status, table::Table, tap, watch, workloads,
};

fn golden(name: &str, text: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("src/cli/tests/golden")
        .join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
    }
    let wanted =
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(text, wanted, "{}", path.display());
}

fn at(table: &Table, widths: &[Option<usize>]) -> String {
    widths
        .iter()
        .map(|width| {
            let label = width.map_or_else(|| "no limit".into(), |w| format!("{w} columns"));
            format!("--- {label}\n{}", table.render(*width, false))
        })
        .collect()
}

#[test]
fn connection_tables() {
    let rows = super::connections();
    let narrow = connections::table(&rows, false, None);
    golden(
        "connections.txt",
        &at(&narrow, &[None, Some(110), Some(80), Some(60)]),
    );
    golden(
        "connections-wide.txt",
        &at(&connections::table(&rows, true, None), &[None]),
    );
    let closed = super::closed();
    golden(
        "connections-closed.txt",
        &at(&connections::table(&closed, false, None), &[None, Some(80)]),
    );
    let screen = Screen {
        terminal: false,
        colour: false,
        width: Some(110),
        height: None,
    };
    golden(
        "connections-watch.txt",
        &watch::placed(
            &watch::frame(&rows, &[(0, 5 << 20), (10, 0), (0, 0)], false, &screen),
            &screen,
        ),
    );
}

#[test]
fn tapped_requests() {
    let one = super::tapped();
    let text: String = one
        .iter()
        .flat_map(|r| [tap::line(r, false, false), tap::line(r, true, false)])
        .collect();
    golden("tap.txt", &(tap::HEAD.to_owned() + &text));
    assert!(
        !text.contains(['\u{1b}', '\r']),
        "a path cannot drive the terminal"
    );
}

#[test]
fn workload_tables() {
    let rows = super::workloads();
    golden(
        "workloads.txt",
        &at(&workloads::table(&rows, false), &[None, Some(60)]),
    );
    golden(
        "workloads-wide.txt",
        &at(&workloads::table(&rows, true), &[None]),
    );
}

#[test]
fn service_tables() {
    let rows = super::services();
    golden(
        "services.txt",
        &at(&services::ports(&rows), &[None, Some(50)]),
    );
    golden(
        "services-wide.txt",
        &at(&services::endpoints(&rows), &[None, Some(80)]),
    );
}

#[test]
fn endpoint_tables() {
    let rows = super::endpoints();
    golden(
        "endpoints.txt",
        &at(
            &endpoints::table(&rows, false, super::NOW),
            &[None, Some(110), Some(80)],
        ),
    );
    golden(
        "endpoints-wide.txt",
        &at(&endpoints::table(&rows, true, super::NOW), &[None]),
    );
    golden(
        "endpoints-watch.txt",
        &watch::placed(
            &endpoints::frame(&rows[..1], false, super::NOW, &screen(Some(110))),
            &screen(Some(110)),
        ),
    );
}

#[test]
fn status_text() {
    golden(
        "status.txt",
        &status::render(&super::status(), false, super::NOW, false),
    );
    golden(
        "status-wide.txt",
        &status::render(&super::status(), true, super::NOW, false),
    );
}

fn screen(width: Option<usize>) -> Screen {
    Screen {
        terminal: false,
        colour: false,
        width,
        height: None,
    }
}

#[test]
fn certificate_tables() {
    let certs = super::identity::certificates();
    let all: String = [(false, None), (false, Some(100)), (true, None)]
        .iter()
        .map(|(wide, width)| {
            let text = certs::render(&certs, *wide, super::NOW, &screen(*width));
            format!("--- wide {wide}, {width:?}\n{text}")
        })
        .collect();
    golden("certs.txt", &all);
    golden(
        "certs-none.txt",
        &certs::render(
            &super::identity::no_certificates(),
            false,
            super::NOW,
            &screen(None),
        ),
    );
}

#[test]
fn policy_tables() {
    let rows = super::identity::policies();
    golden(
        "policies.txt",
        &at(&policies::table(&rows, false), &[None, Some(80)]),
    );
    golden(
        "policies-wide.txt",
        &at(&policies::table(&rows, true), &[None]),
    );
}

#[test]
fn explanations() {
    for (name, wide) in [("explain.txt", false), ("explain-wide.txt", true)] {
        let all: Vec<String> = super::identity::explanations()
            .iter()
            .map(|e| explain::render(e, wide, false))
            .collect();
        golden(name, &all.join("\n===\n\n"));
    }
}

#[test]
fn names_in_an_explanation_cannot_drive_the_terminal() {
    let mut explanation = super::identity::explanations().remove(0);
    explanation.source.workload = Some("a\u{1b}[2Jb\n".into());
    explanation.candidates[0].policies[0].why = "\u{1b}]0;x\u{7}".into();
    let text = explain::render(&explanation, true, false);
    assert!(!text.contains('\u{1b}'), "{text:?}");
}

#[test]
fn check_text() {
    use crate::capture::{CheckItem, CheckResult};
    let item = |name, result, detail: &str, fix: &str| CheckItem {
        name,
        result,
        detail: detail.into(),
        fix: fix.into(),
    };
    let items = [
        item("kernel", CheckResult::Ok, "6.18.0", ""),
        item(
            "bpffs",
            CheckResult::Fail,
            "/sys/fs/bpf is not a BPF filesystem",
            "mount -t bpf bpf /sys/fs/bpf",
        ),
        item(
            "open files",
            CheckResult::Warn,
            "1024",
            "Raise LimitNOFILE.",
        ),
    ];
    golden("check.txt", &check::render(&items, false));
}

#[test]
fn route_tables() {
    let rows = super::routes::routes();
    let screen = |width| Screen {
        terminal: false,
        colour: false,
        width,
        height: None,
    };
    let at = |wide, width| routes::render(&rows, wide, &screen(width));
    golden(
        "routes.txt",
        &[at(false, None), at(false, Some(100))].join("---\n"),
    );
    golden("routes-wide.txt", &at(true, None));
}
