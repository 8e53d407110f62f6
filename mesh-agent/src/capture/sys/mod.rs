//! The raw system calls of capture and of the proxy: bpf(2) commands and socket options that no crate of ours offers.
//!
//! The only place in the agent with `unsafe`; everything it exports is safe to call.
#![allow(unsafe_code)]

pub(super) mod bpf;
pub(super) mod sock;
pub(crate) mod tcp;

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use tokio::io::{Interest, unix::AsyncFd};

/// Waits for a descriptor to become readable. Must run inside a runtime.
pub(crate) fn readable<T: AsFd + AsRawFd>(inner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: `inner` owns its descriptor (`AsFd`) and keeps it open and the same until the registration is dropped,
    // which owns `inner`.
    Ok(unsafe { AsyncFd::register_with_interest(inner, Interest::READABLE) }?)
}
