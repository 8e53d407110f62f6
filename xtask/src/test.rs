//! `cargo xtask test [FILTER]`: installs what the tests run, builds, runs them all, and closes with the sum of what the
//! test runner counted.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::{deps, kernel, sh};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only tests whose name contains this.
    filter: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    sh::require_root("the kernel and end-to-end tests")?;
    deps::ensure(&[deps::Group::Test])?;
    kernel::mount_bpffs()?;
    // The end-to-end tests start target/debug/mesh-agent, which `cargo test` alone does not build.
    sh::run(sh::cargo().args(["build", "--workspace"]))?;
    workspace(sh::cargo(), args.filter.as_deref())
}

/// Runs `cargo test --workspace` with this cargo and reports the sum.
pub(crate) fn workspace(mut cargo: std::process::Command, filter: Option<&str>) -> Result<()> {
    cargo
        .args(["test", "--workspace", "--no-fail-fast"])
        .args(filter);
    println!("$ {}", sh::display(&cargo));
    // Cargo names the test binary on stderr ("Running ..."), the runner reports on stdout.
    let mut child = cargo
        .stdout(Stdio::piped())
        .spawn()
        .context("could not start cargo test")?;
    let mut total = Totals::default();
    let mut lines = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            println!("{line}");
            if let Some(counts) = Totals::parse(&line) {
                total.add(&counts);
                lines.push(line);
            }
        }
    }
    let status = child.wait()?;

    println!("\nwhat the test runner said, one line a test binary:");
    for line in &lines {
        println!("{line}");
    }
    if !lines.is_empty() {
        println!("{total}");
    }
    if total.failed > 0 {
        bail!("{} failed", total.failed);
    }
    if !status.success() {
        bail!(
            "cargo test: {status}, though no test failed: one did not build, a binary died before it could report, or \
             something was left behind; see above"
        );
    }
    if total.passed == 0 {
        bail!("no test ran; is the filter right?");
    }
    Ok(())
}

/// What the lines `test result: ...` add up to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Totals {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Totals {
    /// Reads `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s`.
    fn parse(line: &str) -> Option<Self> {
        let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let mut totals = Totals::default();
        for part in counts.split(';') {
            let mut words = part.split_whitespace();
            let (Some(number), Some(what)) = (words.next(), words.next()) else {
                continue;
            };
            let field = match what {
                "passed" => &mut totals.passed,
                "failed" => &mut totals.failed,
                "ignored" | "skipped" => &mut totals.skipped,
                _ => continue,
            };
            *field = number.parse().ok()?;
        }
        Some(totals)
    }

    fn add(&mut self, other: &Totals) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(f, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_what_the_runner_counted() {
        let mut total = Totals::default();
        let output = "running 4 tests\ntest a ... ok\n\
            test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s\n\
            test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 9 filtered out; finished in 0s\n";
        for counts in output.lines().filter_map(Totals::parse) {
            total.add(&counts);
        }
        assert_eq!(
            total,
            Totals {
                passed: 4,
                failed: 2,
                skipped: 1
            }
        );
        assert_eq!(total.to_string(), "4 passed, 2 failed, 1 skipped");
    }

    #[test]
    fn a_line_that_a_test_prints_is_not_a_result() {
        for line in [
            "result: 3 passed",
            "  test result: ok. 3 passed",
            "test result: ok",
        ] {
            assert_eq!(Totals::parse(line), None, "{line}");
        }
    }
}
