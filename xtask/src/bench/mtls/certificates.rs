//! Certificates of the Envoys, made by openssl: P-256 as the agents' are, a SPIFFE identity for each side.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::sh;

/// Into `certificates` in the bed's folder, where their configuration looks for them.
pub(in crate::bench) fn make(bed: &Path) -> Result<()> {
    let dir = bed.join("certificates");
    fs::create_dir_all(&dir)?;
    issue(&dir, "ca", &["-subj", "/CN=bench"])?;
    for side in ["client", "server"] {
        let identity =
            format!("subjectAltName=critical,URI:spiffe://bench.test/ns/bench/sa/{side}");
        issue(
            &dir,
            side,
            &[
                "-subj",
                "/",
                "-CA",
                "ca.crt",
                "-CAkey",
                "ca.key",
                "-addext",
                "basicConstraints=critical,CA:FALSE",
                "-addext",
                &identity,
            ],
        )?;
    }
    Ok(())
}

fn issue(dir: &Path, name: &str, args: &[&str]) -> Result<()> {
    let mut openssl = Command::new("openssl");
    openssl
        .current_dir(dir)
        .args(["req", "-x509", "-newkey", "ec"])
        .args(["-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-days", "2", "-keyout", &format!("{name}.key")])
        .args(["-out", &format!("{name}.crt")])
        .args(args);
    sh::output(&mut openssl).map(drop)
}
