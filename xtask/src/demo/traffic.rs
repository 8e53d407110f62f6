//! Real clients and servers: nginx, curl, socat.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::machine::{eventually, inside};
use super::process::Process;
use super::stage::{CLIENT, Pod, Stage};
use crate::{interrupt, sh};

/// Within this a local answer must come, whatever else the machine does.
const ANSWER: Duration = Duration::from_secs(10);

/// Starts nginx in a pod; it says which pod answers and whom it takes the client to be.
pub(super) fn start_nginx(stage: &mut Stage, pod: Pod) -> Result<()> {
    let process = nginx(&stage.pod_ns(pod), &stage.dir().join(pod.name), pod.name)?;
    stage.servers.push((format!("nginx {}", pod.name), process));
    Ok(())
}

/// nginx in a namespace, with its files in `dir`; it listens when this returns.
pub(super) fn nginx(ns: &str, dir: &Path, name: &str) -> Result<Process> {
    fs::create_dir_all(dir)?;
    let conf = dir.join("nginx.conf");
    fs::write(&conf, nginx_conf(&dir.display().to_string(), name))?;
    let mut command = inside(ns, "nginx");
    command
        .arg("-p")
        .arg(dir)
        .arg("-c")
        .arg(&conf)
        .arg("-e")
        .arg(dir.join("error.log"));
    let process = Process::start(&mut command, &dir.join("nginx.out"))?;
    listening(ns, name, 8080)?;
    Ok(process)
}

fn nginx_conf(dir: &str, name: &str) -> String {
    format!(
        "daemon off;
worker_processes 1;
pid {dir}/nginx.pid;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path {dir}/body;
  proxy_temp_path {dir}/proxy;
  fastcgi_temp_path {dir}/fastcgi;
  uwsgi_temp_path {dir}/uwsgi;
  scgi_temp_path {dir}/scgi;
  server {{
    listen 8080;
    listen [::]:8080;
    default_type text/plain;
    location / {{ return 200 \"{name} answers $remote_addr\\n\"; }}
  }}
}}
"
    )
}

/// Starts an echo server (socat) in a pod.
pub(super) fn start_echo(stage: &mut Stage, pod: Pod) -> Result<()> {
    let log = stage.dir().join(format!("echo-{}.out", pod.name));
    let process = echo(&stage.pod_ns(pod), &log, pod.name)?;
    stage.servers.push((format!("echo {}", pod.name), process));
    Ok(())
}

/// socat that echoes in a namespace; it listens when this returns.
pub(super) fn echo(ns: &str, log: &Path, name: &str) -> Result<Process> {
    let mut command = inside(ns, "socat");
    command.args(["TCP6-LISTEN:7000,fork,reuseaddr,ipv6only=0", "EXEC:cat"]);
    let process = Process::start(&mut command, log)?;
    listening(ns, name, 7000)?;
    Ok(process)
}

fn listening(ns: &str, name: &str, port: u16) -> Result<()> {
    eventually(&format!("{name} listens on port {port}"), ANSWER, || {
        let listeners = sh::output(inside(ns, "ss").args(["-Hltn"]))?;
        Ok(listeners.contains(&format!(":{port} ")))
    })
}

/// `curl URL` in the client pod, ready to run; the first is how the reader would type it.
pub(super) fn curl(stage: &Stage, url: &str) -> (String, Command) {
    let mut command = stage.inside(CLIENT, "curl");
    command.args(["-sS", "--max-time", "10", url]);
    (format!("curl {url}      # in the pod shop/client"), command)
}

/// Fetches in the client pod.
pub(super) fn fetch(stage: &Stage, url: &str) -> Result<String> {
    interrupt::check()?;
    Ok(sh::output(&mut curl(stage, url).1)?.trim().to_owned())
}

/// Fetches what must fail, and at once: a hang would be the one wrong answer. Gives curl's words and the time it took.
pub(super) fn fetch_fails(stage: &Stage, url: &str) -> Result<(String, Duration)> {
    let begun = Instant::now();
    let output = curl(stage, url).1.output()?;
    let took = begun.elapsed();
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() {
        bail!(
            "curl {url} succeeded: {}",
            String::from_utf8_lossy(&output.stdout)
        );
    }
    // 28 is curl's own deadline.
    if output.status.code() == Some(28) {
        bail!("curl {url} hung: {said}");
    }
    Ok((said, took))
}

/// A connection of socat in the client pod to an echo server; it lives until dropped.
pub(super) struct Conversation {
    // Field order: the pipe closes before the process is killed.
    stdin: ChildStdin,
    answers: Receiver<String>,
    _process: Process,
}

impl Conversation {
    pub(super) fn open(stage: &Stage, address: &str) -> Result<Self> {
        Self::from(&stage.pod_ns(CLIENT), address)
    }

    /// The same from another namespace.
    pub(super) fn from(ns: &str, address: &str) -> Result<Self> {
        let mut command = inside(ns, "socat");
        // It ends as soon as the other side has, not half a second later.
        command.args(["-t", "0.01", "-", &format!("TCP:{address}")]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut process = Process::start_piped(&mut command)?;
        let stdin = process.child().stdin.take().context("no pipe to socat")?;
        let stdout = process
            .child()
            .stdout
            .take()
            .context("no pipe from socat")?;
        let (send, answers) = channel();
        // Ends when socat closes its output, at the latest when the process is killed.
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        let mut conversation = Self {
            stdin,
            answers,
            _process: process,
        };
        conversation.say("hello")?;
        Ok(conversation)
    }

    /// Sends a line and waits for its echo.
    pub(super) fn say(&mut self, line: &str) -> Result<()> {
        writeln!(self.stdin, "{line}").context("the connection is closed")?;
        match self.answers.recv_timeout(ANSWER) {
            Ok(answer) if answer == line => Ok(()),
            Ok(answer) => bail!("said {line:?}, the echo is {answer:?}"),
            Err(RecvTimeoutError::Timeout) => bail!("no echo of {line:?} within {ANSWER:?}"),
            Err(RecvTimeoutError::Disconnected) => bail!("the connection is closed"),
        }
    }

    /// Waits until the other side has ended it.
    pub(super) fn wait_end(&self) -> Result<()> {
        match self.answers.recv_timeout(ANSWER) {
            Err(RecvTimeoutError::Disconnected) => Ok(()),
            Ok(line) => bail!("it is alive and says {line:?}"),
            Err(RecvTimeoutError::Timeout) => bail!("it is neither alive nor closed"),
        }
    }
}
