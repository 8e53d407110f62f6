//! Runs the end-to-end tests: in parallel, each with a deadline, with named skips, per-module fixtures that are taken
//! down when the last test of their module is done, and a look at the end at what was left behind.
//!
//! Speaks enough of libtest's command line for `cargo test`: filters, `--exact`, `--skip`, `--list`, `--test-threads`.

use std::{
    cell::Cell,
    collections::{BTreeMap, VecDeque},
    panic::{self, AssertUnwindSafe},
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use crate::{prereq, prereq::Skip, run};

/// One test.
#[derive(Clone, Copy, Debug)]
pub struct Test {
    pub name: &'static str,
    pub run: fn(),
    /// When it counts as hung.
    pub deadline: Duration,
    /// It measures time or fills the machine: it runs alone.
    pub alone: bool,
}

/// The tests of one capability.
#[derive(Clone, Copy, Debug)]
pub struct Module {
    pub name: &'static str,
    pub tests: &'static [Test],
    /// Takes the module's shared fixture down.
    pub teardown: fn(),
}

/// Lists the tests of a module: `tests! { one, two(deadline = 60), three(alone, deadline = 120) }`.
#[macro_export]
macro_rules! tests {
    ($($name:ident $(($($option:tt)*))?),* $(,)?) => {
        pub(crate) const TESTS: &[$crate::runner::Test] = &[
            $($crate::tests!(@one $name $($($option)*)?),)*
        ];
    };
    (@one $name:ident) => { $crate::tests!(@make $name, false, 90) };
    (@one $name:ident alone) => { $crate::tests!(@make $name, true, 90) };
    (@one $name:ident deadline = $secs:literal) => { $crate::tests!(@make $name, false, $secs) };
    (@one $name:ident alone, deadline = $secs:literal) => { $crate::tests!(@make $name, true, $secs) };
    (@make $name:ident, $alone:literal, $secs:literal) => {
        $crate::runner::Test {
            name: stringify!($name),
            run: $name,
            deadline: ::std::time::Duration::from_secs($secs),
            alone: $alone,
        }
    };
}

/// A fixture made by the first test that wants it.
#[derive(Debug)]
pub struct Shared<T>(Mutex<State<T>>);

#[derive(Debug)]
enum State<T> {
    New,
    Ready(Arc<T>),
    Skipped(String),
    Failed,
}

impl<T> Shared<T> {
    pub const fn new() -> Self {
        Self(Mutex::new(State::New))
    }

    /// The fixture; when making it failed once, every later test fails at once and says so.
    pub fn get(&self, make: impl FnOnce() -> T) -> Arc<T> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            State::Ready(value) => Arc::clone(value),
            State::Skipped(why) => prereq::skip(why.clone()),
            State::Failed => panic!("the fixture of this module could not be made, see above"),
            State::New => match panic::catch_unwind(AssertUnwindSafe(make)) {
                Ok(value) => {
                    let value = Arc::new(value);
                    *state = State::Ready(Arc::clone(&value));
                    value
                }
                Err(panic) => {
                    *state = match panic.downcast_ref::<Skip>() {
                        Some(skip) => State::Skipped(skip.0.clone()),
                        None => State::Failed,
                    };
                    drop(state);
                    panic::resume_unwind(panic)
                }
            },
        }
    }

    pub fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = State::New;
    }
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self::new()
    }
}

thread_local! {
    /// Which test the thread works for: full name.
    static OWNER: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// Logs to show when a test fails.
static LOGS: Mutex<BTreeMap<&'static str, Vec<PathBuf>>> = Mutex::new(BTreeMap::new());

/// The test that this thread works for; hand it to threads with [`adopt`].
pub fn current() -> Option<&'static str> {
    OWNER.get()
}

pub fn adopt(owner: Option<&'static str>) {
    OWNER.set(owner);
}

/// Shows the end of this log if the current test fails.
pub fn attach(log: PathBuf) {
    if let Some(owner) = current() {
        let mut logs = LOGS.lock().unwrap_or_else(PoisonError::into_inner);
        let logs = logs.entry(owner).or_default();
        if !logs.contains(&log) {
            logs.push(log);
        }
    }
}

