//! What active health checks show at a scrape. Changes of an endpoint's health are counted where they happen.

use super::families::Families;
use crate::model::ResourceName;

#[derive(Clone, Debug, Default)]
pub struct HealthGauges {
    /// Checks since the agent began, by result.
    pub checks: Vec<(&'static str, u64)>,
    /// Of every service that is checked: endpoints that are unhealthy now.
    pub unhealthy: Vec<(ResourceName, u64)>,
}

pub(super) fn encode(health: &HealthGauges, out: &mut Families<'_>) -> std::fmt::Result {
    out.counters(
        "mesh_health_checks",
        "Active health checks that this agent made",
        "result",
        health.checks.iter().copied(),
    )?;
    out.gauges(
        "mesh_endpoints_unhealthy",
        "Endpoints of the service that active health checks find unhealthy",
        health.unhealthy.iter().map(|(service, n)| {
            let labels = [
                ("destination_service_name", service.name.to_string()),
                (
                    "destination_service_namespace",
                    service.namespace.to_string(),
                ),
            ];
            (labels, *n as f64)
        }),
    )
}
