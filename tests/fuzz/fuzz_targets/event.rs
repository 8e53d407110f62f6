//! Records of the ring buffer, as an older or broken kernel object might write them, and what telemetry makes of them.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mesh_agent::{
    capture::fuzz,
    telemetry::{Telemetry, TelemetryOptions},
};

// Few are kept, so that reading them back costs little each time.
static TELEMETRY: LazyLock<Telemetry> = LazyLock::new(|| {
    Telemetry::new(TelemetryOptions {
        closed_max: 8,
        flows_max: 8,
        ..TelemetryOptions::default()
    })
});

fuzz_target!(|bytes: &[u8]| {
    let size = size_of::<mesh_common::Event>();
    let mut rest = bytes;
    loop {
        let event = fuzz::event(rest);
        assert_eq!(event.is_some(), rest.len() >= size);
        let Some(event) = event else { break };
        TELEMETRY.on_event(&event);
        rest = &rest[size..];
    }
    let _ = TELEMETRY.closed_connections();
});
