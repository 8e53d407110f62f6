//! However a path is spelled: it gets neither around a DENY nor into an ALLOW, and the application hears what was decided on.

use std::sync::Arc;

use mesh_tests::{
    Mesh,
    http::{Ask, HttpServer, Speaks},
    runner::Shared,
    tests,
};

use crate::http_common::{BOTH, ask, id, is_denied, service, vip};

static BENCH: Shared<Bench> = Shared::new();

tests! {
    no_spelling_gets_around_a_deny(deadline = 120),
    no_spelling_gets_into_an_allow(deadline = 120),
}

pub(crate) fn teardown() {
    BENCH.clear();
}

struct Bench {
    servers: Vec<HttpServer>,
    mesh: Mesh,
}

/// A destination for each test, with the policy that its name says.
const DESTINATIONS: [(&str, &str); 2] = [
    (
        "admin",
        "action: DENY\n  rules: [{to: [{operation: {ports: [8080], paths: [/admin, \"/admin/*\"]}}]}]",
    ),
    (
        "public",
        "action: ALLOW\n  rules: [{to: [{operation: {paths: [/public, \"/public/*\"]}}]}]",
    ),
];

fn bench() -> Arc<Bench> {
    BENCH.get(|| {
        let mut plan = Mesh::plan(2).pod(0, "client");
        for (n, (name, spec)) in (1..).zip(DESTINATIONS) {
            let spec = format!("  selector: {{matchLabels: {{app: {name}}}}}\n  {spec}");
            plan = plan.pod(1, name).authorization(name, &spec).file(
                &format!("service-{name}.yaml"),
                &service("shop", name, n, name, &[(80, 8080, "http")]),
            );
        }
        let mesh = plan.start();
        let servers = DESTINATIONS.map(|(name, _)| {
            let pod = mesh.pod(name);
            HttpServer::start(pod, pod.v4(8080), name)
        });
        Bench {
            servers: servers.into(),
            mesh,
        }
    })
}

/// What the application heard of a request: 403 is nothing.
fn heard(bench: &Bench, name: &str, speaks: Speaks, path: &str) -> Option<String> {
    let id = id("spelled");
    let request = Ask::get(path).header("x-request-id", &id);
    let at = DESTINATIONS.iter().position(|(other, _)| *other == name);
    let at = at.expect("a destination");
    let to = vip(at as u8 + 1, 80);
    let answer = ask(bench.mesh.pod("client"), to, speaks, &request);
    let seen = bench.servers[at].seen("");
    let seen = seen
        .iter()
        .find(|s| s.headers["x-request-id"] == id.as_str());
    assert_eq!(seen.is_some(), answer.status == 200, "{path}: {answer:?}");
    if seen.is_none() {
        assert!(is_denied(&answer), "{path}: {answer:?}");
    }
    seen.map(|seen| seen.path.clone())
}

fn no_spelling_gets_around_a_deny() {
    let bench = bench();
    for speaks in BOTH {
        for path in [
            "/admin/",
            "/admin/x",
            "/admin?a=b",
            "//admin",
            "///admin//x",
            "/./admin",
            "/x/../admin",
            "/x/%2e%2e/admin",
            "/x/.%2E/admin/x",
            "/%61dmin",
            "/%61%64%6d%69%6e",
            "/admin;x",
            "/admin;x=1/y",
            "/admin%3Bx",
            "/admin%2Fx",
            "/%2Fadmin",
            "/x%2F..%2Fadmin",
            "/x/..%2fadmin",
            "/x/..;/admin",
            "/admin\\x",
            "/\\admin",
            "/x\\..\\admin",
            "/admin%5Cx",
            "/%5cadmin",
            "/%2561dmin",
            "/admin%00",
            "/%zz/admin",
            "/%c0%afadmin",
        ] {
            assert_eq!(heard(&bench, "admin", speaks, path), None, "{speaks:?}");
        }
        // What leads elsewhere is heard in the form that was decided on.
        for (path, normal) in [
            ("/admin/../x?q=/admin", "/x?q=/admin"),
            ("/administrator", "/administrator"),
            ("/x/./%61dmin", "/x/admin"),
            ("/Admin", "/Admin"),
        ] {
            let heard = heard(&bench, "admin", speaks, path);
            assert_eq!(heard.as_deref(), Some(normal), "{speaks:?} {path}");
        }
    }
}

fn no_spelling_gets_into_an_allow() {
    let bench = bench();
    for speaks in BOTH {
        for path in [
            "/public/../admin",
            "/public/%2e%2e/admin",
            "/public/..%2Fadmin",
            "/public%2F..%2Fadmin",
            "/public/..;/admin",
            "/public/..;a=b/admin",
            "/public\\..\\admin",
            "/public/..\\admin",
            "/public/..%5Cadmin",
            "/public/%252e%252e/admin",
            "/public/%00",
            "/public/%zz",
            "/public/%c0%ae%c0%ae/admin",
            "/publicx",
            "/Public/a",
        ] {
            assert_eq!(heard(&bench, "public", speaks, path), None, "{speaks:?}");
        }
        for (path, normal) in [
            ("/public", "/public"),
            ("//public///a", "/public/a"),
            ("/%70ublic/a", "/public/a"),
            ("/x/../public/a?b=../c", "/public/a?b=../c"),
            ("/public/a%2Fb", "/public/a%2Fb"),
        ] {
            let heard = heard(&bench, "public", speaks, path);
            assert_eq!(heard.as_deref(), Some(normal), "{speaks:?} {path}");
        }
    }
}
