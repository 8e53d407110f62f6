//! Network namespaces: the node, its bridge, the pods on it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::{interrupt, sh};

/// Every namespace of every demo begins so.
pub(super) const PREFIX: &str = "cm-demo-";

/// One namespace: `cm-demo-ID-NAME`.
pub(super) fn namespace(id: &str, name: &str) -> String {
    format!("{PREFIX}{id}-{name}")
}

pub(super) fn path(namespace: &str) -> PathBuf {
    Path::new("/run/netns").join(namespace)
}

/// All namespaces of demos on this machine.
pub(super) fn existing() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/run/netns") else {
        return Vec::new();
    };
    let names = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(PREFIX)).collect()
}

fn ip(line: &str) -> Result<()> {
    sh::output(Command::new("ip").args(line.split(' '))).map(drop)
}

/// A node: a namespace with a bridge that is the gateway of its pods, on the networks 10.88.NET.0/24 and
/// fd88:0:0:NET::/64.
pub(super) fn make_node(ns: &str, net: u8) -> Result<()> {
    add(ns)?;
    ip(&format!("-n {ns} link add br0 type bridge"))?;
    ip(&format!("-n {ns} addr add 10.88.{net}.1/24 dev br0"))?;
    ip(&format!(
        "-n {ns} addr add fd88:0:0:{net}::1/64 dev br0 nodad"
    ))?;
    ip(&format!("-n {ns} link set br0 up"))?;
    // As a node does: what has no route is answered with ICMP instead of silence.
    let forward =
        "echo 1 >/proc/sys/net/ipv4/ip_forward && echo 1 >/proc/sys/net/ipv6/conf/all/forwarding";
    sh::output(inside(ns, "sh").args(["-c", forward])).map(drop)
}

/// A pod on the node's bridge, with an address of each family and its default routes through the node.
pub(super) fn make_pod(node: &str, ns: &str, veth: &str, net: u8, host: u8) -> Result<()> {
    add(ns)?;
    ip(&format!(
        "-n {node} link add {veth} type veth peer name eth0 netns {ns}"
    ))?;
    ip(&format!("-n {node} link set {veth} master br0 up"))?;
    ip(&format!("-n {ns} addr add 10.88.{net}.{host}/24 dev eth0"))?;
    ip(&format!(
        "-n {ns} addr add fd88:0:0:{net}::{host}/64 dev eth0 nodad"
    ))?;
    ip(&format!("-n {ns} link set eth0 up"))?;
    ip(&format!("-n {ns} route add default via 10.88.{net}.1"))?;
    ip(&format!(
        "-n {ns} -6 route add default via fd88:0:0:{net}::1"
    ))
}

/// A wire between two nodes, called `wire` on both, and routes to each other's pods.
pub(super) fn join(a: (&str, u8), b: (&str, u8)) -> Result<()> {
    ip(&format!(
        "-n {} link add wire type veth peer name wire netns {}",
        a.0, b.0
    ))?;
    for ((ns, _), (_, other), me, you) in [(a, b, 1, 2), (b, a, 2, 1)] {
        ip(&format!("-n {ns} addr add 10.89.0.{me}/24 dev wire"))?;
        ip(&format!("-n {ns} addr add fd89::{me}/64 dev wire nodad"))?;
        ip(&format!("-n {ns} link set wire up"))?;
        ip(&format!(
            "-n {ns} route add 10.88.{other}.0/24 via 10.89.0.{you}"
        ))?;
        ip(&format!(
            "-n {ns} -6 route add fd88:0:0:{other}::/64 via fd89::{you}"
        ))?;
    }
    Ok(())
}

fn add(ns: &str) -> Result<()> {
    ip(&format!("netns add {ns}"))?;
    ip(&format!("-n {ns} link set lo up"))
}

/// Ends what runs in a namespace of ours, and waits until it is gone.
pub(super) fn end_processes(ns: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let pids = sh::output(Command::new("ip").args(["netns", "pids", ns])).unwrap_or_default();
        let pids: Vec<i32> = pids
            .lines()
            .filter_map(|line| line.trim().parse().ok())
            .collect();
        if pids.is_empty() || Instant::now() > deadline {
            return;
        }
        for pid in pids.into_iter().filter_map(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Ends what still runs in a namespace of ours and deletes it.
pub(super) fn remove(ns: &str) {
    end_processes(ns);
    if let Err(error) = ip(&format!("netns delete {ns}")) {
        eprintln!("{error:#}");
    }
}

/// A command that runs inside a namespace. Only the network is another (`ip netns exec` would hide bpffs as well).
pub(super) fn inside(ns: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}", path(ns).display()))
        .arg("--")
        .arg(program);
    command
}

/// Asks until it holds; says what did not when time is up.
pub(super) fn eventually(
    what: &str,
    within: Duration,
    mut holds: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + within;
    loop {
        interrupt::check()?;
        let answer = holds();
        match answer {
            Ok(true) => return Ok(()),
            Ok(false) if Instant::now() < deadline => {}
            Err(_) if Instant::now() < deadline => {}
            Ok(false) => bail!("not within {within:?}: {what}"),
            Err(error) => return Err(error.context(format!("not within {within:?}: {what}"))),
        }
        thread::sleep(Duration::from_millis(20));
    }
}
