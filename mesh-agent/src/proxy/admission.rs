//! What an inbound connection was admitted on, kept while it lives so that it can be decided anew.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use super::http::Requests;
use crate::{
    model::{ResourceName, SpiffeId},
    policy::{Facts, HttpFacts},
    telemetry::Reason,
};

/// How a connection is decided on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// By what is known without HTTP: it is carried as bytes.
    Bytes,
    /// HTTP is read: each of its requests is decided on, and the connection as far as none could be allowed.
    Requests,
}

/// The facts of one inbound connection. It is registered with its workload before it is first decided, so a change of
/// policy finds it in either case: the decision sees the change, or the change sees the connection.
#[derive(Debug)]
pub(super) struct Admission {
    /// From the certificate of the tunnel; plain text has none.
    pub(super) source: Option<SpiffeId>,
    pub(super) source_ip: IpAddr,
    /// Address and port of the workload.
    pub(super) destination: SocketAddr,
    /// It carries bytes.
    bytes: AtomicBool,
    /// Those that are under way.
    pub(super) requests: Requests,
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
            bytes: AtomicBool::new(true),
            requests: Requests::default(),
            cut: OnceLock::new(),
        }
    }

    pub(super) fn stage(&self) -> Stage {
        match self.bytes.load(Ordering::Acquire) {
            true => Stage::Bytes,
            false => Stage::Requests,
        }
    }

    /// Before the decision that it is for, as a change of policy goes by it.
    pub(super) fn set_stage(&self, stage: Stage) {
        self.bytes.store(stage == Stage::Bytes, Ordering::Release);
    }

    pub(super) fn facts_of<'a>(&'a self, request: HttpFacts<'a>) -> Facts<'a> {
        Facts {
            http: Some(request),
            ..self.facts()
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
