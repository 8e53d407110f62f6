//! What is refused and warned of in HTTPRoutes and GRPCRoutes.

use crate::api::{Config, Warning, parse_bytes};

const SERVICES: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIPs: [10.96.0.1], selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: bare}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: mesh.covet.dev/v1alpha1
kind: Workload
metadata: {name: web, labels: {app: web}}
spec: {addresses: [10.1.0.1]}
---
"#;

fn load(kind: &str, spec: &str) -> Result<(Config, Vec<Warning>), Vec<String>> {
    let text = format!(
        "{SERVICES}apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: r}}\nspec: {{{spec}}}\n"
    );
    parse_bytes("f", text.as_bytes()).map_err(|errors| {
        let errors = errors.into_iter();
        errors
            .map(|error| format!("{}: {}", error.field, error.message))
            .collect()
    })
}

const PARENT: &str = "parentRefs: [{group: '', kind: Service, name: web}]";

fn http_rule(rule: &str) -> Result<(Config, Vec<Warning>), Vec<String>> {
    load("HTTPRoute", &format!("{PARENT}, rules: [{{{rule}}}]"))
}

/// Each rule of an HTTPRoute with all of its errors; the path of the rule is left out of the fields.
fn refused(table: &[(&str, &[&str])]) {
    let mut wrong = Vec::new();
    for (rule, expected) in table {
        match http_rule(rule) {
            Ok(_) => wrong.push(format!("{rule}: accepted")),
            Err(errors) => {
                let errors: Vec<&str> = errors
                    .iter()
                    .map(|error| error.trim_start_matches("spec.rules[0]."))
                    .collect();
                if errors != *expected {
                    wrong.push(format!(
                        "{rule}\n  expected {expected:#?}\n  got {errors:#?}"
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// All warnings about the route, of a spec that is accepted.
fn warned(kind: &str, spec: &str) -> Vec<String> {
    let (_, warnings) = load(kind, spec).unwrap();
    let warnings = warnings.iter().filter(|warning| warning.line > 15);
    let shown = warnings.map(|warning| format!("{}: {}", warning.field, warning.message));
    shown.collect()
}

const TO: &str = "backendRefs: [{name: web, port: 80}]";

#[test]
fn a_rule_with_everything_is_accepted_without_a_word() {
    let rule = r#"
      name: all, matches: [
        {path: {type: Exact, value: "/a%20b/~c"}, method: GET, headers: [{name: X, value: y}, {name: z, type: RegularExpression, value: "a|b"}], queryParams: [{name: q, value: v}]},
        {path: {type: RegularExpression, value: "/v[0-9]+(/.*)?"}}, {}],
      filters: [
        {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}], add: [{name: c, value: d}], remove: [e]}},
        {type: ResponseHeaderModifier, responseHeaderModifier: {remove: [a]}},
        {type: RequestMirror, requestMirror: {backendRef: {name: web, port: 80}, percent: 5}},
        {type: RequestMirror, requestMirror: {backendRef: {name: bare, port: 80}, fraction: {numerator: 1, denominator: 3}}},
        {type: URLRewrite, urlRewrite: {hostname: h.example, path: {type: ReplaceFullPath, replaceFullPath: /x}}},
        {type: CORS, cors: {allowOrigins: ["https://*.example:8443"], allowMethods: ["*"], allowHeaders: [x-a], exposeHeaders: ["*"], allowCredentials: true, maxAge: 60}}],
      backendRefs: [{name: web, port: 80, weight: 0, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}]}}]}, {name: bare, port: 80}],
      timeouts: {request: 10s, backendRequest: 2s}, retry: {attempts: 3, codes: [500, 503], backoff: 100ms}"#;
    assert_eq!(
        warned("HTTPRoute", &format!("{PARENT}, rules: [{{{rule}}}]")),
        Vec::<String>::new()
    );
    let rule = "matches: [{method: {service: shop.v1.Cart}}, {method: {type: RegularExpression, method: 'Get.*'}, headers: [{name: a, value: b}]}], backendRefs: [{name: web, port: 80}]";
    assert_eq!(
        warned("GRPCRoute", &format!("{PARENT}, rules: [{{{rule}}}]")),
        Vec::<String>::new()
    );
}

