//! The labels of the TCP families, as Istio's standard metrics name them.

use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};

use crate::{
    model::{ResourceName, SpiffeId},
    telemetry::{
        directory::Directory,
        security::{self, Principals},
    },
};

const UNKNOWN: &str = "unknown";
pub(super) const OVERFLOW: &str = "overflow";
/// Labels of a workload that name its canonical service, the first that is there; else it is the workload's own name.
pub(crate) const CANONICAL_SERVICE: [&str; 3] = [
    "service.istio.io/canonical-name",
    "app.kubernetes.io/name",
    "app",
];
/// The same for its revision.
pub(crate) const CANONICAL_REVISION: [&str; 3] = [
    "service.istio.io/canonical-revision",
    "app.kubernetes.io/version",
    "version",
];

/// What tells one flow from another. Cloning counts references, nothing is copied.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FlowKey {
    pub(crate) inbound: bool,
    pub(crate) source: Option<ResourceName>,
    pub(crate) destination: Option<ResourceName>,
    pub(crate) service: Option<ResourceName>,
    /// `None` without mutual TLS.
    pub(crate) security: Option<Principals>,
}

/// Labels of one flow, made once.
#[derive(Debug)]
pub(super) struct FlowLabels {
    pub(super) reporter: &'static str,
    pub(super) source: PeerLabels,
    pub(super) destination: PeerLabels,
    pub(super) service: String,
    pub(super) service_name: Arc<str>,
    pub(super) service_namespace: Arc<str>,
    security: &'static str,
}

#[derive(Clone, Debug)]
pub(super) struct PeerLabels {
    pub(super) workload: Arc<str>,
    pub(super) namespace: Arc<str>,
    principal: Arc<str>,
    app: Arc<str>,
    version: Arc<str>,
    cluster: Arc<str>,
    canonical_service: Arc<str>,
    canonical_revision: Arc<str>,
}

impl PeerLabels {
    fn all(value: &str) -> Self {
        let value: Arc<str> = value.into();
        Self {
            workload: value.clone(),
            namespace: value.clone(),
            principal: value.clone(),
            app: value.clone(),
            version: value.clone(),
            cluster: value.clone(),
            canonical_service: value.clone(),
            canonical_revision: value,
        }
    }

    /// Canonical names as <https://istio.io/latest/docs/ops/deployment/deployment-model/> and Istio's own labels say:
    /// the first label that is there, else the workload's name and `latest`.
    fn of(name: &ResourceName, directory: &dyn Directory) -> Self {
        let workload = directory.workload(name);
        let label = |keys: &[&str]| -> Option<Arc<str>> {
            let labels = &workload.as_ref()?.labels;
            keys.iter()
                .find_map(|key| labels.get(*key))
                .map(|v| Arc::from(v.as_str()))
        };
        Self {
            workload: name.name.clone(),
            namespace: name.namespace.clone(),
            app: label(&["app"]).unwrap_or_else(|| UNKNOWN.into()),
            version: label(&["version"]).unwrap_or_else(|| UNKNOWN.into()),
            canonical_service: label(&CANONICAL_SERVICE).unwrap_or_else(|| name.name.clone()),
            canonical_revision: label(&CANONICAL_REVISION).unwrap_or_else(|| "latest".into()),
            ..Self::all(UNKNOWN)
        }
    }

    fn maybe(
        name: Option<&ResourceName>,
        principal: Option<&SpiffeId>,
        directory: &dyn Directory,
    ) -> Self {
        let labels = name.map_or_else(|| Self::all(UNKNOWN), |name| Self::of(name, directory));
        match principal {
            Some(id) => Self {
                principal: id.as_str().into(),
                ..labels
            },
            None => labels,
        }
    }
}

impl FlowLabels {
    pub(super) fn new(key: &FlowKey, directory: &dyn Directory) -> Self {
        let (service, service_name, service_namespace) = match &key.service {
            Some(s) => (
                format!("{}.{}.svc.cluster.local", s.name, s.namespace),
                s.name.clone(),
                s.namespace.clone(),
            ),
            None => (UNKNOWN.into(), UNKNOWN.into(), UNKNOWN.into()),
        };
        let principals = key.security.as_ref();
        Self {
            reporter: reporter(key.inbound),
            source: PeerLabels::maybe(
                key.source.as_ref(),
                principals.and_then(|p| p.source.as_ref()),
                directory,
            ),
            destination: PeerLabels::maybe(
                key.destination.as_ref(),
                principals.and_then(|p| p.destination.as_ref()),
                directory,
            ),
            service,
            service_name,
            service_namespace,
            security: security::policy_name(principals),
        }
    }

