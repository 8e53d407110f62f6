//! What a peer writes into the headers of a CONNECT.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_agent::proxy::tunnel::headers::{
    Baggage, Forwarded, TraceParent, client_of, parse_authority,
};

fuzz_target!(|value: &[u8]| {
    Baggage::parse(value);
    if let Some(parsed) = TraceParent::parse(value) {
        assert_eq!(
            TraceParent::parse(parsed.format().as_bytes()).map(|p| p.trace),
            Some(parsed.trace)
        );
    }
    if let Some(client) = Forwarded::parse(value).client {
        let written = Forwarded::format(client, None);
        assert_eq!(Forwarded::parse(written.as_bytes()).client, Some(client));
    }
    // No peer is taken for another address than its own.
    let peer = ([10, 1, 0, 1], 4000).into();
    assert_eq!(client_of(peer, Some(value)).ip(), peer.ip());
    if let Ok(text) = std::str::from_utf8(value)
        && let Some(address) = parse_authority(text)
    {
        assert_eq!(parse_authority(&address.to_string()), Some(address));
    }
});
