//! YAML as a user wrote it: accepted or refused with a place, never a panic, a hang or an error about another file.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match mesh_agent::api::parse_bytes("fuzz.yaml", bytes) {
        Ok((config, warnings)) => {
            let _ = config.resources();
            for warning in warnings {
                let _ = warning.to_string();
            }
        }
        Err(errors) => {
            assert!(!errors.is_empty(), "refused without a reason");
            for error in errors {
                assert!(error.to_string().starts_with("fuzz.yaml"), "{error}");
            }
        }
    }
});