enum Outcome {
    Ok,
    Skipped(String),
    Failed,
}

struct Options {
    filters: Vec<String>,
    skips: Vec<String>,
    exact: bool,
    list: bool,
    threads: usize,
}

impl Options {
    fn from_args() -> Options {
        let cores = thread::available_parallelism().map_or(2, usize::from);
        let mut options = Options {
            filters: Vec::new(),
            skips: Vec::new(),
            exact: false,
            list: false,
            // Most tests wait most of the time.
            threads: (cores + 1).clamp(2, 6),
        };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--exact" => options.exact = true,
                "--list" => options.list = true,
                "--skip" => options.skips.extend(args.next()),
                "--test-threads" => {
                    if let Some(n) = args.next().and_then(|n| n.parse().ok()) {
                        options.threads = n;
                    }
                }
                "--format" | "--color" | "-Z" => {
                    args.next();
                }
                flag if flag.starts_with("--test-threads=") => {
                    if let Ok(n) = flag["--test-threads=".len()..].parse() {
                        options.threads = n;
                    }
                }
                flag if flag.starts_with('-') => {}
                filter => options.filters.push(filter.to_owned()),
            }
        }
        options
    }

    fn wants(&self, full: &str) -> bool {
        let hit = |f: &String| {
            if self.exact {
                full == f
            } else {
                full.contains(f.as_str())
            }
        };
        (self.filters.is_empty() || self.filters.iter().any(hit)) && !self.skips.iter().any(hit)
    }
}

#[derive(Clone, Copy)]
struct Job {
    module: &'static Module,
    test: &'static Test,
    full: &'static str,
}

