//! What traffic.md, "Authorization", says of requests.

use super::{Client, authorizer, client, labels, policies, show};

const WEB: &str = "cluster.local/ns/shop/sa/web";

fn check(documents: &[&str], table: Vec<(Client, &str)>) {
    let authorizer = authorizer(&policies(documents), "shop", &labels(&[]));
    for (client, expected) in table {
        let verdict = show(authorizer.decide(&client.facts()));
        assert_eq!(verdict, expected, "{:?}", client.request);
    }
}

fn policy(action: &str, rule: &str) -> String {
    format!("metadata: {{name: p, namespace: shop}}\nspec: {{action: {action}, rules: [{rule}]}}")
}

/// An ALLOW and a DENY of one rule: whom the first lets through, and whom the second stops.
fn rule(rule: &str, table: Vec<(Client, bool, bool)>) {
    let of = |action: &str| {
        let documents = [&*policy(action, rule)];
        authorizer(&policies(&documents), "shop", &labels(&[]))
    };
    let (allow, deny) = (of("ALLOW"), of("DENY"));
    for (client, allowed, denied) in table {
        let facts = client.facts();
        assert_eq!(
            (
                allow.decide(&facts).is_allowed(),
                !deny.decide(&facts).is_allowed()
            ),
            (allowed, denied),
            "{rule}: {:?}",
            client.request
        );
    }
}

fn get(path: &str) -> Client {
    client(WEB).asks("GET", path, &[])
}

fn with(headers: &[(&str, &str)]) -> Client {
    client(WEB).asks("GET", "/", headers)
}

fn both(client: Client, matches: bool) -> (Client, bool, bool) {
    (client, matches, matches)
}

#[test]
fn methods_paths_hosts_and_headers_are_matched() {
    let post = |path| client(WEB).asks("POST", path, &[]);
    rule(
        "{to: [{operation: {methods: [GET, P*H]}}]}"
            .replace("P*H", "PATC*")
            .as_str(),
        vec![
            both(get("/"), true),
            both(client(WEB).asks("PATCH", "/", &[]), true),
            both(post("/"), false),
            // Methods have a case.
            both(client(WEB).asks("get", "/", &[]), false),
        ],
    );
    rule(
        "{to: [{operation: {notMethods: [GET]}}]}",
        vec![both(get("/"), false), both(post("/"), true)],
    );
    rule(
        "{to: [{operation: {paths: [/a, /b/*, '*.json'], notPaths: [/b/c]}}]}",
        vec![
            both(get("/a"), true),
            both(get("/a/"), false),
            both(get("/A"), false),
            both(get("/b/"), true),
            both(get("/b/d"), true),
            both(get("/b/c"), false),
            both(get("/b"), false),
            both(get("/x/y.json"), true),
        ],
    );
    rule(
        "{to: [{operation: {hosts: [shop.example, '*.internal', Upper.example:81]}}]}",
        vec![
            both(client(WEB).of_host("shop.example"), true),
            both(client(WEB).of_host("SHOP.example.:8080"), true),
            both(client(WEB).of_host("a.internal:80"), true),
            both(client(WEB).of_host("upper.EXAMPLE:81"), true),
            both(client(WEB).of_host("upper.example"), false),
            both(client(WEB).of_host("shop.example.org"), false),
            both(client(WEB).of_host(""), false),
        ],
    );
    rule(
        "{when: [{key: 'request.headers[X-Team]', values: [red, 'blue-*'], notValues: [blue-9]}]}",
        vec![
            both(with(&[("x-team", "red")]), true),
            both(with(&[("X-TEAM", "blue-1")]), true),
            both(with(&[("x-team", "blue-9")]), false),
            both(with(&[("x-team", "Red")]), false),
            both(with(&[]), false),
        ],
    );
    rule(
        "{when: [{key: 'request.headers[x-debug]', notValues: ['*']}]}",
        vec![
            both(with(&[("x-debug", "1")]), false),
            both(with(&[]), true),
        ],
    );
    // Of gRPC the path names service and method.
    rule(
        "{to: [{operation: {methods: [POST], paths: [/shop.Cart/*]}}]}",
        vec![
            both(post("/shop.Cart/Add"), true),
            both(post("/shop.Admin/Add"), false),
        ],
    );
}

#[test]
fn fields_of_one_operation_are_joined_and_operations_are_alternatives() {
    let documents = policy(
        "ALLOW",
        "{from: [{source: {namespaces: [shop]}}], to: [{operation: {ports: [80], methods: [GET], paths: [/a]}}, {operation: {ports: [81], methods: [PUT]}}, {operation: {ports: [5432]}}], when: [{key: source.serviceAccount, values: [web]}]}",
    );
    check(
        &[&documents],
        vec![
            (get("/a"), "allow by shop/p"),
            (get("/b"), "deny"),
            (get("/a").on_port(81), "deny"),
            (
                client(WEB).asks("PUT", "/x", &[]).on_port(81),
                "allow by shop/p",
            ),
            (client(WEB).on_port(5432), "allow by shop/p"),
            (get("/whatever").on_port(5432), "allow by shop/p"),
            (
                client("cluster.local/ns/shop/sa/db").asks("GET", "/a", &[]),
                "deny",
            ),
            (client("").asks("GET", "/a", &[]), "deny"),
        ],
    );
}

