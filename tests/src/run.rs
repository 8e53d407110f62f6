//! The identity of this run, its scratch folder, and the sweep of what dead runs left.
//!
//! A run registers as /run/mesh-tests/PID-STARTTIME before it makes anything. What carries the prefix `cm-PID-` of a
//! registered run whose process is gone is garbage; nothing else is ever touched.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

const REGISTER: &str = "/run/mesh-tests";
const NETNS: &str = "/run/netns";
/// Folders in which an agent leaves something under its node's name.
const AGENT_FOLDERS: [&str; 4] = [
    "/sys/fs/bpf/mesh",
    "/run/mesh-agent",
    "/var/lib/mesh-agent",
    "/sys/fs/cgroup",
];

static COUNTER: AtomicU32 = AtomicU32::new(1);

/// A name nobody else has: `cm-PID-N`. At most 15 characters, so that it may name an interface.
pub fn unique() -> String {
    let n = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("{}{n}", prefix(std::process::id()))
}

/// The next number that no other caller of this run gets.
pub fn next_number() -> u32 {
    COUNTER.fetch_add(1, Ordering::Relaxed)
}

fn prefix(pid: u32) -> String {
    format!("cm-{pid}-")
}

/// The scratch folder of this run; registers it on first use.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let pid = std::process::id();
        let folder = Path::new(REGISTER).join(format!("{pid}-{}", start_time(pid).unwrap_or(0)));
        fs::create_dir_all(&folder).expect("make the scratch folder of the run");
        folder
    })
}

/// When a process began, in clock ticks since boot: field 22 of /proc/PID/stat.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the command in parentheses and may hold spaces.
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(19)?
        .parse()
        .ok()
}

/// Removes what dead runs left; says what it removed.
pub fn sweep_dead() -> Vec<String> {
    let mut removed = Vec::new();
    for entry in read_dir(Path::new(REGISTER)) {
        let Some((pid, began)) = entry
            .file_name()
            .and_then(|n| n.to_str())
            .and_then(|n| n.split_once('-'))
            .and_then(|(p, t)| Some((p.parse::<u32>().ok()?, t.parse::<u64>().ok()?)))
        else {
            continue;
        };
        if start_time(pid) != Some(began) {
            removed.extend(remove_all(pid));
            let _ = fs::remove_dir_all(&entry);
        }
    }
    removed
}

/// Removes everything that still carries the prefix of this run, the scratch folder included; says what it removed.
pub fn sweep_own() -> Vec<String> {
    let removed = remove_all(std::process::id());
    if std::env::var_os("MESH_TESTS_KEEP").is_none() {
        let _ = fs::remove_dir_all(folder());
    }
    removed
}

/// What carries the prefix of this run: namespaces, processes in them, pins, sockets, state.
pub fn leftovers() -> Vec<String> {
    let prefix = prefix(std::process::id());
    let mut found = Vec::new();
    for ns in with_prefix(Path::new(NETNS), &prefix) {
        for pid in processes_in(&ns) {
            found.push(format!("process {pid} in {}", ns.display()));
        }
        found.push(format!("namespace {}", ns.display()));
    }
    for folder in AGENT_FOLDERS {
        for path in with_prefix(Path::new(folder), &prefix) {
            found.push(path.display().to_string());
        }
    }
    found
}

/// How many descriptors this process has open.
pub fn descriptors() -> usize {
    read_dir(Path::new("/proc/self/fd")).len()
}

fn remove_all(pid: u32) -> Vec<String> {
    let prefix = prefix(pid);
    let mut removed = Vec::new();
    let namespaces = with_prefix(Path::new(NETNS), &prefix);
    for ns in &namespaces {
        for process in processes_in(ns) {
            kill(process);
            removed.push(format!("process {process}"));
        }
    }
    for ns in namespaces {
        let name = ns
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let _ = Command::new("ip").args(["netns", "del", &name]).output();
        removed.push(format!("namespace {name}"));
    }
    for folder in AGENT_FOLDERS {
        for path in with_prefix(Path::new(folder), &prefix) {
            // A cgroup goes by rmdir alone, and only when it is empty; pins and state by unlinking.
            let gone = if path.starts_with("/sys/fs/cgroup") {
                fs::remove_dir(&path)
            } else if path.is_dir() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            if gone.is_ok() {
                removed.push(path.display().to_string());
            }
        }
    }
    removed
}

/// Processes whose network namespace is the one at `path`.
pub fn processes_in(path: &Path) -> Vec<u32> {
    let Ok(meta) = fs::metadata(path) else {
        return Vec::new();
    };
    let own = format!("net:[{}]", meta.ino());
    read_dir(Path::new("/proc"))
        .into_iter()
        .filter_map(|entry| entry.file_name()?.to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            fs::read_link(format!("/proc/{pid}/ns/net"))
                .is_ok_and(|link| link.as_os_str().to_str() == Some(own.as_str()))
        })
        .collect()
}

fn kill(pid: u32) {
    let Some(id) = rustix::process::Pid::from_raw(pid as i32) else {
        return;
    };
    let _ = rustix::process::kill_process(id, rustix::process::Signal::KILL);
    let end = std::time::Instant::now() + Duration::from_secs(2);
    while Path::new(&format!("/proc/{pid}/ns/net")).exists() && std::time::Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn with_prefix(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    read_dir(folder)
        .into_iter()
        .filter(|path| {
            path.file_name()
                .and_then(|n| n.to_str())
                .is_some_and(|n| n.starts_with(prefix))
        })
        .collect()
}

fn read_dir(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder)
        .map(|dir| dir.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default()
}