#[test]
fn what_cannot_match_is_refused() {
    refused(&[
        (
            "matches: [{path: {value: v2}}]",
            &["matches[0].path.value: expected a path that begins with '/', got \"v2\""],
        ),
        (
            "matches: [{path: {type: Exact, value: /a//b}}]",
            &["matches[0].path.value: expected a path without '//', got \"/a//b\""],
        ),
        (
            "matches: [{path: {value: /a/../b}}, {path: {value: /a/.}}]",
            &[
                "matches[0].path.value: expected a path without segments '.' and '..', got \"/a/../b\"",
                "matches[1].path.value: expected a path without segments '.' and '..', got \"/a/.\"",
            ],
        ),
        (
            "matches: [{path: {value: /a%2fb}}, {path: {value: '/a b'}}, {path: {value: '/a%2'}}]",
            &[
                "matches[0].path.value: expected a path without '%2F', got \"/a%2fb\"",
                "matches[1].path.value: expected a path of letters, digits, -/._~!$&'()*+,;=:@ and escapes such as %20, got \"/a b\"",
                "matches[2].path.value: expected a path of letters, digits, -/._~!$&'()*+,;=:@ and escapes such as %20, got \"/a%2\"",
            ],
        ),
        (
            "matches: [{path: {type: RegularExpression, value: '/a(b'}}]",
            &[
                "matches[0].path.value: expected a regular expression in RE2's syntax, got \"/a(b\" (unclosed group)",
            ],
        ),
        (
            "matches: [{path: {type: RegularExpression, value: 'a)|(b'}}]",
            &[
                "matches[0].path.value: expected a regular expression in RE2's syntax, got \"a)|(b\" (unopened group)",
            ],
        ),
        (
            "matches: [{headers: [{name: a, type: RegularExpression, value: '(a{1000}){1000}'}]}]",
            &[
                "matches[0].headers[0].value: expected a regular expression in RE2's syntax, got \"(a{1000}){1000}\" (compiles to more than 1024 KiB)",
            ],
        ),
        (
            "matches: [{headers: [{name: a, value: b}, {name: a, value: c}]}]",
            &["matches[0].headers[1].name: header a is given twice"],
        ),
        (
            "matches: [{queryParams: [{name: a, value: b}, {name: a, value: c}]}]",
            &["matches[0].queryParams[1].name: parameter a is given twice"],
        ),
        (
            "matches: [{method: get}]",
            &[
                "matches[0].method: expected one of GET, HEAD, POST, PUT, DELETE, CONNECT, OPTIONS, TRACE, PATCH, got \"get\"",
            ],
        ),
        (
            "matches: [{headers: [{name: 'a b', value: ''}]}]",
            &[
                "matches[0].headers[0].name: expected a header name: at most 256 letters, digits and !#$%&'*+-.^_`|~, got \"a b\"",
                "matches[0].headers[0].value: expected 1 to 4096 characters, got \"\"",
            ],
        ),
    ]);
}

