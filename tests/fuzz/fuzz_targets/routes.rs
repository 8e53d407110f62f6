//! A route as a user wrote it and a request as anybody sends it: first line of the input a path, the second an
//! expression or path of the route, the third query and header. Never a panic; lookup, redirect and rewrite hold what
//! they promise.
#![no_main]

use http::{HeaderMap, HeaderValue, Method, Uri};
use libfuzzer_sys::fuzz_target;
use mesh_agent::{
    api::parse_bytes,
    catalog::Catalog,
    model::ResourceName,
    routing::{Cors, Dialled, RequestView},
};

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIPs: [10.96.0.1], ports: [{port: 80}]}\n---\n";

fuzz_target!(|text: &str| {
    let mut lines = text.splitn(4, '\n');
    let mut line = || lines.next().unwrap_or_default();
    let (target, written, value) = (line(), line(), line());
    let quote = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let (quoted, value_quoted) = (quote(written), quote(value));
    for (path_type, modifier) in [
        ("Exact", "Full"),
        ("PathPrefix", "Prefix"),
        ("RegularExpression", "Full"),
    ] {
        let replace = match modifier {
            "Full" => format!("{{type: ReplaceFullPath, replaceFullPath: {quoted}}}"),
            _ => format!("{{type: ReplacePrefixMatch, replacePrefixMatch: {quoted}}}"),
        };
        let config = format!(
            "{SERVICE}apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r}}\nspec:\n  parentRefs: [{{group: \"\", kind: Service, name: web}}]\n  rules:\n  - matches: [{{path: {{type: {path_type}, value: {quoted}}}, headers: [{{name: x, type: RegularExpression, value: {value_quoted}}}], queryParams: [{{name: q, value: {value_quoted}}}]}}]\n    filters:\n    - {{type: URLRewrite, urlRewrite: {{path: {replace}}}}}\n    - {{type: CORS, cors: {{allowOrigins: [{value_quoted}]}}}}\n  - filters: [{{type: RequestRedirect, requestRedirect: {{path: {{type: ReplacePrefixMatch, replacePrefixMatch: {quoted}}}}}}}]\n"
        );
        let Ok((config, _)) = parse_bytes("fuzz.yaml", config.as_bytes()) else {
            continue;
        };
        let catalog = Catalog::new("n1");
        let source = catalog.register();
        catalog.apply(source, config);
        let snapshot = catalog.snapshot();
        let Ok(uri) = target.parse::<Uri>() else {
            continue;
        };
        let mut headers = HeaderMap::new();
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert("x", value.clone());
            headers.insert("origin", value);
        }
        let name = ResourceName::new("default", "web");
        let Some(table) = snapshot.routes("default", &name, 80) else {
            panic!("the route is bound to the service");
        };
        let view = RequestView {
            method: &Method::GET,
            uri: &uri,
            headers: &headers,
        };
        let Some(found) = table.find(view) else {
            panic!("the second rule is for everything");
        };
        if let Some(prefix) = found.prefix {
            assert!(uri.path().starts_with(prefix));
        }
        let filters = &found.rule.filters;
        if let Some(rewrite) = &filters.rewrite {
            let mut new = uri.clone();
            rewrite.apply(&mut new, &mut headers.clone(), found.prefix);
            assert_eq!(new.query(), uri.query());
            assert_eq!(new.path().starts_with('/'), uri.path().starts_with('/'));
        }
        if let Some(redirect) = &filters.redirect {
            let dialled = Dialled {
                scheme: "http",
                host: Some(value),
                port: 80,
            };
            assert!(!redirect.location(&uri, dialled, found.prefix).is_empty());
        }
        if let Some(cors) = &filters.cors {
            let _ = Cors::is_preflight(&Method::OPTIONS, &headers);
            cors.preflight(&headers);
            cors.respond(&headers, &mut HeaderMap::new());
        }
    }
});