#[test]
fn without_http_an_allow_never_matches_and_a_deny_goes_by_the_rest() {
    for field in [
        "to: [{operation: {methods: ['*']}}]",
        "to: [{operation: {notMethods: [PUT]}}]",
        "to: [{operation: {paths: ['*']}}]",
        "to: [{operation: {notPaths: [/x]}}]",
        "to: [{operation: {hosts: ['*']}}]",
        "to: [{operation: {notHosts: [x]}}]",
        "when: [{key: 'request.headers[x]', values: ['*']}]",
        "when: [{key: 'request.headers[x]', notValues: [y]}]",
    ] {
        rule(&format!("{{{field}}}"), vec![(client(WEB), false, true)]);
        let from = format!("{{from: [{{source: {{namespaces: [other]}}}}], {field}}}");
        rule(&from, vec![(client(WEB), false, false)]);
    }
    // Another operation of the rule still holds.
    rule(
        "{to: [{operation: {methods: [GET]}}, {operation: {ports: [80]}}]}",
        vec![
            (client(WEB), true, true),
            (client(WEB).on_port(81), false, true),
        ],
    );
}

#[test]
fn a_connection_is_refused_when_no_request_on_it_could_be_allowed() {
    let connection = |documents: &[&str], client: Client| {
        let authorizer = authorizer(&policies(documents), "shop", &labels(&[]));
        show(authorizer.decide_connection(&client.facts()))
    };
    let some = policy(
        "ALLOW",
        "{from: [{source: {namespaces: [shop]}}], to: [{operation: {ports: [80], methods: [GET]}}]}",
    );
    assert_eq!(connection(&[&some], client(WEB)), "allow by shop/p");
    assert_eq!(connection(&[&some], client(WEB).on_port(81)), "deny");
    assert_eq!(connection(&[&some], client("")), "deny");
    let no_posts = policy("DENY", "{to: [{operation: {methods: [POST]}}]}");
    assert_eq!(connection(&[&no_posts], client(WEB)), "allow");
    let nobody = policy("DENY", "{from: [{source: {namespaces: [shop]}}]}");
    assert_eq!(connection(&[&nobody], client(WEB)), "deny by shop/p");
}

#[test]
fn http_is_needed_where_a_rule_is_about_requests() {
    let needs = |documents: &[&str]| {
        let authorizer = authorizer(&policies(documents), "shop", &labels(&[]));
        [80, 81, 82].map(|port| authorizer.needs_http(port))
    };
    let of = |rest: &str| format!("metadata: {{name: p, namespace: shop}}\nspec: {{{rest}}}");
    for (spec, expected) in [
        ("rules: [{}]", [false; 3]),
        ("rules: [{to: [{operation: {ports: [80]}}]}]", [false; 3]),
        ("rules: [{to: [{operation: {methods: [GET]}}]}]", [true; 3]),
        (
            "rules: [{to: [{operation: {ports: [80], methods: [GET]}}, {operation: {ports: [81]}}]}]",
            [true, false, false],
        ),
        (
            "rules: [{to: [{operation: {ports: [80]}}, {operation: {notPorts: [81]}}], when: [{key: 'request.headers[x]', values: [y]}]}]",
            [true, false, true],
        ),
        (
            "rules: [{when: [{key: 'request.headers[x]', values: [y]}]}]",
            [true; 3],
        ),
        (
            "dryRun: true, rules: [{to: [{operation: {ports: [82], paths: [/]}}]}]",
            [false, false, true],
        ),
    ] {
        assert_eq!(needs(&[&of(spec)]), expected, "{spec}");
    }
    let one = of("rules: [{to: [{operation: {ports: [80], methods: [GET]}}]}]");
    let other = "metadata: {name: q, namespace: mesh-system}\nspec: {rules: [{to: [{operation: {ports: [81], hosts: [h]}}]}]}";
    assert_eq!(needs(&[&one, other]), [true, true, false]);
}

#[test]
fn what_can_be_read_in_two_ways_is_read_in_the_way_that_lets_less_through() {
    let paths = |paths: &str| format!("{{to: [{{operation: {{{paths}}}}}]}}");
    rule(
        &paths("paths: [/admin, /admin/*]"),
        vec![
            // The same, however it is written.
            both(get("/admin"), true),
            both(get("//admin"), true),
            both(get("/x/../admin"), true),
            both(get("/%61dmin"), true),
            both(get("/./admin/."), true),
            both(get("/admin%20"), false),
            // To some servers this is /admin/x.
            (get("/admin%2Fx"), false, true),
            (get("/admin%5cx"), false, true),
            (get("/admin;x"), false, true),
            (get("/;x/admin"), false, true),
            // To all of them it is below /admin/.
            both(get("/admin/a%2Fb"), true),
            // Nobody knows.
            (get("/public/..%2Fadmin"), false, true),
            (get("/public/..;/admin"), false, true),
            (get("/admin%00"), false, true),
            (get("/%252e%252e/x"), false, true),
            (get("/x%c0%afadmin"), false, true),
        ],
    );
    rule(
        &paths("notPaths: [/public/*]"),
        vec![
            both(get("/public/a"), false),
            both(get("/private"), true),
            both(get("/public/../private"), true),
            // It is exempt only if it is public for sure.
            (get("/public/x%2Fy"), false, false),
            (get("/public%2Fx"), false, true),
            (get("/public/..%2Fprivate"), false, true),
        ],
    );
    // Servers take the first line of a header, or the last.
    rule(
        "{when: [{key: 'request.headers[x-role]', values: [admin]}]}",
        vec![
            both(with(&[("x-role", "admin")]), true),
            both(with(&[("x-role", "admin"), ("x-role", "admin")]), true),
            (
                with(&[("x-role", "user"), ("x-role", "admin")]),
                false,
                true,
            ),
            both(with(&[("x-role", "user"), ("x-role", "guest")]), false),
        ],
    );
    rule(
        "{when: [{key: 'request.headers[x-role]', notValues: [guest]}]}",
        vec![
            (
                with(&[("x-role", "user"), ("x-role", "guest")]),
                false,
                true,
            ),
            both(with(&[("x-role", "guest"), ("x-role", "guest")]), false),
        ],
    );
}
