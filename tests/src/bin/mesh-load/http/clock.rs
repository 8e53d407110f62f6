//! When requests are due, and what became of them.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    os::fd::OwnedFd,
    rc::Rc,
    thread,
    time::{Duration, Instant},
};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::sync::{
    Notify,
    mpsc::{UnboundedSender, unbounded_channel},
};

/// What was measured.
#[derive(Default)]
pub(super) struct Tally {
    /// Of requests that were due in the measured time.
    pub(super) nanos: Vec<u32>,
    /// Requests that ended in the measured time.
    pub(super) units: u64,
    pub(super) failed: u64,
    /// Requests that were due in the measured time and never ended.
    pub(super) late: u64,
    pub(super) example: Option<String>,
}

pub(super) struct Clock {
    first: Instant,
    /// `None`: a request is due whenever somebody is free to send it.
    interval: Option<Duration>,
    begin: Instant,
    end: Instant,
    /// Handed out by the ticker, in order.
    due: RefCell<VecDeque<Instant>>,
    /// Taken and not ended yet.
    taken: Cell<u64>,
    some: Notify,
    tally: RefCell<Tally>,
}

impl Clock {
    pub(super) fn new(rate: f64, warm_up: Duration, measured: Duration) -> Self {
        let first = Instant::now();
        Self {
            first,
            interval: (rate > 0.0).then(|| Duration::from_secs_f64(1.0 / rate)),
            begin: first + warm_up,
            end: first + warm_up + measured,
            due: RefCell::default(),
            taken: Cell::new(0),
            some: Notify::new(),
            tally: RefCell::new(Tally {
                nanos: Vec::with_capacity(1 << 20),
                ..Tally::default()
            }),
        }
    }

    /// The next request: when it is (or was) due. `None`: it is over.
    pub(super) async fn next(&self) -> Option<Instant> {
        if self.interval.is_none() {
            let now = Instant::now();
            return (now < self.end).then_some(now);
        }
        loop {
            let next = self.due.borrow_mut().pop_front();
            if let Some(due) = next {
                self.taken.set(self.taken.get() + 1);
                return Some(due);
            }
            if Instant::now() >= self.end {
                return None;
            }
            self.some.notified().await;
        }
    }

    pub(super) fn done(&self, due: Instant, failure: Option<String>) {
        self.taken.set(self.taken.get().saturating_sub(1));
        let now = Instant::now();
        let mut tally = self.tally.borrow_mut();
        if (self.begin..self.end).contains(&due) {
            let nanos = u32::try_from((now - due).as_nanos()).unwrap_or(u32::MAX);
            tally.nanos.push(nanos);
        }
        if (self.begin..self.end).contains(&now) && failure.is_none() {
            tally.units += 1;
        }
        if let Some(example) = failure {
            tally.failed += 1;
            tally.example = Some(example);
        }
    }

    pub(super) async fn begun(&self) {
        tokio::time::sleep_until(self.begin.into()).await;
    }

    pub(super) async fn ended(&self) {
        tokio::time::sleep_until(self.end.into()).await;
        self.some.notify_waiters();
    }

    /// With those that never ended: what is still in the queue has waited since it was due, what was taken at least since the end.
    pub(super) fn result(&self) -> Tally {
        let mut tally = self.tally.take();
        let now = Instant::now();
        let waiting = self.due.take();
        let waiting = waiting.into_iter().filter(|due| *due >= self.begin);
        let taken = std::iter::repeat_n(self.end, self.taken.get() as usize);
        for since in waiting.chain(taken) {
            tally.late += 1;
            let nanos = u32::try_from((now - since).as_nanos()).unwrap_or(u32::MAX);
            tally.nanos.push(nanos);
        }
        tally
    }
}

/// Hands requests out as they become due.
pub(super) async fn tick(clock: Rc<Clock>) -> std::io::Result<()> {
    let Some(interval) = clock.interval else {
        return Ok(());
    };
    let (first, end) = (clock.first, clock.end);
    let (send, mut receive) = unbounded_channel();
    let metronome = thread::spawn(move || metronome(first, end, interval, &send));
    let mut due = Vec::new();
    while receive.recv_many(&mut due, 1024).await > 0 {
        for due in due.drain(..) {
            clock.due.borrow_mut().push_back(due);
            clock.some.notify_one();
        }
    }
    metronome
        .join()
        .unwrap_or_else(|_| Err(std::io::Error::other("the metronome panicked")))
}

/// A thread of its own, that waits for a timer with microseconds: the runtime's has milliseconds.
fn metronome(
    first: Instant,
    end: Instant,
    interval: Duration,
    send: &UnboundedSender<Instant>,
) -> std::io::Result<()> {
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
    for n in 0_u32.. {
        let due = first + interval * n;
        if due >= end {
            break;
        }
        let left = due.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            wait(&timer, left)?;
        }
        if send.send(due).is_err() {
            break;
        }
    }
    Ok(())
}

fn wait(timer: &OwnedFd, left: Duration) -> std::io::Result<()> {
    let zero = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let value = Timespec {
        tv_sec: left.as_secs() as i64,
        tv_nsec: i64::from(left.subsec_nanos().max(1)),
    };
    let spec = Itimerspec {
        it_interval: zero,
        it_value: value,
    };
    timerfd_settime(timer, TimerfdTimerFlags::empty(), &spec)?;
    rustix::io::retry_on_intr(|| rustix::io::read(timer, &mut [0; 8]))?;
    Ok(())
}
