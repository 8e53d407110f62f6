//! Paths and hosts of requests, and patterns of paths, as AuthorizationPolicies read them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_agent::{
    api::Pattern,
    policy::{RequestHost, RequestPath},
};

fuzz_target!(|input: (&str, &str)| {
    let (text, host) = input;
    let path = RequestPath::new(text);
    // What is sent on is decided on in the same way: another agent on the way, or a second look, sees the same.
    let again = RequestPath::new(path.normal());
    assert_eq!(again.is_readable(), path.is_readable());
    if path.is_readable() {
        assert_eq!(again.normal(), path.normal());
        assert!(path.readings().eq(again.readings()));
        for reading in path.readings().filter(|reading| reading.starts_with('/')) {
            assert!(!reading.contains("//"), "{text:?}: {reading:?}");
            let dots = |segment: &str| segment == "." || segment == "..";
            assert!(!reading.split('/').any(dots), "{text:?}: {reading:?}");
            assert!(!reading.contains('\0'), "{text:?}: {reading:?}");
        }
    }
    let _ = Pattern::parse(text).matches(host);
    let _ = RequestHost::new(host).into_owned();
});
