//! Tasks that the pool owns: they end with it.

use std::{
    future::Future,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::task::{AbortHandle, JoinSet};

#[derive(Debug, Default)]
pub(super) struct Tasks(Mutex<JoinSet<()>>);

/// A task that ends with who needs it.
#[derive(Debug)]
pub(super) struct Task(Option<AbortHandle>);

impl Task {
    /// It ends by itself.
    pub(super) fn leave(mut self) {
        self.0 = None;
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

impl Tasks {
    /// On the worker of the caller.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> Task {
        Task(Some(self.start(task)))
    }

    /// Lives until it ends by itself, or with the pool.
    pub(super) fn spawn_detached(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.start(task);
    }

    pub(super) fn abort_all(&self) {
        self.lock().abort_all();
    }

    fn start(&self, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        let mut tasks = self.lock();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task)
    }

    fn lock(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
