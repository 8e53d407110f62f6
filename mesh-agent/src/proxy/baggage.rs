//! What a tunnel says of its workload, for the other side's telemetry: the items that ztunnel sends.

use super::tunnel::headers::Baggage;
use crate::model::Workload;

/// Value of the header `baggage`.
pub(super) fn of(workload: &Workload) -> String {
    let label = |keys: &[&str]| {
        keys.iter()
            .find_map(|key| workload.labels.get(*key))
            .map_or("", String::as_str)
    };
    let service = label(&[
        "service.istio.io/canonical-name",
        "app.kubernetes.io/name",
        "app",
    ]);
    let version = label(&[
        "service.istio.io/canonical-revision",
        "app.kubernetes.io/version",
        "version",
    ]);
    let or_name = |value: &'_ str| match value {
        "" => workload.name.name.to_string(),
        value => value.to_owned(),
    };
    Baggage::format(&[
        ("k8s.namespace.name", &workload.name.namespace),
        ("k8s.pod.name", &workload.name.name),
        ("service.name", &or_name(service)),
        ("service.version", version),
        (
            "cloud.availability_zone",
            workload.zone.as_deref().unwrap_or_default(),
        ),
    ])
}
