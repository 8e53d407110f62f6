//! What /proc says of this process, for the standard `process_*` metrics and `status`.

use std::fs;

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ProcessStats {
    pub(crate) open_fds: Option<u64>,
    pub(crate) max_fds: Option<u64>,
    pub(crate) resident_bytes: Option<u64>,
    pub(crate) cpu_seconds: Option<f64>,
    /// Since the epoch.
    pub(crate) start_seconds: Option<f64>,
}

/// Open descriptors of this process.
pub(crate) fn open_fds() -> Option<u64> {
    fs::read_dir("/proc/self/fd").ok().map(|d| d.count() as u64)
}

/// Resident memory of this process.
pub(crate) fn resident_bytes() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

pub(crate) fn read() -> ProcessStats {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let mut stats = ProcessStats {
        open_fds: open_fds(),
        max_fds: limit.current,
        resident_bytes: resident_bytes(),
        ..ProcessStats::default()
    };
    let tick = rustix::param::clock_ticks_per_second() as f64;
    // Fields after the command, which stands in parentheses and may hold spaces: state is the first of them.
    if let Ok(stat) = fs::read_to_string("/proc/self/stat")
        && let Some((_, rest)) = stat.rsplit_once(')')
    {
        let fields: Vec<f64> = rest
            .split_whitespace()
            .map(|f| f.parse().unwrap_or(0.0))
            .collect();
        if let (Some(user), Some(system)) = (fields.get(11), fields.get(12)) {
            stats.cpu_seconds = Some((user + system) / tick);
        }
        stats.start_seconds = fields
            .get(19)
            .and_then(|start| Some(boot_seconds()? + start / tick));
    }
    stats
}

fn boot_seconds() -> Option<f64> {
    fs::read_to_string("/proc/stat")
        .ok()?
        .lines()
        .find_map(|l| l.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()
}
