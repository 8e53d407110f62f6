//! `mesh-agent check`: can this machine run the agent, and if not, what is missing and what to do.

use std::{fs, net::SocketAddr, os::fd::AsFd, path::PathBuf};

use mesh_common::{Addr, CAPTURE_PORT_BASE, CAPTURE_PORTS, SELF_TEST_PORT, TUNNEL_PORT};
use rustix::net::netlink::SOCK_DIAG;

use super::{
    CaptureOptions, cgroup, diag, loader,
    netlink::Netlink,
    pins,
    sys::bpf::{self, AttachType},
};

/// One thing that was looked at.
#[derive(Clone, Debug, serde::Serialize)]
pub struct CheckItem {
    pub name: &'static str,
    pub result: CheckResult,
    /// What was found.
    pub detail: String,
    /// What to do; empty if nothing.
    pub fix: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckResult {
    Ok,
    Warn,
    Fail,
}

type Verdict = (CheckResult, String, &'static str);

fn ok(detail: impl Into<String>) -> Verdict {
    (CheckResult::Ok, detail.into(), "")
}

/// Looks at everything that capture needs. Changes nothing.
pub fn check(options: &CaptureOptions) -> Vec<CheckItem> {
    let root = options.cgroup2.clone().map_or_else(cgroup::find, Ok).ok();
    let items: Vec<(&'static str, Verdict)> = vec![
        ("kernel", kernel()),
        ("capabilities", capabilities()),
        ("kernel programs", programs()),
        ("cgroup2", cgroup2(root.as_ref())),
        ("bpffs", bpffs(options)),
        ("open files", open_files()),
        ("other programs at connect()", conflicts(root.as_ref())),
        ("other sk_lookup programs", lookups()),
        ("ports", ports()),
        ("ending connections", ending()),
    ];
    let item = |(name, (result, detail, fix)): (_, Verdict)| CheckItem {
        name,
        result,
        detail,
        fix: fix.into(),
    };
    items.into_iter().map(item).collect()
}

fn kernel() -> Verdict {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|n| n.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < (5, 15) {
        return (
            CheckResult::Fail,
            release,
            "Use a kernel of 5.15 or newer: sock_ops has no namespace cookies before.",
        );
    }
    if version < (5, 17) {
        return (
            CheckResult::Warn,
            release,
            "5.17 or newer is what the agent is tested with.",
        );
    }
    ok(release)
}

fn capabilities() -> Verdict {
    // CAP_NET_ADMIN 12, CAP_SYS_ADMIN 21 (setns, bpf); memory of maps is no rlimit any more since 5.11
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|l| u64::from_str_radix(l.strip_prefix("CapEff:")?.trim(), 16).ok())
        .unwrap_or(0);
    let needed = [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN")];
    let missing: Vec<_> = needed
        .iter()
        .filter(|(bit, _)| effective & (1 << bit) == 0)
        .map(|(_, name)| *name)
        .collect();
    if missing.is_empty() {
        return ok("all that are needed");
    }
    (
        CheckResult::Fail,
        format!("missing {}", missing.join(", ")),
        "Run as root, or give the agent these capabilities.",
    )
}

fn programs() -> Verdict {
    match loader::probe() {
        Ok(()) => ok("this kernel loads all of them"),
        Err(error) => (
            CheckResult::Fail,
            error.to_string(),
            "The kernel needs CONFIG_BPF_SYSCALL, CONFIG_CGROUP_BPF, CONFIG_INET and CONFIG_BPF_JIT; lockdown mode must allow BPF.",
        ),
    }
}

fn cgroup2(root: Option<&PathBuf>) -> Verdict {
    match root {
        Some(path) => ok(path.display().to_string()),
        None => (
            CheckResult::Fail,
            "not mounted".into(),
            "Mount it: mkdir -p /run/cgroup2 && mount -t cgroup2 none /run/cgroup2",
        ),
    }
}

fn bpffs(options: &CaptureOptions) -> Verdict {
    if pins::is_bpffs(&options.bpffs) {
        return ok(options.bpffs.display().to_string());
    }
    if options.mount_bpffs && options.bpffs.is_dir() {
        return (
            CheckResult::Warn,
            format!(
                "none at {}; the agent will mount one",
                options.bpffs.display()
            ),
            "In a container, mount the host's /sys/fs/bpf: what is pinned in the container's own dies with it.",
        );
    }
    (
        CheckResult::Fail,
        format!("none at {}", options.bpffs.display()),
        "Mount it: mount -t bpf bpf /sys/fs/bpf",
    )
}

fn open_files() -> Verdict {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    match limit {
        Some(n) if n < 8192 => (
            CheckResult::Warn,
            format!("hard limit {n}"),
            "Raise it (LimitNOFILE=1048576): each proxied connection takes two, more while splicing.",
        ),
        Some(n) => ok(format!("hard limit {n}")),
        None => ok("unlimited"),
    }
}

/// Programs of others at the cgroup root that also rewrite connect().
fn conflicts(root: Option<&PathBuf>) -> Verdict {
    let Some(root) = root.and_then(|r| fs::File::open(r).ok()) else {
        return (CheckResult::Warn, "cannot look: no cgroup2".into(), "");
    };
    let mut others = Vec::new();
    let mut crowded = false;
    for attach_type in [
        AttachType::Connect4,
        AttachType::Connect6,
        AttachType::SockOps,
    ] {
        let Ok(ids) = bpf::attached_programs(root.as_fd(), attach_type) else {
            continue;
        };
        crowded |= ids.len() >= 56;
        for id in ids {
            let Ok((_, name)) = bpf::program_by_id(id).and_then(|p| bpf::program_info(p.as_fd()))
            else {
                continue;
            };
            if !["connect4", "connect6", "sockets"].contains(&name.as_str())
                && !others.contains(&name)
            {
                others.push(name);
            }
        }
    }
    if crowded {
        return (
            CheckResult::Fail,
            "nearly 64 programs of one type are attached at the cgroup root, the kernel's limit"
                .into(),
            "Remove those of agents that no longer run: mesh-agent release --node NAME",
        );
    }
    if let Some(cilium) = others.iter().find(|n| n.starts_with("cil_")) {
        return (
            CheckResult::Warn,
            format!("Cilium's socket load balancer ({cilium})"),
            "Set socketLB.hostNamespaceOnly=true in Cilium, or services are translated before the mesh sees them.",
        );
    }
    if others.is_empty() {
        return ok("none");
    }
    (
        CheckResult::Warn,
        others.join(", "),
        "They run on the same connections; make sure that they do not rewrite what pods dial.",
    )
}

fn lookups() -> Verdict {
    // That of the agent's own namespace; each pod's is looked at when it is enrolled.
    let Ok(own) = fs::File::open("/proc/self/ns/net") else {
        return (CheckResult::Warn, "cannot look".into(), "");
    };
    match bpf::attached_programs(own.as_fd(), AttachType::SkLookup) {
        Ok(ids) if ids.is_empty() => ok("none in the host's namespace"),
        Ok(ids) => (
            CheckResult::Warn,
            format!("{} in the host's namespace", ids.len()),
            "They do not reach into pods.",
        ),
        Err(e) => (CheckResult::Warn, format!("cannot look: {e}"), ""),
    }
}

/// Whether connections from before the mesh can be ended: asked for one that cannot exist.
fn ending() -> Verdict {
    let nowhere = Addr::from(SocketAddr::from(([127, 0, 0, 1], 0)));
    let asked = Netlink::open(Some(SOCK_DIAG))
        .and_then(|mut socket| diag::destroy(&mut socket, &nowhere, &nowhere, 1));
    match asked {
        Ok(_) => ok("sock_diag ends connections that policy forbids"),
        Err(error) => (
            CheckResult::Warn,
            format!("sock_diag cannot end connections: {error}"),
            "Connections older than the mesh live on when a policy forbids them, and are listed. A kernel with \
             CONFIG_INET_DIAG_DESTROY ends them.",
        ),
    }
}

fn ports() -> Verdict {
    let last = CAPTURE_PORT_BASE + CAPTURE_PORTS - 1;
    match std::net::TcpListener::bind(("0.0.0.0", 15020)) {
        Ok(_) => ok(format!(
            "15020 is free; in pods {SELF_TEST_PORT}, {TUNNEL_PORT} and {CAPTURE_PORT_BASE}-{last} are virtual and need not be"
        )),
        Err(e) => (
            CheckResult::Warn,
            format!("15020: {e}"),
            "An agent runs already, or choose another address for metrics with --metrics-addr.",
        ),
    }
}
