//! Once a second: counts what went wrong since the last look.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::{
    capture::{Capture, PodState},
    discovery::SourceState,
    model::ResourceName,
    telemetry::Telemetry,
};

const LOOK_EVERY: Duration = Duration::from_secs(1);

pub(super) async fn run(telemetry: Telemetry, capture: Arc<Capture>, sources: Vec<SourceState>) {
    let mut attempts: HashMap<ResourceName, u32> = HashMap::new();
    let mut refused: HashMap<String, (SystemTime, Vec<String>)> = HashMap::new();
    let mut tick = tokio::time::interval(LOOK_EVERY);
    loop {
        tick.tick().await;
        let mut failing = HashMap::new();
        for pod in capture.pods() {
            if let PodState::Failed { attempts: now, .. } = pod.state {
                let before = attempts.get(&pod.name).copied().unwrap_or(0);
                for _ in before..now {
                    telemetry.enrolment_error("enrolment_failed");
                }
                failing.insert(pod.name, now);
            }
        }
        attempts = failing;
        for source in &sources {
            let status = source.get();
            let now = status.error_since.zip(status.error.clone());
            let before = refused.get(&status.name);
            match now {
                Some(now) if before != Some(&now) => {
                    telemetry.config_rejected(&status.name);
                    refused.insert(status.name.clone(), now);
                }
                Some(_) => {}
                None => {
                    refused.remove(&status.name);
                }
            }
        }
    }
}
