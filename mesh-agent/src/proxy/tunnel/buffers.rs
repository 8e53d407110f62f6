//! Buffers that belong to nobody while nothing is in them: bounded pools for the whole process.

use std::{
    ops::{Deref, DerefMut},
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;

use super::record::{MAX_PLAIN, MAX_RECORD, OVERHEAD};

/// Buffers of one size.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) size: usize,
    /// Free ones that are kept for the next who needs one.
    keep: usize,
    free: Mutex<Vec<Box<[u8]>>>,
}

/// What is read from TCP towards a tunnel.
pub(super) static CHUNKS: Pool = Pool::new(CHUNK, 32);
/// What a tunnel's TLS receives: a read, and what is left of a record.
pub(super) static INCOMING: Pool = Pool::new(128 * 1024 + MAX_RECORD, 16);
/// What it sends: so many full records, and small ones.
pub(super) static OUTGOING: Pool = Pool::new(12 * (MAX_PLAIN + OVERHEAD) + 1024, 16);

/// Bytes of a chunk.
pub(super) const CHUNK: usize = 64 * 1024;

impl Pool {
    const fn new(size: usize, keep: usize) -> Self {
        Self {
            size,
            keep,
            free: Mutex::new(Vec::new()),
        }
    }

    /// With rubbish of others in it.
    pub(super) fn take(&'static self) -> Buffer {
        let free = self
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        Buffer {
            space: free.unwrap_or_else(|| vec![0; self.size].into_boxed_slice()),
            pool: self,
        }
    }
}

/// One buffer; goes back to its pool when dropped.
#[derive(Debug)]
pub(super) struct Buffer {
    space: Box<[u8]>,
    pool: &'static Pool,
}

impl Buffer {
    /// What was filled in, without a copy.
    pub(super) fn freeze(self, len: usize) -> Bytes {
        Bytes::from_owner(Frozen { buffer: self, len })
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.space
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.space
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let space = std::mem::take(&mut self.space);
        let mut free = self
            .pool
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if free.len() < self.pool.keep {
            free.push(space);
        }
    }
}

struct Frozen {
    buffer: Buffer,
    len: usize,
}

impl AsRef<[u8]> for Frozen {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.len]
    }
}