#[test]
fn filters_that_contradict_are_refused() {
    refused(&[
        (
            "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: A, value: b}], remove: [a]}}]",
            &[
                "filters[0].requestHeaderModifier.remove[0]: header a is already in set: one action for a header",
            ],
        ),
        (
            "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: Host, value: b}], remove: [Content-Length, X-Forwarded-Client-Cert, te]}}]",
            &[
                "filters[0].requestHeaderModifier.set[0].name: Host is changed by the filter URLRewrite, with hostname",
                "filters[0].requestHeaderModifier.remove[0]: Content-Length says where the body ends: a route must not change it",
                "filters[0].requestHeaderModifier.remove[1]: X-Forwarded-Client-Cert says who the client is: only the agent sets it, from the tunnel's identity",
                "filters[0].requestHeaderModifier.remove[2]: te belongs to one connection: the agent sets it by the rules of RFC 9110",
            ],
        ),
        (
            "filters: [{type: URLRewrite}, {type: URLRewrite, urlRewrite: {hostname: a}, cors: {}}]",
            &[
                "filters[0].urlRewrite: required field is missing: type is URLRewrite",
                "filters[1].type: URLRewrite is given twice: once in a rule at most",
                "filters[1].cors: not with type URLRewrite",
            ],
        ),
        (
            "filters: [{type: RequestRedirect, requestRedirect: {port: 1}}, {type: URLRewrite, urlRewrite: {hostname: a}}], backendRefs: [{name: web, port: 80}]",
            &[
                "filters[1].type: URLRewrite and RequestRedirect cannot stand together: what is redirected is not forwarded",
                "backendRefs: a rule that redirects forwards nothing",
            ],
        ),
        (
            "filters: [{type: RequestRedirect, requestRedirect: {statusCode: 304, path: {type: ReplacePrefixMatch, replaceFullPath: /a}}}], matches: [{path: {type: Exact, value: /a}}]",
            &[
                "filters[0].requestRedirect.statusCode: expected one of 301, 302, 303, 307, 308, got 304",
                "filters[0].requestRedirect.path.replacePrefixMatch: required field is missing: type is ReplacePrefixMatch",
                "filters[0].requestRedirect.path.type: ReplacePrefixMatch needs a rule with exactly one match, of a path prefix",
                "filters[0].requestRedirect.path.replaceFullPath: not with type ReplacePrefixMatch",
            ],
        ),
        (
            "filters: [{type: RequestMirror, requestMirror: {backendRef: {name: web}, percent: 5, fraction: {numerator: 5, denominator: 4}}}]",
            &[
                "filters[0].requestMirror.backendRef.port: required field is missing: a Service needs its port",
                "filters[0].requestMirror.fraction: not beside percent",
                "filters[0].requestMirror.fraction.numerator: expected at most the denominator, 4, got 5",
            ],
        ),
        (
            "filters: [{type: CORS, cors: {allowOrigins: ['*', 'https://a'], allowMethods: [GET, GET], allowHeaders: ['x y']}}]",
            &[
                "filters[0].cors.allowHeaders[0]: expected a header name: at most 256 letters, digits and !#$%&'*+-.^_`|~, got \"x y\"",
            ],
        ),
        (
            "filters: [{type: CORS, cors: {allowOrigins: ['*', 'https://a'], allowMethods: [GET, GET]}}]",
            &[
                "filters[0].cors.allowOrigins: '*' stands alone: it already means all",
                "filters[0].cors.allowMethods[1]: \"GET\" is given twice",
            ],
        ),
        (
            "filters: [{type: CORS, cors: {allowOrigins: ['ftp://a', 'https://a/b', 'a.example']}}]",
            &[
                "filters[0].cors.allowOrigins[0]: expected an origin such as https://example.com:8443, with '*' in the host for any text, or '*', got \"ftp://a\"",
                "filters[0].cors.allowOrigins[1]: expected an origin such as https://example.com:8443, with '*' in the host for any text, or '*', got \"https://a/b\"",
                "filters[0].cors.allowOrigins[2]: expected an origin such as https://example.com:8443, with '*' in the host for any text, or '*', got \"a.example\"",
            ],
        ),
        (
            "backendRefs: [{name: web, port: 80, filters: [{type: RequestRedirect, requestRedirect: {port: 1}}]}]",
            &[
                "backendRefs[0].filters[0].type: RequestRedirect answers before a backend is chosen: not in backendRefs",
            ],
        ),
    ]);
}

#[test]
fn what_the_mesh_cannot_do_is_refused_by_name() {
    refused(&[
        (
            "sessionPersistence: {type: Cookie}",
            &[
                "sessionPersistence: not supported: a TrafficPolicy for the backend Service keeps sessions, with spec.loadBalancer.consistentHash and a cookie",
            ],
        ),
        (
            "filters: [{type: ExtensionRef, extensionRef: {group: a, kind: b, name: c}}]",
            &[
                "filters[0].type: ExtensionRef is not supported: the mesh has no filters of its own",
                "filters[0].extensionRef: not supported: the mesh has no filters of its own",
            ],
        ),
        (
            "filters: [{type: ExternalAuth}]",
            &[
                "filters[0].type: ExternalAuth is not supported: the mesh decides by AuthorizationPolicy",
            ],
        ),
        (
            "match: []",
            &[
                "match: unknown field, did you mean matches? expected one of backendRefs, filters, matches, name, retry, timeouts",
            ],
        ),
        (
            "backendRefs: [{name: web}, {name: web, port: 80, weight: 1000001}]",
            &["backendRefs[1].weight: expected 0..=1000000, got 1000001"],
        ),
        (
            "backendRefs: [{name: web}]",
            &["backendRefs[0].port: required field is missing: a Service needs its port"],
        ),
        (
            "timeouts: {request: 1s, backendRequest: 2s}, retry: {codes: [500, 500]}",
            &[
                "timeouts.backendRequest: expected at most request, 1s, got 2s",
                "retry.codes[1]: code 500 is given twice",
            ],
        ),
    ]);
    let errors = |kind: &str, spec: &str| load(kind, spec).unwrap_err();
    assert_eq!(
        errors("GRPCRoute", "rules: [{timeouts: {}}]"),
        [
            "spec.rules[0].timeouts: not part of GRPCRoute: a TrafficPolicy for the route or the Service sets it"
        ]
    );
    assert_eq!(
        errors("GRPCRoute", "rules: [{filters: [{type: CORS}]}]"),
        [
            "spec.rules[0].filters[0].type: CORS is a filter of HTTPRoute: expected RequestHeaderModifier, ResponseHeaderModifier or RequestMirror"
        ]
    );
    assert_eq!(
        errors(
            "GRPCRoute",
            "rules: [{matches: [{method: {}}, {method: {service: a/b}}, {method: {service: '.a.B_1', method: 1a}}]}]"
        ),
        [
            "spec.rules[0].matches[0].method: required field is missing: service or method, or both",
            "spec.rules[0].matches[1].method.service: expected a service such as shop.v1.Cart, got \"a/b\"",
            "spec.rules[0].matches[2].method.method: expected a method such as AddItem, got \"1a\"",
        ]
    );
    assert_eq!(
        errors("HTTPRoute", "rules: [{name: a}, {name: a}]"),
        ["spec.rules[1].name: name \"a\" is given twice"]
    );
    let matches = "{matches: [".to_owned() + &"{},".repeat(64) + "]},";
    assert_eq!(
        errors("HTTPRoute", &format!("rules: [{}]", matches.repeat(3))),
        ["spec.rules: expected at most 128 matches in all rules together, got 192"]
    );
}