/// The main function of the test binary.
pub fn main(modules: &'static [Module]) -> ExitCode {
    let options = Options::from_args();
    let jobs: Vec<Job> = modules
        .iter()
        .flat_map(|module| module.tests.iter().map(move |test| (module, test)))
        .map(|(module, test)| Job {
            module,
            test,
            full: String::leak(format!("{}::{}", module.name, test.name)),
        })
        .filter(|job| options.wants(job.full))
        .collect();
    if options.list {
        for job in &jobs {
            println!("{}: test", job.full);
        }
        return ExitCode::SUCCESS;
    }
    panic::set_hook(Box::new(|info| {
        if info.payload().is::<Skip>() {
            return;
        }
        let owner = current().unwrap_or("?");
        eprintln!("[{owner}] {info}");
    }));
    for what in run::sweep_dead() {
        eprintln!("swept what a killed run left: {what}");
    }
    if crate::bed::mesh_is_on() && !jobs.is_empty() {
        // Now, so that a build is not on the clock of the first test.
        crate::agent::binary();
    }
    // The first runtime of a process makes two descriptors for signals that stay.
    crate::hbone::run(async {});
    let began = Instant::now();
    let descriptors = run::descriptors();
    let (alone, together): (Vec<Job>, Vec<Job>) = jobs.iter().partition(|job| job.test.alone);
    let report = Report::new(&jobs);
    run_queue(together, options.threads, &report);
    run_queue(alone, 1, &report);
    let clean = !jobs.is_empty() && report.nothing_left(descriptors);
    let (passed, skipped, failed) = report.sums();
    for what in run::sweep_own() {
        eprintln!("removed at the end: {what}");
    }
    println!(
        "\ntest result: {}. {passed} passed; {} failed; {} skipped; in {:.1} s",
        if failed.is_empty() && clean {
            "ok"
        } else {
            "FAILED"
        },
        failed.len(),
        skipped.len(),
        began.elapsed().as_secs_f64()
    );
    for (name, why) in skipped {
        println!("    skipped {name}: {why}");
    }
    for name in &failed {
        println!("    failed  {name}");
    }
    if failed.is_empty() && (clean || jobs.is_empty()) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

struct Report {
    outcomes: Mutex<Vec<(&'static str, Outcome)>>,
    /// Tests still to end, by module.
    left: Mutex<BTreeMap<&'static str, usize>>,
}

impl Report {
    fn new(jobs: &[Job]) -> Report {
        let mut left = BTreeMap::new();
        for job in jobs {
            *left.entry(job.module.name).or_default() += 1;
        }
        Report {
            outcomes: Mutex::default(),
            left: Mutex::new(left),
        }
    }

    fn add(&self, job: Job, outcome: Outcome, took: Duration) {
        let word = match &outcome {
            Outcome::Ok => "ok".into(),
            Outcome::Skipped(why) => format!("skipped, {why}"),
            Outcome::Failed => "FAILED".into(),
        };
        println!("test {} ... {word} ({:.2} s)", job.full, took.as_secs_f64());
        if matches!(outcome, Outcome::Failed) {
            show_logs(job.full);
        }
        self.outcomes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((job.full, outcome));
        let last = {
            let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
            let left = left.entry(job.module.name).or_default();
            *left = left.saturating_sub(1);
            *left == 0
        };
        if last {
            let done = panic::catch_unwind(AssertUnwindSafe(job.module.teardown));
            if done.is_err() {
                self.fail("teardown");
            }
        }
    }

    fn fail(&self, name: &'static str) {
        self.outcomes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((name, Outcome::Failed));
    }

    /// The last test: nothing with our prefix is left on the machine, and no descriptor in this process.
    fn nothing_left(&self, descriptors: usize) -> bool {
        let mut left = run::leftovers();
        // Server threads of finished tests may still be closing.
        let end = Instant::now() + Duration::from_secs(5);
        let mut open = run::descriptors();
        while open > descriptors && Instant::now() < end {
            thread::sleep(Duration::from_millis(20));
            open = run::descriptors();
        }
        if open > descriptors {
            left.push(format!(
                "{} descriptors of the test process",
                open - descriptors
            ));
        }
        for what in &left {
            println!("left behind: {what}");
        }
        if left.is_empty() {
            println!("test suite::nothing_left ... ok");
        } else {
            println!("test suite::nothing_left ... FAILED");
            self.fail("suite::nothing_left");
        }
        left.is_empty()
    }

    fn sums(&self) -> (usize, Vec<(&'static str, String)>, Vec<&'static str>) {
        let outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut passed = 0;
        let mut skipped = Vec::new();
        let mut failed = Vec::new();
        for (name, outcome) in outcomes.iter() {
            match outcome {
                Outcome::Ok => passed += 1,
                Outcome::Skipped(why) => skipped.push((*name, why.clone())),
                Outcome::Failed => failed.push(*name),
            }
        }
        (passed, skipped, failed)
    }
}

fn run_queue(jobs: Vec<Job>, threads: usize, report: &Report) {
    let queue = Mutex::new(VecDeque::from(jobs));
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let job = queue
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .pop_front();
                    let Some(job) = job else { break };
                    let began = Instant::now();
                    let outcome = run_one(job);
                    report.add(job, outcome, began.elapsed());
                }
            });
        }
    });
}

fn run_one(job: Job) -> Outcome {
    let (done, ended) = mpsc::channel();
    let spawned = thread::Builder::new()
        .name(job.full.to_owned())
        .spawn(move || {
            adopt(Some(job.full));
            let result = panic::catch_unwind(|| {
                prereq::namespaces();
                (job.test.run)();
            });
            let _ = done.send(match result {
                Ok(()) => Outcome::Ok,
                Err(payload) => match payload.downcast::<Skip>() {
                    Ok(skip) => Outcome::Skipped(skip.0),
                    Err(_) => Outcome::Failed,
                },
            });
        });
    if let Err(e) = spawned {
        eprintln!("[{}] no thread: {e}", job.full);
        return Outcome::Failed;
    }
    ended.recv_timeout(job.test.deadline).unwrap_or_else(|_| {
        eprintln!(
            "[{}] hung: not done after {:?}",
            job.full, job.test.deadline
        );
        Outcome::Failed
    })
}

fn show_logs(full: &'static str) {
    let logs = LOGS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .remove(full)
        .unwrap_or_default();
    for log in logs {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        eprintln!("--- end of {}", log.display());
        for line in &lines[lines.len().saturating_sub(40)..] {
            eprintln!("    {line}");
        }
    }
}
