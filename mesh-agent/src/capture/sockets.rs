//! The enrolled workload behind the proxy's seam.

use std::{io, net::SocketAddr, os::fd::BorrowedFd, sync::Arc};

use futures::future::BoxFuture;

use super::Pod;
use crate::{
    model::{EffectivePolicy, ResourceName},
    proxy::PodSockets,
};

impl PodSockets for Pod {
    fn name(&self) -> &ResourceName {
        &self.name
    }

    fn cookie(&self) -> u64 {
        self.cookie
    }

    fn policy(&self) -> Arc<EffectivePolicy> {
        self.policy.load_full()
    }

    fn socket(&self, v6: bool) -> BoxFuture<'_, io::Result<socket2::Socket>> {
        Box::pin(Pod::socket(self, v6))
    }

    fn original_dst(&self, fd: BorrowedFd<'_>) -> io::Result<Option<(SocketAddr, u64)>> {
        Pod::original_dst(self, fd)
    }

    fn set_client(&self, fd: BorrowedFd<'_>, client: SocketAddr) -> io::Result<()> {
        Pod::set_client(self, fd, client)
    }

    fn client_lost(&self, fd: BorrowedFd<'_>) -> io::Result<bool> {
        Pod::client_lost(self, fd)
    }

    /// Nothing is steered from a loopback address: who comes by one has dialled the listener where it is bound, and to
    /// dial that on would reach it again, and again, until no descriptor is left.
    fn application(&self, accepted: SocketAddr) -> Option<SocketAddr> {
        (!accepted.ip().to_canonical().is_loopback()).then_some(accepted)
    }

    fn is_self_test(&self, client: SocketAddr, destination: SocketAddr) -> bool {
        Pod::is_self_test(self, client, destination)
    }
}
