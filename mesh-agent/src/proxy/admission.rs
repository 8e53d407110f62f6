//! What an inbound connection was admitted on, kept while it lives so that it can be decided anew.

use std::{
    net::{IpAddr, SocketAddr},
    sync::OnceLock,
};

use crate::{
    model::{ResourceName, SpiffeId},
    policy::Facts,
    telemetry::Reason,
};

/// The facts of one inbound connection. It is registered with its workload before it is first decided, so a change of
/// policy finds it in either case: the decision sees the change, or the change sees the connection.
#[derive(Debug)]
pub(super) struct Admission {
    /// From the certificate of the tunnel; plain text has none.
    pub(super) source: Option<SpiffeId>,
    pub(super) source_ip: IpAddr,
    /// Address and port of the workload.
    pub(super) destination: SocketAddr,
    cut: OnceLock<(Reason, Option<ResourceName>)>,
}

impl Admission {
    pub(super) fn new(
        source: Option<SpiffeId>,
        source_ip: IpAddr,
        destination: SocketAddr,
    ) -> Self {
        Self {
            source,
            source_ip,
            destination,
            cut: OnceLock::new(),
        }
    }

    pub(super) fn facts(&self) -> Facts<'_> {
        Facts {
            source: self.source.as_ref(),
            source_ip: self.source_ip,
            destination_ip: self.destination.ip(),
            destination_port: self.destination.port(),
            http: None,
        }
    }

    /// Why it was cut, and by which policy; the first reason stays.
    pub(super) fn cut(&self) -> Option<&(Reason, Option<ResourceName>)> {
        self.cut.get()
    }

    pub(super) fn set_cut(&self, reason: Reason, policy: Option<ResourceName>) {
        let _ = self.cut.set((reason, policy));
    }
}
