//! Load generators that people use: wrk for HTTP/1.1, h2load for HTTP/2. They run over and over, on new connections each
//! time, while a test does something to what they ask.

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use crate::{command, node::Pod, prereq, runner};

/// Which program, and on how many connections.
#[derive(Clone, Debug)]
pub enum Generator {
    /// With a script, if any: `-s` of wrk.
    Wrk {
        connections: u32,
        script: Option<std::path::PathBuf>,
    },
    /// `-m` of h2load: streams at once on each connection.
    H2load { connections: u32, streams: u32 },
}

/// Runs that are done.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Answers, whatever their status.
    pub answers: u64,
    /// The lines in which the program says that something failed, and how a run ended that was no success.
    pub complaints: Vec<String>,
}

/// A generator at work; ends with the run that is under way.
#[derive(Debug)]
pub struct Running {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Report>>,
}

impl Generator {
    /// Few connections, so that a slow machine is busy and not swamped: two of wrk, one of h2load with four streams.
    pub fn both() -> [Generator; 2] {
        let (connections, script) = (2, None);
        let wrk = Generator::Wrk {
            connections,
            script,
        };
        let h2load = Generator::H2load {
            connections: 1,
            streams: 4,
        };
        [wrk, h2load]
    }

    fn command(&self, url: &str) -> Command {
        // Slowness is no failure here: a request that is never answered ends the run, not its own two seconds.
        let mut command;
        match self {
            Generator::Wrk {
                connections,
                script,
            } => {
                command = Command::new("wrk");
                command.args(["-t", "1", "-d", "1s", "--timeout", "30s"]);
                command.args(["-c", &connections.to_string()]);
                if let Some(script) = script {
                    command.arg("-s").arg(script);
                }
            }
            Generator::H2load {
                connections,
                streams,
            } => {
                command = Command::new("h2load");
                command.args(["-t", "1", "-n", "100", "-N", "30s"]);
                command.args(["-c", &connections.to_string(), "-m", &streams.to_string()]);
            }
        }
        command.arg(url);
        command
    }

    /// One run to its end.
    pub fn run(&self, pod: &Pod, url: &str) -> Report {
        let mut command = self.command(url);
        let out = command::output(pod, &mut command, Duration::from_secs(50));
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        let (answers, mut complaints) = match self {
            Generator::Wrk { .. } => wrk(&said),
            Generator::H2load { .. } => h2load(&said),
        }
        .unwrap_or_else(|| panic!("not understood: {command:?}: {said}"));
        if !out.status.success() {
            let error = String::from_utf8_lossy(&out.stderr);
            complaints.push(format!("{}: {error}", out.status));
        }
        Report {
            answers,
            complaints,
        }
    }

    /// Runs one after another until [`Running::finish`].
    pub fn start(&self, pod: &Arc<Pod>, url: &str) -> Running {
        prereq::programs(&["wrk", "h2load"]);
        let stop = Arc::new(AtomicBool::new(false));
        let (generator, pod, url) = (self.clone(), Arc::clone(pod), url.to_owned());
        let (stopped, owner) = (Arc::clone(&stop), runner::current());
        let thread = std::thread::spawn(move || {
            runner::adopt(owner);
            let mut all = Report::default();
            while !stopped.load(Ordering::Relaxed) {
                let one = generator.run(&pod, &url);
                all.answers += one.answers;
                all.complaints.extend(one.complaints);
            }
            all
        });
        Running {
            stop,
            thread: Some(thread),
        }
    }
}

impl Running {
    /// What all runs said.
    pub fn finish(mut self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it runs until now");
        match thread.join() {
            Ok(report) => report,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The number before `what`.
fn number(said: &str, what: &str) -> Option<u64> {
    let (before, _) = said.split_once(what)?;
    before.split_whitespace().next_back()?.parse().ok()
}

/// wrk speaks of failures only if there were some.
fn wrk(said: &str) -> Option<(u64, Vec<String>)> {
    let answers = number(said, " requests in ")?;
    let lines = said.lines().map(str::trim);
    let bad = lines.filter(|line| line.starts_with("Non-2xx") || line.starts_with("Socket errors"));
    Some((answers, bad.map(str::to_owned).collect()))
}

/// h2load counts every kind, and what it gave up on stands in no other kind than "total".
fn h2load(said: &str) -> Option<(u64, Vec<String>)> {
    let find = |start: &str| said.lines().find(|line| line.starts_with(start));
    let (requests, codes) = (find("requests:")?, find("status codes:")?);
    let answers = number(requests, " done")?;
    let good = number(requests, " total")? == number(codes, " 2xx")?
        && number(requests, " total")? == number(requests, " succeeded")?;
    let bad = if good { &[][..] } else { &[requests, codes] };
    Some((answers, bad.iter().map(|&line| line.to_owned()).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrk_says_what_failed() {
        let good = "Running 1s test @ http://10.0.0.1/\n  1 threads and 4 connections\n  48264 requests in 1.10s, 59.80MB read\n\
                    Requests/sec:  22983.55\n";
        assert_eq!(wrk(good), Some((48264, vec![])));
        let bad = good.replace(
            "Requests/sec",
            "  Socket errors: connect 0, read 3, write 0, timeout 1\n  Non-2xx or 3xx responses: 7\nRequests/sec",
        );
        let (answers, complaints) = wrk(&bad).unwrap();
        assert_eq!(answers, 48264);
        assert_eq!(
            complaints,
            [
                "Socket errors: connect 0, read 3, write 0, timeout 1",
                "Non-2xx or 3xx responses: 7"
            ]
        );
        assert_eq!(wrk("unable to connect to 10.0.0.1:80"), None);
    }

    #[test]
    fn h2load_says_what_failed() {
        let good = "finished in 2.00s, 200.50 req/s, 13.56KB/s\n\
                    requests: 400 total, 400 started, 400 done, 400 succeeded, 0 failed, 0 errored, 0 timeout\n\
                    status codes: 400 2xx, 0 3xx, 0 4xx, 0 5xx\n";
        assert_eq!(h2load(good), Some((400, vec![])));
        for (what, instead) in [
            (
                "400 2xx, 0 3xx, 0 4xx, 0 5xx",
                "399 2xx, 0 3xx, 0 4xx, 1 5xx",
            ),
            ("400 succeeded, 0 failed", "399 succeeded, 1 failed"),
        ] {
            let (answers, complaints) = h2load(&good.replace(what, instead)).unwrap();
            assert_eq!((answers, complaints.len()), (400, 2), "{complaints:?}");
        }
    }
}
