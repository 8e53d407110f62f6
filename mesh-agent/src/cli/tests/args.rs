//! Arguments, completions, the documentation of both.

use clap::{CommandFactory, Parser};

use crate::cli::{Cli, Command, failure::Failure, output, support_bundle};

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("mesh-agent").chain(line.split(' ')))
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_is_accepted_with_global_options_behind_it() {
    for line in [
        "check",
        "run --config /etc/mesh",
        "run --config /etc/mesh --log-format json --workers 2 --metrics-addr [::]:9000",
        "status",
        "workloads",
        "services -o wide",
        "endpoints shop/web",
        "endpoints web --watch --interval 2 --count 3 -o json",
        "routes",
        "routes shop/web -o wide",
        "run --config /etc/mesh --ca https://istiod.istio-system.svc:15012 --ca-token-file /t --ca-root-file /r --cert-ttl 90m",
        "certs -o wide",
        "run --config /etc/mesh --otlp-endpoint http://127.0.0.1:4317 --trace-sampling 0.5 --access-log-query --max-request-series 10",
        "tap",
        "tap --source client --service shop/web --method GET --path /api --status 5xx --reason retry_budget --limit 5 --duration 30s -o json",
        "policies --workload shop/web-1",
        "explain shop/client web.shop:80",
        "explain shop/client web.shop:80 -X POST --path /a?b -H x:y --header z:1",
        "explain 10.0.0.1 [fd00::2]:80",
        "connections --security none --principal *",
        "connections --closed --reason no_endpoints --port 80 --workload shop/web-1",
        "connections --watch --interval 2 --count 3",
        "config validate /etc/mesh",
        "config dump",
        "log-level",
        "log-level info,access=off",
        "support-bundle --file /tmp/x.tar",
        "release",
        "ca serve --state /s --config /c --dns-name ca.example --ip 10.0.0.1 --trust-domain td --cert-ttl-max 12h",
        "ca token --state /s --ttl 8h",
        "ca revoke --state /s 0a 0b",
        "ca rotate-root --state /s activate --wait 0s",
        "completions bash",
        "version",
    ] {
        let cli = parse(&format!("{line} --node n1 -n shop")).unwrap();
        assert_eq!(cli.global.node.as_deref(), Some("n1"), "{line}");
        assert_eq!(cli.global.namespace.as_deref(), Some("shop"), "{line}");
    }
}

#[test]
fn wrong_usage_is_refused() {
    for line in [
        "run",
        "connections --watch --closed",
        "connections --reason bad",
        "tap --status 5",
        "tap --limit 0",
        "tap --duration 25h",
        "run --config /etc/mesh --otlp-endpoint https://collector:4317",
        "run --config /etc/mesh --trace-sampling 50",
        "run --config /etc/mesh --otlp-endpoint http://127.0.0.1:4317 --trace-sampling 101",
        "connections --interval 2",
        "connections --security tls",
        "run --config /etc/mesh --ca http://ca.example",
        "run --config /etc/mesh --ca https://",
        "run --config /etc/mesh --ca https://ca.example/path",
        "run --config /etc/mesh --cert-ttl 10s",
        "run --config /etc/mesh --cert-ttl 10",
        "explain shop/client",
        "endpoints",
        "endpoints web --count 3",
        "workloads -o xml",
        "status --node ../etc",
        "status --node a/b",
        "ca serve",
        "ca serve --state /s --cert-ttl-max 1day",
        "ca serve --state /s --trust-domain UPPER",
        "ca rotate-root --state /s",
        "frobnicate",
    ] {
        assert!(parse(line).is_err(), "{line}");
    }
}

#[test]
fn every_command_and_option_is_documented_and_the_reverse() {
    let docs = include_str!("../../../../docs/reference/cli.md");
    let command = Cli::command();
    let subcommands = all_below(&command, "");
    for (name, sub) in &subcommands {
        assert!(docs.contains(&format!("`{name}")), "command {name}");
        for arg in sub.get_arguments().chain(command.get_arguments()) {
            if let Some(long) = arg.get_long()
                && !["help", "version"].contains(&long)
            {
                assert!(docs.contains(&format!("--{long}")), "{name} --{long}");
            }
        }
    }
    let known: Vec<String> = subcommands
        .iter()
        .map(|(_, sub)| *sub)
        .chain([&command])
        .flat_map(clap::Command::get_arguments)
        .filter_map(|a| Some(format!("--{}", a.get_long()?)))
        .collect();
    for word in docs.split(|c: char| !(c.is_ascii_lowercase() || c == '-')) {
        if word.starts_with("--")
            && word.len() > 3
            && !["---", "--help", "--unix-socket"].contains(&word)
        {
            assert!(
                word.chars().all(|c| c == '-') || known.iter().any(|k| k == word),
                "{word}"
            );
        }
    }
}

/// Subcommands of every depth, with the words that call them.
fn all_below<'a>(command: &'a clap::Command, path: &str) -> Vec<(String, &'a clap::Command)> {
    let below = command.get_subcommands().flat_map(|sub| {
        let name = format!("{path}{}", sub.get_name());
        let mut all = all_below(sub, &format!("{name} "));
        all.push((name, sub));
        all
    });
    below.collect()
}

#[test]
fn connections_has_a_value_for_each_reason() {
    for reason in crate::telemetry::Reason::ALL {
        let cli = parse(&format!("connections --reason {reason}")).unwrap();
        assert!(matches!(cli.command, Command::Connections(_)));
    }
}

#[test]
fn yaml_and_json_say_the_same() {
    let rows = super::services();
    let json: serde_json::Value =
        serde_json::from_str(&output::serialize(output::Format::Json, &rows).unwrap()).unwrap();
    let yaml = output::serialize(output::Format::Yaml, &rows).unwrap();
    let yaml: serde_json::Value = serde_saphyr::from_str(&yaml).unwrap();
    assert_eq!(json, yaml);
}

#[test]
fn a_bundle_is_a_private_tar_and_no_file_is_overwritten() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("b.tar");
    support_bundle::write_tar(&path, "bundle", &super::bundle(), 1_700_000_000).unwrap();
    let mode = path.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut tar = tar::Archive::new(std::fs::File::open(&path).unwrap());
    let names: Vec<_> = tar
        .entries()
        .unwrap()
        .map(|e| e.unwrap().path().unwrap().into_owned())
        .collect();
    assert_eq!(names, [std::path::Path::new("bundle/status.json")]);
    assert!(support_bundle::write_tar(&path, "bundle", &super::bundle(), 0).is_err());
}

#[test]
fn a_reader_that_went_away_is_no_failure() {
    let failure = Failure::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
    assert_eq!(
        format!("{:?}", failure.report()),
        format!("{:?}", std::process::ExitCode::SUCCESS)
    );
}
