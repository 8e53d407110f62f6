//! A real nginx in a pod, which answers every request with the pod's name and the address that it sees.

use std::{
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::{command::Process, node::Pod, prereq, run, traffic, wait::eventually};

/// Ended with its worker on drop.
#[derive(Debug)]
pub struct Nginx {
    process: Process,
    home: PathBuf,
}

impl Nginx {
    /// Master and worker, HTTP/1 on port 80.
    pub fn start(pod: &Pod) -> Nginx {
        Nginx::run(pod, &[(80, "")], "worker_processes 1;", "access_log off;")
    }

    /// One process alone, so that killing it leaves nobody who answers; HTTP/1 on one port, HTTP/2 without TLS on the next
    /// (this nginx has no port for both). `http` are more directives of its `http`.
    pub fn alone(pod: &Pod, port: u16, http: &str) -> Nginx {
        let ports = [(port, ""), (port + 1, " http2")];
        Nginx::run(pod, &ports, "master_process off;", http)
    }

    fn run(pod: &Pod, ports: &[(u16, &str)], main: &str, http: &str) -> Nginx {
        prereq::programs(&["nginx"]);
        let home = run::folder().join(run::unique());
        std::fs::create_dir_all(home.join("tmp")).expect("make nginx's folder");
        let conf = home.join("nginx.conf");
        let (dir, name) = (home.display(), &pod.name);
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|what| format!("  {what}_temp_path {dir}/tmp;\n"))
            .collect();
        let listen: String = ports
            .iter()
            .flat_map(|(port, kind)| {
                ["", "[::]:"].map(|any| format!("    listen {any}{port}{kind} reuseport;\n"))
            })
            .collect();
        let http = http.replace("HOME", &dir.to_string());
        let text = format!(
            "daemon off;\n{main}\npid {dir}/pid;\nerror_log {dir}/error.log;\nevents {{ worker_connections 512; }}\n\
             http {{\n{temporary}  {http}\n  server {{\n{listen}    \
             location / {{ return 200 \"{name} $remote_addr\\n\"; }}\n  }}\n}}\n"
        );
        std::fs::write(&conf, text).expect("write nginx.conf");
        let program = prereq::find("nginx").expect("looked for above");
        let process = Process::start(pod, "nginx", Command::new(program).arg("-c").arg(&conf));
        let nginx = Nginx { process, home };
        eventually("nginx answers", Duration::from_secs(10), || {
            // It listens before it handles signals, and has its pid file after both.
            std::fs::metadata(nginx.home.join("pid")).is_ok_and(|pid| pid.len() > 0)
                && traffic::connect(pod, (std::net::Ipv4Addr::LOCALHOST, ports[0].0).into()).is_ok()
        });
        nginx
    }

    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// A file of its folder, which the directives call HOME; empty if there is none.
    pub fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.home.join(name)).unwrap_or_default()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        if !self.process.is_running() {
            return;
        }
        // A master that is killed leaves its worker behind.
        self.process.signal(Signal::TERM);
        let end = Instant::now() + Duration::from_secs(5);
        while self.process.is_running() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
