//! Debian packages, without leaving behind the services that some of them start.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{interrupt, sh};

/// Packages that bring a service, with its unit. We want the program alone.
const SERVICES: [(&str, &[&str]); 4] = [
    ("nginx-light", &["nginx"]),
    ("prometheus", &["prometheus", "prometheus-node-exporter"]),
    ("haproxy", &["haproxy"]),
    ("iperf3", &["iperf3"]),
];

const POLICY: &str = "/usr/sbin/policy-rc.d";

pub(super) fn installed(package: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    query.args(["-W", "-f=${db:Status-Abbrev}", package]);
    sh::output(&mut query).is_ok_and(|status| status.starts_with("ii"))
}

pub(super) fn install(packages: &[&str]) -> Result<()> {
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!(
            "this machine has no apt-get (not a Debian); install by hand what corresponds to: {}",
            packages.join(" ")
        );
    }
    sh::require_root("installing Debian packages")?;
    // Ctrl-C ends apt-get; we must live to take the policy file away.
    interrupt::catch()?;
    let running = active_units();
    let policy = NoServices::declare()?;
    sh::run(Command::new("apt-get").args(["update", "-q"]))?;
    sh::run(
        Command::new("apt-get")
            .args(["install", "-y", "-q", "--no-install-recommends"])
            .args(packages)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
    .with_context(|| {
        format!(
            "could not install {} (Debian 12 or later has them)",
            packages.join(" ")
        )
    })?;
    drop(policy);
    keep_stopped(packages, &running)
}

/// While it lives, invoke-rc.d starts nothing: packages would otherwise start nginx, prometheus and others at once.
struct NoServices {
    ours: bool,
}

impl NoServices {
    fn declare() -> Result<Self> {
        let made = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o755)
            .open(POLICY);
        match made {
            Ok(mut file) => {
                file.write_all(
                    b"#!/bin/sh\n# cargo xtask deps: start no service for now.\nexit 101\n",
                )?;
                println!("{POLICY}: for the time of the installation no service is started");
                Ok(Self { ours: true })
            }
            // A container image often brings its own; then the machine's owner has decided.
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(Self { ours: false }),
            Err(e) => Err(e).with_context(|| format!("could not write {POLICY}")),
        }
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours
            && let Err(e) = fs::remove_file(POLICY)
        {
            eprintln!("could not remove {POLICY}: {e}; remove it by hand, or no service starts");
        }
    }
}

fn systemd_runs() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Units of [`SERVICES`] that run before we install anything: those are somebody's and stay.
fn active_units() -> Vec<&'static str> {
    if !systemd_runs() {
        return Vec::new();
    }
    let units = SERVICES.iter().flat_map(|(_, units)| units.iter().copied());
    units
        .filter(|unit| sh::succeeds(Command::new("systemctl").args(["is-active", "-q", unit])))
        .collect()
}

/// Units of what was just installed neither run nor start at the next boot.
fn keep_stopped(packages: &[&str], running: &[&str]) -> Result<()> {
    if !systemd_runs() {
        return Ok(());
    }
    for (package, units) in SERVICES {
        if !packages.contains(&package) {
            continue;
        }
        for unit in units.iter().filter(|unit| !running.contains(unit)) {
            if sh::succeeds(Command::new("systemctl").args(["cat", unit])) {
                println!("{unit}: stopped and disabled, only the program is wanted");
                sh::run(Command::new("systemctl").args(["disable", "--now", "-q", unit]))?;
            }
        }
    }
    Ok(())
}
