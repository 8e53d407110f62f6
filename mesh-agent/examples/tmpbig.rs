use mesh_agent::{api, catalog::Catalog};
use std::fmt::Write;
#[derive(Clone, Copy)]
struct Instant(u64);
impl Instant {
    fn now() -> Self {
        let s = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        Instant(s.split(' ').next().unwrap().parse().unwrap())
    }
}
impl std::ops::Sub for Instant {
    type Output = std::time::Duration;
    fn sub(self, o: Self) -> std::time::Duration {
        std::time::Duration::from_nanos(self.0 - o.0)
    }
}
fn main() {
    let mode = std::env::args().nth(1).unwrap();
    let dir = std::path::PathBuf::from("/tmp/cfg-big");
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    let (n, per) = (10_000u32, 5u32);
    let mut all = String::new();
    for s in 0..n {
        let mut out = String::new();
        let vip = format!("10.{}.{}.{}", 96 + s / 62500, s / 250 % 250, s % 250 + 1);
        writeln!(out, "apiVersion: v1\nkind: Service\nmetadata:\n  name: svc-{s}\n  namespace: shop\nspec:\n  clusterIPs:\n  - {vip}\n  ports:\n  - name: http\n    port: 80\n    targetPort: 8080").unwrap();
        if mode.contains('w') {
            writeln!(out, "  selector:\n    app: app-{s}").unwrap();
            for e in 0..per {
                let i = s * per + e;
                writeln!(out, "---\napiVersion: mesh.covet.dev/v1alpha1\nkind: Workload\nmetadata:\n  name: w-{i}\n  namespace: shop\n  labels:\n    app: app-{s}\n    tier: web\nspec:\n  node: n2\n  addresses:\n  - 10.{}.{}.{}\n  ports:\n    http: 8080", 128 + i / 62500, i / 250 % 250, i % 250 + 1).unwrap();
            }
        } else {
            writeln!(out, "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: svc-{s}-1\n  namespace: shop\n  labels:\n    kubernetes.io/service-name: svc-{s}\naddressType: IPv4\nports:\n- name: http\n  port: 8080\nendpoints:").unwrap();
            for e in 0..per {
                let i = s * per + e;
                writeln!(
                    out,
                    "- addresses: [10.{}.{}.{}]\n  conditions: {{ready: true}}",
                    128 + i / 62500,
                    i / 250 % 250,
                    i % 250 + 1
                )
                .unwrap();
            }
        }
        if mode.contains('1') {
            all.push_str("---\n");
            all.push_str(&out);
        } else {
            std::fs::write(dir.join(format!("s{s}.yaml")), out).unwrap();
        }
    }
    if mode.contains('1') {
        std::fs::write(dir.join("all.yaml"), &all).unwrap();
    }
    let catalog = Catalog::new("n1");
    let id = catalog.register();
    let mut loader = api::Loader::new(&dir, api::Environment::of_this_machine(Some("n1")));
    for round in 0..6 {
        if round > 1 {
            std::thread::sleep(std::time::Duration::from_millis(30));
            if mode.contains('1') {
                let t = all
                    .replace(
                        "svc-77\n",
                        if round % 2 == 0 {
                            "svc-77 # x\n"
                        } else {
                            "svc-77\n"
                        },
                    )
                    .replace(
                        "targetPort: 8080\n---",
                        &format!("targetPort: {}\n---", 8080),
                    );
                let t = t.replacen("port: 80\n", &format!("port: {}\n", 80 + round), 1);
                std::fs::write(dir.join("all.yaml"), t).unwrap();
            } else {
                let f = dir.join("s77.yaml");
                let t = std::fs::read_to_string(&f).unwrap();
                let t = t.replacen(
                    &format!("port: {}\n", if round == 2 { 80 } else { 79 + round }),
                    &format!("port: {}\n", 80 + round),
                    1,
                );
                std::fs::write(f, t).unwrap();
            }
        }
        let a = Instant::now();
        let o = loader.load().unwrap();
        let b = Instant::now();
        let w = o.warnings.len();
        let fr = o.files_read;
        catalog.apply(id, o.config);
        let c = Instant::now();
        println!(
            "{mode} round {round}: load {:?} apply {:?} total {:?} warnings {w} files_read {fr} version {}",
            b - a,
            c - b,
            c - a,
            catalog.snapshot().version
        );
    }
    let s = std::fs::read_to_string("/proc/self/status").unwrap();
    println!("{}", s.lines().find(|l| l.starts_with("VmRSS")).unwrap());
    let snap = catalog.snapshot();
    println!(
        "services {} endpoints {}",
        snap.services().count(),
        snap.services()
            .map(|s| s.ports[0].endpoints.len())
            .sum::<usize>()
    );
}
