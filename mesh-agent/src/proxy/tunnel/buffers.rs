//! Buffers that belong to nobody while nothing is in them: a bounded pool for the whole process.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

/// Bytes of a chunk.
pub(super) const CHUNK: usize = 128 * 1024;
/// Chunks that are kept for the next one who needs one: 4 MiB.
const KEPT: usize = 32;

static POOL: Mutex<Vec<Box<[u8]>>> = Mutex::new(Vec::new());

/// One buffer; goes back to the pool when dropped.
#[derive(Debug)]
pub(super) struct Chunk {
    space: Box<[u8]>,
    len: usize,
}

impl Chunk {
    pub(super) fn take() -> Self {
        let kept = POOL.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Self {
            space: kept.unwrap_or_else(|| vec![0; CHUNK].into_boxed_slice()),
            len: 0,
        }
    }

    /// The first bytes of it, with rubbish of others in them.
    pub(super) fn space(&mut self, max: usize) -> &mut [u8] {
        let max = max.min(self.space.len());
        &mut self.space[..max]
    }

    /// What was filled in, without a copy.
    pub(super) fn freeze(mut self, len: usize) -> Bytes {
        self.len = len.min(self.space.len());
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.space[..self.len]
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let space = std::mem::take(&mut self.space);
        let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        if pool.len() < KEPT {
            pool.push(space);
        }
    }
}
