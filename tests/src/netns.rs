//! A network namespace that lives as long as its value.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::run;

/// A named network namespace (`ip netns`), deleted on drop.
#[derive(Debug)]
pub struct NetNs {
    name: String,
    /// Taken out by [`NetNs::delete`]: an open descriptor keeps the namespace alive.
    handle: Mutex<Option<File>>,
}

impl NetNs {
    /// A new namespace with loopback up and without duplicate address detection, which would delay every address.
    pub fn new() -> NetNs {
        run::folder();
        NetNs::named(run::unique())
    }

    /// As [`NetNs::new`], under a name that was used before.
    pub fn named(name: String) -> NetNs {
        // `ip netns add` prepares /run/netns on first use; two at once can fail.
        static ADD: Mutex<()> = Mutex::new(());
        {
            let _one = ADD.lock().unwrap_or_else(|e| e.into_inner());
            ip(&["netns", "add", &name]);
        }
        let handle = File::open(path_of(&name)).expect("open the new namespace");
        let ns = NetNs {
            name,
            handle: Mutex::new(Some(handle)),
        };
        ns.sysctl("net/ipv6/conf/all/accept_dad", "0");
        ns.sysctl("net/ipv6/conf/default/accept_dad", "0");
        ns
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Path to give to an agent.
    pub fn path(&self) -> PathBuf {
        path_of(&self.name)
    }

    /// Runs `work` on a thread inside the namespace and gives its result; a panic inside is the caller's. A socket made
    /// inside belongs to the namespace for ever and may be used on any thread.
    pub fn enter<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let handle = self.clone_handle();
        let owner = crate::runner::current();
        thread::scope(|scope| {
            let thread = thread::Builder::new()
                .name(self.name.clone())
                .spawn_scoped(scope, move || {
                    crate::runner::adopt(owner);
                    move_into_link_name_space(handle.as_fd(), Some(LinkNameSpaceType::Network))
                        .expect("setns");
                    drop(handle);
                    work()
                })
                .expect("spawn a thread");
            match thread.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Starts a program inside the namespace. Only the network is another: the file system, bpffs included, stays.
    pub fn spawn(&self, command: &mut Command) -> io::Result<std::process::Child> {
        self.enter(|| command.spawn())
    }

    /// Writes a sysctl of this namespace; `key` with slashes.
    pub fn sysctl(&self, key: &str, value: &str) {
        self.enter(|| fs::write(format!("/proc/sys/{key}"), value))
            .unwrap_or_else(|e| panic!("sysctl {key}={value} in {}: {e}", self.name));
    }

    /// `ip` commands inside, one a line.
    pub fn ip_batch(&self, lines: &str) {
        ip_batch(&["-n", &self.name], lines);
    }

    /// Output of one `ip` command inside.
    pub fn ip(&self, args: &[&str]) -> String {
        let mut all = vec!["-n", &self.name];
        all.extend(args);
        ip(&all)
    }

    /// Deletes the name and lets go; whether the namespace is really gone depends on who else holds it.
    pub fn delete(&self) {
        let handle = self.handle.lock().unwrap_or_else(|e| e.into_inner()).take();
        if handle.is_some() {
            drop(handle);
            ip(&["netns", "del", &self.name]);
        }
    }

    fn clone_handle(&self) -> File {
        self.handle
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .as_ref()
            .expect("the namespace was deleted")
            .try_clone()
            .expect("dup")
    }
}

impl Default for NetNs {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for NetNs {
    fn drop(&mut self) {
        if self
            .handle
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .take()
            .is_some()
        {
            let _ = Command::new("ip")
                .args(["netns", "del", &self.name])
                .output();
        }
    }
}

fn path_of(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

/// Runs `ip`; panics with its complaint.
pub fn ip(args: &[&str]) -> String {
    let out = Command::new("ip").args(args).output().expect("run ip");
    assert!(
        out.status.success(),
        "ip {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn ip_batch(options: &[&str], lines: &str) {
    let mut child = Command::new("ip")
        .args(options)
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("run ip");
    child
        .stdin
        .take()
        .expect("piped")
        .write_all(lines.as_bytes())
        .expect("feed ip");
    let out = child.wait_with_output().expect("wait for ip");
    assert!(
        out.status.success(),
        "ip -batch: {}in\n{lines}",
        String::from_utf8_lossy(&out.stderr)
    );
}
