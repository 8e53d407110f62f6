//! What getpeername(), getsockname() and accept() say: the same as without a mesh.

use std::sync::Arc;

use mesh_tests::{
    Bed, Pod,
    runner::Shared,
    tests,
    traffic::{self, Server},
};

static BED: Shared<Bed> = Shared::new();

tests! {
    enrolled_to_enrolled,
    enrolled_to_outsider,
    outsider_to_enrolled,
    through_a_service,
    names_while_connecting_and_after_the_end,
}

pub(crate) fn teardown() {
    BED.clear();
}

fn bed() -> Arc<Bed> {
    BED.get(|| {
        Bed::plan()
            .pods(&["client", "web1"])
            .outsider("ext")
            .service("web", &[(80, 8080)])
            .start()
    })
}

fn check(client: &Pod, web: &Pod, meshed: bool) {
    for v6 in [false, true] {
        let server = Server::echo(web, web.addr(v6, 0));
        let stream = traffic::connect(client, server.addr).unwrap();
        let me = stream.local_addr().unwrap();
        assert_eq!(stream.peer_addr().unwrap(), server.addr);
        assert_eq!(me.ip(), client.addr(v6, 0).ip());
        crate::common::echoes(&stream);
        let seen = server.last_seen();
        assert_eq!(
            seen.local, server.addr,
            "getsockname of the accepted socket"
        );
        assert_eq!(seen.peer.ip(), me.ip(), "accept()");
        assert_eq!(seen.getpeername, seen.peer, "getpeername and accept agree");
        if !meshed {
            assert_eq!(seen.peer, me);
        }
    }
}

fn enrolled_to_enrolled() {
    let bed = bed();
    check(bed.pod("client"), bed.pod("web1"), bed.has_mesh());
}

fn enrolled_to_outsider() {
    let bed = bed();
    check(bed.pod("client"), bed.pod("ext"), bed.has_mesh());
}

/// Here even the port is the client's own: only the inbound side is in between, and it knows the port.
fn outsider_to_enrolled() {
    let bed = bed();
    check(bed.pod("ext"), bed.pod("web1"), false);
}

fn through_a_service() {
    let bed = bed();
    let (client, web) = (bed.pod("client"), bed.pod("web1"));
    for v6 in [false, true] {
        let server = Server::echo(web, web.addr(v6, 8080));
        let to = bed.service("web", v6, 80);
        let stream = traffic::connect(client, to).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), to);
        crate::common::echoes(&stream);
        let seen = server.last_seen();
        assert_eq!(seen.local, server.addr);
        assert_eq!(seen.peer.ip(), client.addr(v6, 0).ip());
    }
}

fn names_while_connecting_and_after_the_end() {
    let bed = bed();
    let (client, ext) = (bed.pod("client"), bed.pod("ext"));
    let server = Server::named(ext, ext.v4(0), "bye");
    let stream = traffic::connect(client, server.addr).unwrap();
    assert_eq!(traffic::round_trip(&stream, b"").unwrap(), b"bye");
    // The stream is closed both ways; what getsockname says stays.
    assert_eq!(stream.local_addr().unwrap().ip(), client.v4);
    let bound = traffic::client::tcp(client, false).unwrap();
    bound.bind(&client.v4(0).into()).unwrap();
    assert!(bound.peer_addr().is_err(), "not connected");
}
