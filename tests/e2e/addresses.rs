//! What getpeername(), getsockname() and accept() say: the same as without a mesh.

use std::sync::Arc;

use mesh_tests::{
    Bed,
    runner::Shared,
    tests,
    traffic::{self, Server},
};

static BED: Shared<Bed> = Shared::new();

tests! { client_sees_what_it_dialled, server_sees_the_client }

pub(crate) fn teardown() {
    BED.clear();
}

fn bed() -> Arc<Bed> {
    BED.get(|| {
        Bed::plan()
            .pods(&["client", "web1"])
            .service("web", &[(80, 8080)])
            .start()
    })
}

fn client_sees_what_it_dialled() {
    let bed = bed();
    let (client, web) = (bed.pod("client"), bed.pod("web1"));
    for v6 in [false, true] {
        let server = Server::echo(web, web.addr(v6, 0));
        let stream = traffic::connect(client, server.addr).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), server.addr);
        assert_eq!(stream.local_addr().unwrap().ip(), client.addr(v6, 0).ip());
        assert_eq!(traffic::round_trip(&stream, b"hello").unwrap(), b"hello");
    }
}

fn server_sees_the_client() {
    let bed = bed();
    let (client, web) = (bed.pod("client"), bed.pod("web1"));
    for v6 in [false, true] {
        let server = Server::echo(web, web.addr(v6, 0));
        let stream = traffic::connect(client, server.addr).unwrap();
        assert_eq!(traffic::round_trip(&stream, b"hello").unwrap(), b"hello");
        let seen = server.last_seen();
        assert_eq!(seen.local, server.addr);
        assert_eq!(seen.peer.ip(), client.addr(v6, 0).ip());
    }
}
