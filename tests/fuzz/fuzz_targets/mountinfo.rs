//! /proc/self/mountinfo: mount points may hold anything a mounter named them.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Some(root) = mesh_agent::capture::fuzz::mountinfo(text) {
        assert!(text.contains("cgroup2"), "{}", root.display());
    }
});