    /// Labels of the series that takes what is above the cap.
    pub(super) fn overflow(inbound: bool, mutual_tls: bool) -> Self {
        Self {
            reporter: reporter(inbound),
            source: PeerLabels::all(OVERFLOW),
            destination: PeerLabels::all(OVERFLOW),
            service: OVERFLOW.into(),
            service_name: OVERFLOW.into(),
            service_namespace: OVERFLOW.into(),
            security: if mutual_tls {
                security::MUTUAL_TLS
            } else {
                security::NONE
            },
        }
    }
}

const fn reporter(inbound: bool) -> &'static str {
    if inbound { "destination" } else { "source" }
}

impl FlowLabels {
    /// Istio's standard labels of every family.
    fn standard(&self) -> [(&str, &str); 21] {
        let (s, d) = (&self.source, &self.destination);
        [
            ("reporter", self.reporter),
            ("source_workload", &s.workload),
            ("source_canonical_service", &s.canonical_service),
            ("source_canonical_revision", &s.canonical_revision),
            ("source_workload_namespace", &s.namespace),
            ("source_principal", &s.principal),
            ("source_app", &s.app),
            ("source_version", &s.version),
            ("source_cluster", &s.cluster),
            ("destination_workload", &d.workload),
            ("destination_canonical_service", &d.canonical_service),
            ("destination_canonical_revision", &d.canonical_revision),
            ("destination_workload_namespace", &d.namespace),
            ("destination_principal", &d.principal),
            ("destination_app", &d.app),
            ("destination_version", &d.version),
            ("destination_cluster", &d.cluster),
            ("destination_service", &self.service),
            ("destination_service_name", &self.service_name),
            ("destination_service_namespace", &self.service_namespace),
            ("connection_security_policy", self.security),
        ]
    }

    /// Those of our own families: who.
    fn parties(&self) -> [(&str, &str); 7] {
        let (s, d) = (&self.source, &self.destination);
        [
            ("reporter", self.reporter),
            ("source_workload", &s.workload),
            ("source_workload_namespace", &s.namespace),
            ("destination_workload", &d.workload),
            ("destination_workload_namespace", &d.namespace),
            ("destination_service_name", &self.service_name),
            ("destination_service_namespace", &self.service_namespace),
        ]
    }
}

/// Istio's standard label set of the TCP metrics.
pub(super) struct IstioLabels<'a> {
    pub(super) flow: &'a FlowLabels,
    pub(super) response_flags: &'a str,
}

impl EncodeLabelSet for IstioLabels<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        encode_all(&self.flow.standard(), encoder)?;
        let rest = [
            ("request_protocol", "tcp"),
            ("response_flags", self.response_flags),
        ];
        encode_all(&rest, encoder)
    }
}

/// Istio's standard label set of the metrics of requests.
pub(super) struct RequestLabels<'a> {
    pub(super) flow: &'a FlowLabels,
    pub(super) protocol: &'a str,
    pub(super) response_code: &'a str,
    /// Empty where the request is not gRPC's.
    pub(super) grpc_status: &'a str,
    pub(super) response_flags: &'a str,
}

impl EncodeLabelSet for RequestLabels<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        encode_all(&self.flow.standard(), encoder)?;
        let rest = [
            ("request_protocol", self.protocol),
            ("response_code", self.response_code),
            ("grpc_response_status", self.grpc_status),
            ("response_flags", self.response_flags),
        ];
        encode_all(&rest, encoder)
    }
}

/// Labels of our own family of connections: who, and why it ended.
pub(super) struct ReasonLabels<'a> {
    pub(super) flow: &'a FlowLabels,
    pub(super) reason: &'a str,
}

impl EncodeLabelSet for ReasonLabels<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        encode_all(&self.flow.parties(), encoder)?;
        encode_all(&[("reason", self.reason)], encoder)
    }
}

/// Labels of our own family of requests.
pub(super) struct RequestReasonLabels<'a> {
    pub(super) flow: &'a FlowLabels,
    pub(super) protocol: &'a str,
    pub(super) reason: &'a str,
}

impl EncodeLabelSet for RequestReasonLabels<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        encode_all(&self.flow.parties(), encoder)?;
        let rest = [("request_protocol", self.protocol), ("reason", self.reason)];
        encode_all(&rest, encoder)
    }
}

fn encode_all(
    labels: &[(&str, &str)],
    encoder: &mut LabelSetEncoder<'_>,
) -> Result<(), std::fmt::Error> {
    for label in labels {
        label.encode(encoder.encode_label())?;
    }
    Ok(())
}
