//! What the tests of HTTP share: documents, and one request on a connection of its own.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use mesh_tests::{
    Agent, Config, Mesh, Pod, eventually_some,
    http::{self, Answer, Ask, Speaks},
};

pub(crate) const BOTH: [Speaks; 2] = [Speaks::Http1, Speaks::Http2];

/// The address of the n-th service of these tests.
pub(crate) fn vip(n: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([172, 31, 200, n], port))
}

/// A Service of pods with the label `app: APP`; ports with target and, unless empty, declared protocol.
pub(crate) fn service(
    namespace: &str,
    name: &str,
    n: u8,
    app: &str,
    ports: &[(u16, u16, &str)],
) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: {namespace}\nspec:\n  \
         clusterIP: 172.31.200.{n}\n  clusterIPs: [172.31.200.{n}]\n  selector:\n    app: {app}\n  ports:\n"
    );
    for (port, target, protocol) in ports {
        text += &format!("  - name: p{port}\n    port: {port}\n    targetPort: {target}\n");
        if !protocol.is_empty() {
            text += &format!("    appProtocol: {protocol}\n");
        }
    }
    text
}

/// An HTTPRoute or GRPCRoute; `rules` is what stands under `spec.rules`, in the form of a flow.
pub(crate) fn route(kind: &str, namespace: &str, name: &str, parent: &str, rules: &str) -> String {
    let (owner, parent) = parent.split_once('/').unwrap_or((namespace, parent));
    let (parent, port) = match parent.split_once(':') {
        Some((parent, port)) => (parent, format!(", port: {port}")),
        None => (parent, String::new()),
    };
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  \
         parentRefs: [{{group: \"\", kind: Service, name: {parent}, namespace: {owner}{port}}}]\n  rules: [{rules}]\n"
    )
}

/// Asks on a connection of its own; there must be an answer.
pub(crate) fn ask(from: &Pod, to: SocketAddr, speaks: Speaks, ask: &Ask) -> Answer {
    http::ask(from, to, speaks, ask)
        .unwrap_or_else(|e| panic!("{} asks {to}: {e}: {ask:?}", from.name))
}

pub(crate) fn get(from: &Pod, to: SocketAddr, path: &str) -> Answer {
    ask(from, to, Speaks::Http1, &Ask::get(path))
}

/// Denied by policy: the request, or the connection that carried it.
pub(crate) fn is_denied(answer: &Answer) -> bool {
    let reason = answer.reason();
    answer.status == 403 && matches!(reason.as_deref(), Some("policy_denied" | "denied_by_peer"))
}

/// A request ID that nobody else has, so that log lines are found by it.
pub(crate) fn id(what: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{what}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The access log line of a request.
pub(crate) fn log_line(agent: &Agent, direction: &str, id: &str) -> String {
    eventually_some("a line of the access log", Duration::from_secs(5), || {
        let wanted = [
            format!("request_id=\"{id}\""),
            format!("direction=\"{direction}\""),
        ];
        let lines = agent.log_lines("request finished");
        let found: Vec<_> = lines
            .into_iter()
            .filter(|line| wanted.iter().all(|word| line.contains(word)))
            .collect();
        match found.as_slice() {
            [one] => Ok(one.clone()),
            [] => Err("none".into()),
            many => Err(format!("{} of them: {many:?}", many.len())),
        }
    })
}

/// A field of a line of the access log.
pub(crate) fn field(line: &str, name: &str) -> String {
    let Some((_, rest)) = line.split_once(&format!(" {name}=")) else {
        return String::new();
    };
    match rest.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next().unwrap_or_default().to_owned(),
        None => rest.split(' ').next().unwrap_or_default().to_owned(),
    }
}

/// `istio_requests_total` of the agents of two pods grows by what is `expected` while `work` is done.
pub(crate) fn requests_grow(
    mesh: &Mesh,
    pods: [&str; 2],
    labels: &[(&str, &str)],
    expected: [f64; 2],
    work: impl FnOnce(),
) {
    const NAME: &str = "istio_requests_total";
    let scrapes = || pods.map(|pod| mesh.agent_of(pod).metrics());
    let before = scrapes().map(|scrape| scrape.sum(NAME, labels));
    work();
    eventually_some(
        &format!("counted with {labels:?}"),
        Duration::from_secs(5),
        || {
            let now = scrapes();
            let sums = [0, 1].map(|at| now[at].sum(NAME, labels) - before[at]);
            if sums == expected {
                return Ok(());
            }
            // Every series of this reporter says what there is instead.
            let reporter = labels.iter().filter(|(name, _)| *name == "reporter");
            let reporter: Vec<_> = reporter.copied().collect();
            let series = now
                .iter()
                .flat_map(|scrape| scrape.matching(NAME, &reporter));
            let series: Vec<_> = series
                .map(|sample| format!("{:?} {}", sample.labels, sample.value))
                .collect();
            Err(format!("{sums:?} of {series:?}"))
        },
    );
}

/// The n-th of a row of changes to what is configured for a service: a route comes, the policy is another, the route goes.
pub(crate) fn change_of_config(config: &Config, service: &str, n: usize) {
    let file = format!("route-{service}.yaml");
    match n % 3 {
        0 => {
            let rule = format!(
                "{{filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: x-n, value: '{n}'}}]}}}}], backendRefs: [{{name: {service}, port: 80}}]}}"
            );
            config.put(&file, &route("HTTPRoute", "shop", service, service, &rule));
        }
        1 => {
            let strategy = ["random", "peak_ewma", "least_connections"][n % 9 / 3];
            let spec = format!(
                "  timeouts: {{request: {}s}}\n  loadBalancer: {{strategy: {strategy}}}",
                n + 10
            );
            config.traffic_policy("shop", service, &spec);
        }
        _ => config.remove(&file),
    }
}
