//! Waiting in line for something that others give back: request permits, places at endpoints.
//!
//! Whoever gives something back makes one *turn* ([`Line::released`]) if somebody waits. A turn goes to the first who
//! has none; he tries to take what was given back. If that fails he passes the turn on to those behind him. Where all
//! have a turn already, one more is kept for the next who joins. So none is lost: neither when a waiter is dropped with
//! one, nor between looking and lying down to sleep.

use std::{
    collections::BTreeMap,
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, Waker},
};

/// Whether who comes later may take what is free before those who wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// No: all want the same thing.
    Strict,
    /// Yes: what he wants may be nothing to those in front (another port, another endpoint).
    Open,
}

#[derive(Debug)]
pub struct Line {
    order: Order,
    /// Length of `inner.waiters`, to be read without the lock.
    waiting: AtomicU32,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    next_ticket: u64,
    waiters: BTreeMap<u64, Waiter>,
    /// Turns that came when everybody had one.
    spare: u32,
}

#[derive(Debug, Default)]
struct Waiter {
    /// Has a turn.
    called: bool,
    waker: Option<Waker>,
}

impl Line {
    pub fn new(order: Order) -> Arc<Self> {
        Arc::new(Self {
            order,
            waiting: AtomicU32::new(0),
            inner: Mutex::default(),
        })
    }

    pub fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Something was given back. Costs one load when nobody waits.
    pub fn released(&self) {
        // Sequentially consistent, as are the counters of `Permits`: of one who gives back and then looks for waiters,
        // and one who joins and then looks for what is free, at least one sees the other.
        if self.waiting.load(Ordering::SeqCst) > 0 {
            let woken = self.lock().call(None);
            wake(woken);
        }
    }

    /// Something changed for everybody, for example a limit: all look again.
    pub fn changed(&self) {
        let mut inner = self.lock();
        let mut wakers = Vec::new();
        for waiter in inner.waiters.values_mut() {
            if !std::mem::replace(&mut waiter.called, true) {
                wakers.extend(waiter.waker.take());
            }
        }
        drop(inner);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// What `take` gives without waiting, where the order of the line allows it.
    pub fn try_now<T>(&self, take: impl FnOnce() -> Option<T>) -> Option<T> {
        let free = self.order == Order::Open || self.waiting.load(Ordering::SeqCst) == 0;
        if free { take() } else { None }
    }

    /// Waits until `take` gives something; `None` when `until` ended first. May be dropped at any time.
    pub async fn wait<T>(
        &self,
        until: impl Future<Output = ()>,
        mut take: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        let mut place = self.join();
        let mut look = place.first || self.order == Order::Open;
        let mut until = pin!(until);
        poll_fn(|cx| {
            while std::mem::take(&mut look) || place.called(cx) {
                let got = take();
                if got.is_some() {
                    place.served();
                    return Poll::Ready(got);
                }
                place.pass_on();
            }
            until.as_mut().poll(cx).map(|()| None)
        })
        .await
    }

    fn join(&self) -> Place<'_> {
        let mut inner = self.lock();
        let ticket = inner.next_ticket;
        inner.next_ticket += 1;
        let first = inner.waiters.is_empty();
        let called = inner.spare > 0;
        inner.spare -= u32::from(called);
        let waiter = Waiter {
            called,
            waker: None,
        };
        inner.waiters.insert(ticket, waiter);
        self.waiting.fetch_add(1, Ordering::SeqCst);
        drop(inner);
        Place {
            line: self,
            ticket,
            first,
            turn: false,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Gives a turn to the first without one, of all or of those behind a ticket. `Err`: there is nobody.
    fn try_call(&mut self, behind: Option<u64>) -> Result<Option<Waker>, ()> {
        let from = behind.map_or(0, |ticket| ticket + 1);
        let mut rest = self.waiters.range_mut(from..);
        let (_, waiter) = rest.find(|(_, waiter)| !waiter.called).ok_or(())?;
        waiter.called = true;
        Ok(waiter.waker.take())
    }

    /// The same for what may be free still.
    fn call(&mut self, behind: Option<u64>) -> Option<Waker> {
        self.try_call(behind).unwrap_or_else(|()| {
            // An empty line needs no turns: who comes to it looks for himself.
            if !self.waiters.is_empty() {
                self.spare = self.spare.saturating_add(1);
            }
            None
        })
    }
}

/// One who waits; leaves the line when dropped.
#[derive(Debug)]
struct Place<'l> {
    line: &'l Line,
    ticket: u64,
    /// Nobody was in the line before.
    first: bool,
    /// Holds the turn with which he looks.
    turn: bool,
}

impl Place<'_> {
    /// Takes the turn that was given to this place; leaves the waker if there is none.
    fn called(&mut self, cx: &Context<'_>) -> bool {
        let mut inner = self.line.lock();
        let Some(waiter) = inner.waiters.get_mut(&self.ticket) else {
            return false;
        };
        self.turn = std::mem::take(&mut waiter.called);
        if !self.turn {
            waiter.waker = Some(cx.waker().clone());
        }
        self.turn
    }

    /// Nothing for him, but perhaps for one behind him.
    fn pass_on(&mut self) {
        if std::mem::take(&mut self.turn) {
            let woken = self.line.lock().try_call(Some(self.ticket));
            wake(woken.ok().flatten());
        }
    }

    /// Got it. Who found it without a turn may have found one of several things that were given back before he joined,
    /// for which there are no turns either: the next one looks.
    fn served(&mut self) {
        if !std::mem::take(&mut self.turn) {
            let woken = self.line.lock().call(Some(self.ticket));
            wake(woken);
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut inner = self.line.lock();
        let left = inner.waiters.remove(&self.ticket);
        self.line.waiting.fetch_sub(1, Ordering::SeqCst);
        let turn = self.turn || left.is_some_and(|waiter| waiter.called);
        if inner.waiters.is_empty() {
            inner.spare = 0;
        }
        let woken = turn.then(|| inner.call(None)).flatten();
        drop(inner);
        wake(woken);
    }
}

/// Outside of the lock: a waker may run what it wakes.
fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[cfg(test)]
mod tests;
