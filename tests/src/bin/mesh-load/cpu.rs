//! CPU time of the proxy's processes and of the whole machine.

use std::{fs, path::Path, time::Duration};

use crate::options::Options;
use anyhow::Result;

/// What was used up to now.
pub(crate) struct Cpu {
    pids: Vec<u32>,
    proxy: Duration,
    system: Duration,
}

impl Cpu {
    /// Of the processes in `pids=`.
    pub(crate) fn now(options: &Options) -> Result<Self> {
        Ok(Self::of(options.list("pids")?))
    }

    fn of(pids: Vec<u32>) -> Self {
        Self {
            proxy: pids.iter().map(|&pid| on_cpu(pid)).sum(),
            system: system(),
            pids,
        }
    }

    /// Seconds used since: by the processes, and by the kernel for anybody (system, irq, softirq).
    pub(crate) fn since(self) -> (f64, f64) {
        let now = Self::of(self.pids);
        (
            now.proxy.saturating_sub(self.proxy).as_secs_f64(),
            now.system.saturating_sub(self.system).as_secs_f64(),
        )
    }
}

/// Time on a CPU of all threads, in nanoseconds: /proc/PID/stat counts in ticks of 10 ms.
fn on_cpu(pid: u32) -> Duration {
    let tasks = Path::new("/proc").join(pid.to_string()).join("task");
    let nanos = fs::read_dir(tasks).into_iter().flatten().flatten();
    let nanos = nanos.filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}

/// user nice system idle iowait irq softirq ..., in ticks of 10 ms.
fn system() -> Duration {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: Vec<u64> = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|t| t.parse().ok())
        .collect();
    let sum: u64 = [2, 5, 6].iter().filter_map(|&i| ticks.get(i)).sum();
    Duration::from_millis(sum * 10)
}

/// Resident bytes of the processes.
pub(crate) fn resident(pids: &[u32]) -> u64 {
    let of = |pid: &u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    pids.iter().filter_map(of).sum::<u64>() * 1024
}
