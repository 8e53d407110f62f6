//! The command line, as an operator meets it.

use std::{process::Command, sync::Arc, time::Duration};

use mesh_tests::{
    Bed, NetNs,
    agent::binary,
    bed::{NAMESPACE, needs_mesh},
    command, run,
    runner::Shared,
    tests,
    traffic::{self, Server},
};

static BED: Shared<Bed> = Shared::new();

tests! {
    tables_name_what_there_is,
    workloads_say_why_not,
    watch_redraws_with_rates,
    no_agent_is_said_with_what_to_do,
    check_this_machine,
    config_dump_and_log_level,
    support_bundle,
    version_help_and_completions,
    only_root_may_ask,
}

pub(crate) fn teardown() {
    BED.clear();
}

fn bed() -> Arc<Bed> {
    BED.get(|| {
        needs_mesh();
        Bed::plan()
            .pods(&["client", "web1"])
            .service("web", &[(80, 8080)])
            .start()
    })
}

/// Output of a command that must succeed.
fn said(bed: &Bed, args: &[&str]) -> String {
    let out = bed.agent().cli(args);
    assert!(out.status.success(), "{args:?}: {out:?}");
    String::from_utf8(out.stdout).unwrap()
}

/// Exit code and everything said by the binary, without an agent.
fn alone(args: &[&str]) -> (Option<i32>, String) {
    needs_mesh();
    let ns = NetNs::new();
    let out = command::output(
        &ns,
        Command::new(binary()).args(args),
        Duration::from_secs(20),
    );
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    (out.status.code(), text)
}

fn tables_name_what_there_is() {
    let bed = bed();
    assert!(said(&bed, &["status"]).contains(bed.agent().node()));
    let workloads = said(&bed, &["workloads"]);
    assert!(
        workloads.contains("client") && workloads.contains("enrolled"),
        "{workloads}"
    );
    assert!(said(&bed, &["services"]).contains("web"));
    for format in ["wide", "json", "yaml"] {
        for what in ["status", "workloads", "services", "connections"] {
            let text = said(&bed, &[what, "-o", format]);
            assert!(!text.contains('\u{1b}'), "colour outside a terminal");
        }
    }
    let (code, text) = (
        bed.agent().cli(&["workloads", "-o", "xml"]).status.code(),
        (),
    );
    assert_eq!((code, text), (Some(2), ()), "a wrong flag is a usage error");
}

fn workloads_say_why_not() {
    let bed = Bed::plan().pods(&["client", "web1"]).prepare();
    needs_mesh();
    let mut bed = bed;
    bed.config.put(
        "other.yaml",
        &format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: quiet\n---\n\
             apiVersion: mesh.covet.dev/v1alpha1\nkind: Workload\nmetadata:\n  name: unlabelled\n  namespace: quiet\nspec:\n  node: {}\n  addresses: [\"10.9.9.1\"]\n  netns: /run/netns/cm-nothing\n---\n\
             apiVersion: mesh.covet.dev/v1alpha1\nkind: Workload\nmetadata:\n  name: elsewhere\n  namespace: {NAMESPACE}\nspec:\n  node: another\n  addresses: [\"10.9.9.2\"]\n",
            bed.node.name()
        ),
    );
    bed.start_agent();
    let all = bed.agent().json(&["workloads"]);
    let reason = |name: &str| {
        let found = all.as_array().unwrap().iter().find(|w| w["name"] == name);
        found.unwrap_or_else(|| panic!("no {name} in {all}"))["reason"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    assert!(reason("quiet/unlabelled").contains("label"), "{all}");
    assert!(
        reason(&format!("{NAMESPACE}/elsewhere")).contains("another node"),
        "{all}"
    );
}

fn watch_redraws_with_rates() {
    let bed = bed();
    let (client, web) = (bed.pod("client"), bed.pod("web1"));
    let server = Server::echo(web, web.v4(0));
    let stream = traffic::connect(client, server.addr).unwrap();
    crate::common::ping(&stream).unwrap();
    let text = said(&bed, &["connections", "--watch", "--count", "2"]);
    let me = stream.local_addr().unwrap().to_string();
    assert!(text.matches("client").count() >= 2, "drawn twice: {text}");
    assert!(text.contains("/S"), "rates: {text}");
    assert!(text.contains(&server.addr.to_string()), "{me}: {text}");
}

fn no_agent_is_said_with_what_to_do() {
    for what in ["status", "workloads", "services", "connections"] {
        let (code, text) = alone(&[what, "--node", "cm-nobody"]);
        assert_eq!(code, Some(3), "{what}: {text}");
        assert!(
            text.contains("mesh-agent run"),
            "{what} says what to do: {text}"
        );
        assert!(!text.contains("panicked"), "{text}");
    }
}

fn check_this_machine() {
    mesh_tests::prereq::bpf();
    let (code, text) = alone(&["check"]);
    assert_eq!(code, Some(0), "{text}");
    for word in ["cgroup", "bpf"] {
        assert!(text.to_lowercase().contains(word), "{text}");
    }
}

fn config_dump_and_log_level() {
    let bed = bed();
    let dump = said(&bed, &["config", "dump"]);
    assert!(dump.contains("client") && dump.contains("web"), "{dump}");
    let before = said(&bed, &["log-level"]);
    said(&bed, &["log-level", "trace"]);
    assert!(said(&bed, &["log-level"]).contains("trace"));
    said(&bed, &["log-level", before.trim()]);
    assert!(
        !bed.agent()
            .cli(&["log-level", "not a=filter=at all"])
            .status
            .success()
    );
}

fn support_bundle() {
    let bed = bed();
    let home = run::folder().join(run::unique());
    std::fs::create_dir_all(&home).unwrap();
    let mut command = Command::new(binary());
    command
        .args(["support-bundle", "--node", bed.agent().node()])
        .current_dir(&home);
    let out = command::output(&bed.node, &mut command, Duration::from_secs(30));
    assert!(out.status.success(), "{out:?}");
    let made: Vec<_> = std::fs::read_dir(&home).unwrap().flatten().collect();
    assert!(
        made.len() == 1 || out.stdout.len() > 1000,
        "one file or folder: {made:?}, {out:?}"
    );
}

fn version_help_and_completions() {
    let (code, text) = alone(&["version"]);
    assert_eq!(code, Some(0));
    assert!(text.contains("0.1"), "{text}");
    let (code, text) = alone(&["--help"]);
    assert_eq!(code, Some(0));
    for word in ["check", "run", "status", "connections", "release"] {
        assert!(text.contains(word), "{text}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let (code, text) = alone(&["completions", shell]);
        assert_eq!(code, Some(0), "{text}");
        assert!(text.len() > 500);
    }
    assert_eq!(alone(&["frobnicate"]).0, Some(2));
}

fn only_root_may_ask() {
    use std::os::unix::fs::PermissionsExt;
    let bed = bed();
    let socket = format!("/run/mesh-agent/{}.sock", bed.agent().node());
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "{socket}");
}
