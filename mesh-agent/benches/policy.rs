//! What a decision on a connection or a request costs, by number and kind of policies.
//!
//! `cargo bench -p mesh-agent --bench policy [-- FILTER]` prints the table of docs/benchmarks.md: nanoseconds for one
//! decision, the best of several rounds, for a client that the last policy matches and for one that none does.

use std::{fmt::Write as _, hint::black_box, net::IpAddr, time::Instant};

use http::HeaderMap;
use mesh_agent::{
    api::parse_bytes,
    model::{SpiffeId, TrustDomain},
    policy::{Authorizer, Facts, HttpFacts, RequestHost, RequestPath, Trust},
};

/// Decisions in a row, and how often.
const DECISIONS: u32 = 2_000;
const ROUNDS: u32 = 50;

/// The action and rule of policy `at` of `count`. What the last one is like matches `LAST`, and nobody else.
type Kind = fn(usize, usize) -> (&'static str, String);

const KINDS: [(&str, Kind); 11] = [
    ("exact principals", |at, count| {
        let from = format!(
            "{{principals: [cluster.local/ns/{}/sa/web]}}",
            namespace(at, count)
        );
        ("ALLOW", format!("from: [{{source: {from}}}]"))
    }),
    ("namespaces and ports", |at, count| {
        let from = format!("{{namespaces: [{}]}}", namespace(at, count));
        (
            "ALLOW",
            format!(
                "from: [{{source: {from}}}], to: [{{operation: {{ports: [80, {}]}}}}]",
                at % 60_000 + 100
            ),
        )
    }),
    ("prefixes of principals", |at, count| {
        let from = format!(
            "{{principals: ['cluster.local/ns/{}/*']}}",
            namespace(at, count)
        );
        ("ALLOW", format!("from: [{{source: {from}}}]"))
    }),
    ("suffixes of principals", |at, count| {
        let from = format!("{{principals: ['*ns/{}/sa/web']}}", namespace(at, count));
        ("ALLOW", format!("from: [{{source: {from}}}]"))
    }),
    ("ranges of addresses", |at, count| {
        let range = match at + 1 == count {
            true => "192.0.2.0/24".to_owned(),
            false => format!("10.{}.{}.0/24", at / 256 % 256, at % 256),
        };
        (
            "ALLOW",
            format!("from: [{{source: {{ipBlocks: [{range}]}}}}]"),
        )
    }),
    ("one port for all", |at, count| {
        let from = format!(
            "{{principals: ['cluster.local/ns/{}/*']}}",
            namespace(at, count)
        );
        (
            "ALLOW",
            format!("from: [{{source: {from}}}], to: [{{operation: {{ports: [80]}}}}]"),
        )
    }),
    ("all exclude the client", |at, _| {
        let from = format!("{{notNamespaces: [last, other, n{at}]}}");
        ("DENY", format!("from: [{{source: {from}}}]"))
    }),
    ("all but one of five demands", |at, count| {
        let name = namespace(at, count);
        let from = "{namespaces: ['*'], serviceAccounts: [last/web, other/web], notPrincipals: [cluster.local/ns/a/sa/b], ipBlocks: [0.0.0.0/0]}";
        (
            "ALLOW",
            format!(
                "from: [{{source: {from}}}], to: [{{operation: {{ports: [80]}}}}], when: [{{key: source.namespace, values: [{name}]}}]"
            ),
        )
    }),
    ("paths of requests", |at, count| {
        let name = namespace(at, count);
        (
            "ALLOW",
            format!("to: [{{operation: {{methods: [GET], paths: [/{name}, '/{name}/*']}}}}]"),
        )
    }),
    ("headers of requests", |at, count| {
        let name = namespace(at, count);
        (
            "ALLOW",
            format!(
                "to: [{{operation: {{hosts: [shop.example]}}}}], when: [{{key: 'request.headers[x-team]', values: [{name}]}}]"
            ),
        )
    }),
    ("all of these in turn", |at, count| {
        if at + 1 == count {
            return KINDS[0].1(at, count);
        }
        KINDS[at % 10].1(at, count)
    }),
];

fn namespace(at: usize, count: usize) -> String {
    match at + 1 == count {
        true => "last".to_owned(),
        false => format!("n{at}"),
    }
}

fn authorizer(kind: Kind, count: usize) -> Result<Authorizer, Box<dyn std::error::Error>> {
    let mut text = String::new();
    for at in 0..count {
        let (action, rule) = kind(at, count);
        writeln!(
            text,
            "---\napiVersion: mesh.covet.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: p{at}}}\nspec: {{action: {action}, rules: [{{{rule}}}]}}"
        )?;
    }
    let (config, _) = parse_bytes("f", text.as_bytes()).map_err(|errors| format!("{errors:?}"))?;
    Ok(Authorizer::of(
        config.authorization_policies,
        Trust::default(),
    ))
}

fn measure(authorizer: &Authorizer, source: &SpiffeId, ip: &str) -> f64 {
    // With the request goes what is made of its path and host.
    let name = source.namespace();
    let target = format!("/{name}/cart/items");
    let mut headers = HeaderMap::new();
    for header in [
        "accept",
        "user-agent",
        "x-request-id",
        "traceparent",
        "cookie",
        "x-team",
    ] {
        if let Ok(value) = name.parse() {
            headers.insert(header, value);
        }
    }
    let ip: IpAddr = ip.parse().unwrap_or(IpAddr::from([0; 4]));
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        let started = Instant::now();
        for _ in 0..DECISIONS {
            let path = RequestPath::new(black_box(&target));
            let host = RequestHost::new(black_box("shop.example"));
            let facts = Facts {
                source: Some(black_box(source)),
                source_ip: black_box(ip),
                destination_ip: black_box(ip),
                destination_port: black_box(80),
                http: Some(HttpFacts {
                    method: "GET",
                    path: &path,
                    host: &host,
                    headers: &headers,
                }),
            };
            black_box(authorizer.decide(&facts));
        }
        let each = started.elapsed().as_nanos() as f64 / f64::from(DECISIONS);
        best = best.min(each);
    }
    best
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let filter = std::env::args()
        .skip(1)
        .find(|arg| !arg.starts_with('-'))
        .unwrap_or_default();
    let id = |namespace| SpiffeId::new(&TrustDomain::default(), namespace, "web");
    let (last, other) = (id("last")?, id("other")?);
    println!("| policies | kind | last matches, ns | none matches, ns | read and compile, ms |");
    println!("| ---: | --- | ---: | ---: | ---: |");
    for (name, kind) in KINDS.iter().filter(|(name, _)| name.contains(&filter)) {
        for count in [10, 100, 1_000, 10_000] {
            let started = Instant::now();
            let authorizer = authorizer(*kind, count)?;
            let read = started.elapsed().as_secs_f64() * 1e3;
            let hit = measure(&authorizer, &last, "192.0.2.7");
            let miss = measure(&authorizer, &other, "198.51.100.7");
            println!("| {count} | {name} | {hit:.0} | {miss:.0} | {read:.1} |");
        }
    }
    Ok(())
}