#[test]
fn what_does_nothing_is_warned_of() {
    assert_eq!(
        warned(
            "HTTPRoute",
            &format!("hostnames: [a.example, '*.b.example'], rules: [{{{TO}}}]")
        ),
        [
            "spec: the route has no parent, so it is for no traffic",
            "spec.hostnames: hostnames are not used: in a mesh the dialled address decides, not the host that a request names",
        ]
    );
    let parents = "parentRefs: [{name: gw}, {kind: Service, name: web}, {group: '', kind: Service, name: gone}, {group: '', kind: Service, name: web, port: 81}, {group: '', kind: Service, name: web, sectionName: x}, {group: '', kind: Service, name: bare}]";
    assert_eq!(
        warned("HTTPRoute", &format!("{parents}, rules: [{{{TO}}}]")),
        [
            "spec.parentRefs[0].name: a Gateway is no parent in a mesh, where routes are bound to Services (group \"\", kind Service): the route is not bound to it",
            "spec.parentRefs[1]: a Service is of group \"\" and kind Service: the route is not bound",
            "spec.parentRefs[2].name: there is no Service default/gone: the route is not bound to it",
            "spec.parentRefs[3].port: Service default/web has no such port: the route is not bound to it",
            "spec.parentRefs[4].sectionName: Service default/web has no such port: the route is not bound to it",
            "spec.parentRefs[5].name: Service default/bare has no virtual address: the route is not bound to it",
        ]
    );
    let rules = "{}, {backendRefs: [{name: web, port: 80, weight: 0}]}, {backendRefs: [{name: gone, port: 80}, {name: gone, port: 80, weight: 0}, {name: web, port: 81}, {group: a.b, kind: C, name: d}]}, {filters: [{type: RequestRedirect, requestRedirect: {}}]}, {matches: [{headers: [{name: a, value: b}, {name: A, value: c}]}], backendRefs: [{name: web, port: 80}]}";
    assert_eq!(
        warned("HTTPRoute", &format!("{PARENT}, rules: [{rules}]")),
        [
            "spec.rules[0]: the rule has no backendRefs: every request that it matches gets status 500",
            "spec.rules[1].backendRefs: no backend has weight: every request that the rule matches gets status 500",
            "spec.rules[2].backendRefs[0].name: there is no Service default/gone: its share gets status 500",
            "spec.rules[2].backendRefs[1].name: there is no Service default/gone: it has no weight, so nothing comes of it",
            "spec.rules[2].backendRefs[2].port: Service default/web has no port 81: its share gets status 500",
            "spec.rules[2].backendRefs[3].name: a C is no backend: its share gets status 500",
            "spec.rules[3].filters[0].requestRedirect: the redirect leads to where the request came to",
            "spec.rules[4].matches[0].headers[1].name: A is the same header as one above in other letters, and ignored",
        ]
    );
}

#[test]
fn errors_have_their_place() {
    let text = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, creationTimestamp: yesterday}\nspec:\n  rules:\n  - matches:\n    - path: {value: a}\n";
    let errors: Vec<String> = parse_bytes("f", text.as_bytes())
        .unwrap_err()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        errors,
        [
            "f:3:40: metadata.creationTimestamp: expected a time such as 2026-01-31T12:00:00Z, got \"yesterday\""
        ]
    );
    let text = text.replace("yesterday", "null");
    let errors: Vec<String> = parse_bytes("f", text.as_bytes())
        .unwrap_err()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        errors,
        [
            "f:7:21: spec.rules[0].matches[0].path.value: expected a path that begins with '/', got \"a\""
        ]
    );
    let old = "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: HTTPRoute\n";
    assert_eq!(
        parse_bytes("f", old.as_bytes()).unwrap_err()[0].to_string(),
        "f:1:13: apiVersion: expected gateway.networking.k8s.io/v1 for an HTTPRoute, got \"gateway.networking.k8s.io/v1beta1\""
    );
}
