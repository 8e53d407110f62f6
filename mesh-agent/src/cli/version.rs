//! `mesh-agent version`

use std::process::ExitCode;

use serde::Serialize;

use super::{
    Global,
    failure::Failure,
    output::{Format, Screen},
};

#[derive(Debug, Serialize)]
struct Version {
    version: &'static str,
    /// Of the map layouts; part of the pin path.
    abi_version: u32,
    api_version: &'static str,
}

pub(super) fn execute(global: &Global, screen: &Screen) -> Result<ExitCode, Failure> {
    let version = Version {
        version: env!("CARGO_PKG_VERSION"),
        abi_version: mesh_common::ABI_VERSION,
        api_version: "v1",
    };
    match global.output {
        Format::Json | Format::Yaml => screen.serialized(global.output, &version)?,
        Format::Table | Format::Wide => screen.print(&format!(
            "mesh-agent {} (maps v{}, admin API {})\n",
            version.version, version.abi_version, version.api_version
        ))?,
    }
    Ok(ExitCode::SUCCESS)
}
