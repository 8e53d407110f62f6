//! The agent's configuration in the bench.

use std::fs;

use anyhow::Result;

use super::pods::{MESH_SERVER, NODE, SERVER};
use crate::bench::bed::{Bed, netns_path};
use crate::bench::resources::{Folder, NAMESPACE, service, workload};
use crate::bench::works::PORTS;

/// Virtual addresses of the services over the captured and the uncaptured server, and of the one that changes.
pub(super) const VIP: &str = "10.97.0.1";
pub(super) const VIP_BOTH: &str = "10.97.0.2";
pub(super) const VIP_SWITCH: &str = "10.97.0.3";
/// Port of the service that changes, and the two that it can lead to.
pub(super) const SWITCH_PORT: u16 = 7020;
pub(super) const SWITCH_TARGETS: [u16; 2] = [7021, 7022];

/// Services in one file of the large configuration, and endpoints of each.
const FILE: usize = 100;
const ENDPOINTS: usize = 5;

pub(super) struct Config {
    pub(super) folder: Folder,
}

impl Config {
    pub(super) fn new(bed: &Bed) -> Result<Self> {
        let folder = Folder::new(bed.dir.join("etc/config"))?;
        folder.put("namespace.yaml", NAMESPACE)?;
        let mut pods = String::new();
        for (name, address) in [("mesh", "10.99.0.12"), ("meshserver", MESH_SERVER)] {
            let netns = netns_path(&bed.ns(name));
            let addresses = [address.to_owned()];
            pods += &workload(&bed.ns(NODE), name, &addresses, &netns, "default");
        }
        folder.put("pods.yaml", &pods)?;
        folder.put(
            "load.yaml",
            &[
                service("load", VIP, &PORTS.map(|p| (p, p)), &[SERVER.to_owned()]),
                service(
                    "both",
                    VIP_BOTH,
                    &PORTS.map(|p| (p, p)),
                    &[MESH_SERVER.to_owned()],
                ),
            ]
            .concat(),
        )?;
        let config = Self { folder };
        config.switch(SWITCH_TARGETS[0])?;
        Ok(config)
    }

    /// Leads the service that changes to a port.
    pub(super) fn switch(&self, target: u16) -> Result<()> {
        let ports = [(SWITCH_PORT, target)];
        self.folder.put(
            "switch.yaml",
            &service("switch", VIP_SWITCH, &ports, &[SERVER.to_owned()]),
        )
    }

    /// `count` more services that nobody dials, with five endpoints each.
    pub(super) fn crowd(&self, count: usize) -> Result<()> {
        let all: Vec<usize> = (0..count).collect();
        for (file, services) in all.chunks(FILE).enumerate() {
            let mut text = String::new();
            for &n in services {
                let vip = format!("10.{}.{}.{}", 100 + n / 62_500, n / 250 % 250, n % 250 + 1);
                let endpoint = |e: usize| {
                    let at = n * ENDPOINTS + e;
                    format!(
                        "10.{}.{}.{}",
                        120 + at / 62_500,
                        at / 250 % 250,
                        at % 250 + 1
                    )
                };
                let endpoints: Vec<_> = (0..ENDPOINTS).map(endpoint).collect();
                text += &service(&format!("crowd-{n}"), &vip, &[(80, 8080)], &endpoints);
            }
            self.folder.put(&format!("crowd-{file:03}.yaml"), &text)?;
        }
        Ok(())
    }

    pub(super) fn disperse(&self) -> Result<()> {
        for entry in fs::read_dir(&self.folder.dir)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with("crowd-") {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}
