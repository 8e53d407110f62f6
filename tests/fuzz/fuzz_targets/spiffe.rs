//! SPIFFE IDs out of certificates of peers: what parses is exactly what it says it is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_agent::model::SpiffeId;

fuzz_target!(|text: &str| {
    if let Ok(id) = text.parse::<SpiffeId>() {
        assert_eq!(id.as_str(), text);
        let again = SpiffeId::new(id.trust_domain(), id.namespace(), id.service_account());
        assert_eq!(again.as_ref(), Ok(&id));
        assert!(!id.namespace().contains('/') && !id.service_account().contains('/'));
    }
});
