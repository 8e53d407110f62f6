//! Tests of lines: order, no lost turn, nothing left behind by those who go away.

use std::{
    collections::VecDeque,
    future::pending,
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize},
    time::Duration,
};

use futures::{
    FutureExt as _,
    future::BoxFuture,
    task::{ArcWake, waker},
};
use proptest::prelude::*;

use super::*;
use crate::resilience::{Permit, Permits};

/// Whether a task was woken.
#[derive(Default)]
struct Flag(AtomicBool);

impl ArcWake for Flag {
    fn wake_by_ref(flag: &Arc<Self>) {
        flag.0.store(true, Ordering::SeqCst);
    }
}

/// A task that is polled only when it was woken, as an executor does.
struct Task {
    id: usize,
    woken: Arc<Flag>,
    future: BoxFuture<'static, Option<Permit>>,
}

impl Task {
    fn new(id: usize, line: &Arc<Line>, permits: &Arc<Permits>, limit: u32) -> Self {
        let (line, permits) = (Arc::clone(line), Arc::clone(permits));
        let future = async move { line.wait(pending(), || permits.acquire(Some(limit))).await };
        let woken = Arc::new(Flag(AtomicBool::new(true)));
        Self {
            id,
            woken,
            future: future.boxed(),
        }
    }

    fn run(&mut self) -> Option<Permit> {
        if !self.woken.0.swap(false, Ordering::SeqCst) {
            return None;
        }
        let waker = waker(Arc::clone(&self.woken));
        match self.future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(got) => got,
            Poll::Pending => None,
        }
    }
}

proptest! {
    /// Any mix of joining, polling in any order, giving back and going away: never more than the limit are out, served
    /// in the order of joining, and when all have been polled nobody waits while something is free.
    #[test]
    fn strict_order_and_no_lost_turn(
        limit in 1u32..4,
        steps in prop::collection::vec((0u8..5, any::<prop::sample::Index>()), 1..200),
    ) {
        let line = Line::new(Order::Strict);
        let permits = Permits::waking(&line);
        let mut held: Vec<Permit> = Vec::new();
        let mut tasks: Vec<Task> = Vec::new();
        let mut ids = 0;
        for (action, index) in steps {
            match action {
                0 | 1 => {
                    let now = line.try_now(|| permits.acquire(Some(limit)));
                    prop_assert!(now.is_none() || tasks.is_empty(), "overtook");
                    match now {
                        Some(permit) => held.push(permit),
                        None => {
                            let mut task = Task::new(ids, &line, &permits, limit);
                            ids += 1;
                            match task.run() {
                                Some(permit) => {
                                    let called = tasks.iter().all(|t| t.woken.0.load(Ordering::SeqCst));
                                    prop_assert!(called, "overtook");
                                    held.push(permit);
                                }
                                None => tasks.push(task),
                            }
                        }
                    }
                }
                2 if !held.is_empty() => drop(held.swap_remove(index.index(held.len()))),
                3 if !tasks.is_empty() => {
                    let at = index.index(tasks.len());
                    if let Some(permit) = tasks[at].run() {
                        // Those before it were called as well, each with a permit that waits for it.
                        let called = tasks[..at].iter().filter(|t| t.woken.0.load(Ordering::SeqCst)).count();
                        prop_assert_eq!(called, at, "overtook");
                        held.push(permit);
                        tasks.remove(at);
                    }
                }
                4 if !tasks.is_empty() => drop(tasks.remove(index.index(tasks.len()))),
                _ => {}
            }
            prop_assert!(held.len() as u32 <= limit);
            prop_assert_eq!(line.waiting() as usize, tasks.len());
        }
        settle(&mut tasks, &mut held);
        prop_assert!(tasks.is_empty() || held.len() as u32 == limit, "{} wait, {} of {limit} out", tasks.len(), held.len());
    }

    /// The same where each wants one of several things, and who comes may take what those in front cannot use.
    #[test]
    fn open_order_and_no_lost_turn(
        steps in prop::collection::vec((0u8..5, 0usize..3, any::<prop::sample::Index>()), 1..200),
    ) {
        let line = Line::new(Order::Open);
        let places: Vec<_> = (0..3).map(|_| Permits::waking(&line)).collect();
        let mut held: Vec<Permit> = Vec::new();
        let mut tasks: Vec<Task> = Vec::new();
        for (action, place, index) in steps {
            match action {
                0 | 1 => match line.try_now(|| places[place].acquire(Some(1))) {
                    Some(permit) => held.push(permit),
                    None => {
                        let mut task = Task::new(place, &line, &places[place], 1);
                        prop_assert!(task.run().is_none());
                        tasks.push(task);
                    }
                },
                2 if !held.is_empty() => drop(held.swap_remove(index.index(held.len()))),
                3 if !tasks.is_empty() => {
                    let at = index.index(tasks.len());
                    if let Some(permit) = tasks[at].run() {
                        held.push(permit);
                        tasks.remove(at);
                    }
                }
                4 if !tasks.is_empty() => drop(tasks.remove(index.index(tasks.len()))),
                _ => {}
            }
        }
        settle(&mut tasks, &mut held);
        for (place, permits) in places.iter().enumerate() {
            let waiting = tasks.iter().filter(|task| task.id == place).count();
            prop_assert!(waiting == 0 || permits.in_use() == 1, "{waiting} wait for place {place}, which is free");
        }
    }
}

/// Polls what was woken until nothing is.
fn settle(tasks: &mut Vec<Task>, held: &mut Vec<Permit>) {
    while tasks.iter().any(|task| task.woken.0.load(Ordering::SeqCst)) {
        let mut at = 0;
        while at < tasks.len() {
            match tasks[at].run() {
                Some(permit) => {
                    held.push(permit);
                    tasks.remove(at);
                }
                None => at += 1,
            }
        }
    }
}

#[test]
fn served_in_order() {
    let line = Line::new(Order::Strict);
    let permits = Permits::waking(&line);
    let mut held = permits.acquire(Some(1));
    let mut tasks: VecDeque<_> = (0..5).map(|id| Task::new(id, &line, &permits, 1)).collect();
    assert!(tasks.iter_mut().all(|task| task.run().is_none()));
    while let Some(mut first) = tasks.pop_front() {
        drop(held.take());
        assert!(tasks.iter_mut().all(|task| task.run().is_none()));
        held = first.run();
        assert!(held.is_some(), "{}", first.id);
    }
}

#[test]
fn a_higher_limit_lets_all_look() {
    let line = Line::new(Order::Strict);
    let permits = Permits::waking(&line);
    let _held = permits.acquire(Some(1));
    let mut task = Task::new(0, &line, &permits, 2);
    // Joined under the old limit, as far as it can be told from outside: it has looked and slept.
    let blocker = permits.acquire(Some(2));
    assert!(task.run().is_none());
    let mut behind = Task::new(1, &line, &permits, 3);
    assert!(behind.run().is_none());
    line.changed();
    assert!(task.run().is_none());
    assert!(behind.run().is_some(), "its limit is the new one");
    drop(blocker);
    assert_eq!(line.waiting(), 1);
}

/// Real threads: everybody gets his turn, and no more than the limit are out at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_turn_is_lost_between_threads() {
    const LIMIT: u32 = 3;
    for order in [Order::Strict, Order::Open] {
        let line = Line::new(order);
        let permits = Permits::waking(&line);
        let (out, most) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let served = Arc::new(AtomicU64::new(0));
        let tasks: Vec<_> = (0..64)
            .map(|task| {
                let (line, permits) = (Arc::clone(&line), Arc::clone(&permits));
                let (out, most) = (Arc::clone(&out), Arc::clone(&most));
                let served = Arc::clone(&served);
                tokio::spawn(async move {
                    for round in 0..200u32 {
                        let take = || permits.acquire(Some(LIMIT));
                        let permit = match line.try_now(take) {
                            Some(permit) => permit,
                            None => {
                                let waiting = line.wait(pending(), take);
                                // Some go away in the middle, and come again.
                                if (task + round) % 7 == 0 {
                                    let _ =
                                        tokio::time::timeout(Duration::from_micros(50), waiting)
                                            .await;
                                    continue;
                                }
                                waiting.await.unwrap()
                            }
                        };
                        let now = out.fetch_add(1, Ordering::SeqCst) + 1;
                        most.fetch_max(now, Ordering::SeqCst);
                        if round % 3 == 0 {
                            tokio::task::yield_now().await;
                        }
                        out.fetch_sub(1, Ordering::SeqCst);
                        served.fetch_add(1, Ordering::SeqCst);
                        drop(permit);
                    }
                })
            })
            .collect();
        let all = futures::future::join_all(tasks);
        let done = tokio::time::timeout(Duration::from_secs(60), all).await;
        for task in done.expect("somebody waits for ever") {
            task.unwrap();
        }
        assert!(most.load(Ordering::SeqCst) <= LIMIT);
        assert!(served.load(Ordering::SeqCst) > 64 * 150);
        assert_eq!(permits.in_use(), 0);
        assert_eq!(line.waiting(), 0);
    }
}

/// Paused time: a thousand wait for one permit that is held for a millisecond each; those whose deadline is later than
/// their turn get it, the others do not.
#[tokio::test(start_paused = true)]
async fn many_wait_with_deadlines() {
    let line = Line::new(Order::Strict);
    let permits = Permits::waking(&line);
    let first = permits.acquire(Some(1));
    let served = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..1_000u64)
        .map(|_| {
            let (line, permits, served) =
                (Arc::clone(&line), Arc::clone(&permits), Arc::clone(&served));
            tokio::spawn(async move {
                let until = tokio::time::sleep(Duration::from_millis(500));
                let got = line.wait(until, || permits.acquire(Some(1))).await;
                if got.is_some() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    served.fetch_add(1, Ordering::SeqCst);
                }
                got.is_some()
            })
        })
        .collect();
    while line.waiting() < 1_000 {
        tokio::task::yield_now().await;
    }
    drop(first);
    let mut outcomes = Vec::new();
    for task in tasks {
        outcomes.push(task.await.unwrap());
    }
    let got = outcomes.iter().filter(|got| **got).count();
    assert!((450..=501).contains(&got), "{got} in 500 ms");
    assert!(outcomes[..got].iter().all(|got| *got), "in their order");
    assert_eq!(served.load(Ordering::SeqCst), got);
    assert_eq!((line.waiting(), permits.in_use()), (0, 0));
}
