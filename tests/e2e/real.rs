//! Real programs in pods: what people run, through the mesh.

use std::{process::Command, sync::Arc, time::Duration};

use mesh_tests::{
    Bed, Nginx, Pod,
    command::{self, Process},
    eventually, prereq,
    runner::Shared,
    tests,
};
use rustix::process::Signal;

static BED: Shared<Bed> = Shared::new();

tests! { nginx_and_curl, nginx_reload, iperf3_both_ways, socat_lines, python_asyncio }

pub(crate) fn teardown() {
    BED.clear();
}

fn bed() -> Arc<Bed> {
    BED.get(|| {
        Bed::plan()
            .pods(&["client", "web1", "web2"])
            .service("web", &[(80, 80)])
            .start()
    })
}

pub(crate) fn curl(pod: &Pod, url: &str) -> String {
    prereq::programs(&["curl"]);
    command::stdout(
        pod,
        "curl",
        &["-sS", "--fail", "--max-time", "10", url],
        Duration::from_secs(15),
    )
}

fn nginx_and_curl() {
    let bed = bed();
    let client = bed.pod("client");
    let _servers = [Nginx::start(bed.pod("web1")), Nginx::start(bed.pod("web2"))];
    for v6 in [false, true] {
        let me = client.addr(v6, 0).ip();
        let mut names = std::collections::BTreeSet::new();
        for _ in 0..6 {
            let answer = curl(client, &format!("http://{}/", bed.service("web", v6, 80)));
            let (name, seen) = answer.trim().split_once(' ').unwrap();
            assert_eq!(seen, me.to_string(), "nginx logs the real client");
            names.insert(name.to_owned());
        }
        if bed.has_mesh() {
            assert_eq!(names.len(), 2, "both backends answer: {names:?}");
        }
        let web = bed.pod("web1").addr(v6, 80);
        assert_eq!(
            curl(client, &format!("http://{web}/")),
            format!("web1 {me}\n")
        );
    }
}

/// `nginx -s reload` under load, as operators do it: new workers take over the listeners.
fn nginx_reload() {
    let bed = Bed::plan().pods(&["client", "web1"]).start();
    let (client, web) = (bed.pod("client"), bed.pod("web1"));
    let server = Nginx::start(web);
    let url = format!("http://{}/", web.v4(80));
    for _ in 0..3 {
        server.signal(Signal::HUP);
        for _ in 0..10 {
            assert!(curl(client, &url).starts_with("web1 "));
        }
    }
}

fn iperf3_both_ways() {
    prereq::programs(&["iperf3"]);
    let bed = bed();
    let (client, web) = (bed.pod("client"), bed.pod("web1"));
    let mut server = Process::start(
        web,
        "iperf3",
        Command::new("iperf3").args(["-s", "-p", "5201", "--forceflush"]),
    );
    eventually("iperf3 listens", Duration::from_secs(10), || {
        server.log().contains("listening")
    });
    let to = web.v4.to_string();
    for extra in [&["-P", "2"][..], &["-R"]] {
        let mut args = vec!["-c", &to, "-p", "5201", "-n", "64M", "-J"];
        args.extend(extra);
        let report = command::stdout(client, "iperf3", &args, Duration::from_secs(30));
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        let bits = report["end"]["sum_received"]["bits_per_second"]
            .as_f64()
            .unwrap();
        assert!(bits > 50e6, "{bits} bit/s");
    }
    assert!(server.is_running());
}

fn socat_lines() {
    prereq::programs(&["socat"]);
    let bed = bed();
    let (client, web) = (bed.pod("client"), bed.pod("web2"));
    let _server = Process::start(
        web,
        "socat",
        Command::new("socat").args(["TCP6-LISTEN:7000,fork,reuseaddr,ipv6only=0", "EXEC:rev"]),
    );
    for to in [
        format!("TCP4:{}:7000", web.v4),
        format!("TCP6:[{}]:7000", web.v6),
    ] {
        eventually("socat answers", Duration::from_secs(10), || {
            let script = format!("printf 'abc\\ndef\\n' | socat -t 5 - {to}");
            let out = command::output(
                client,
                Command::new("sh").args(["-c", &script]),
                Duration::from_secs(10),
            );
            out.stdout == b"cba\nfed\n"
        });
    }
}

/// An event loop that is not ours, on both sides.
fn python_asyncio() {
    prereq::programs(&["python3"]);
    let bed = bed();
    let (client, web) = (bed.pod("client"), bed.pod("web2"));
    let server = format!(
        "import asyncio\n\
         async def serve(r, w):\n    data = await r.read()\n    w.write(data[::-1])\n    await w.drain()\n    w.close()\n\
         async def main():\n    s = await asyncio.start_server(serve, '{}', 7001)\n    print('ready', flush=True)\n    await s.serve_forever()\n\
         asyncio.run(main())\n",
        web.v4
    );
    let process = Process::start(web, "python", Command::new("python3").args(["-c", &server]));
    eventually("python is ready", Duration::from_secs(20), || {
        process.log().contains("ready")
    });
    let script = format!(
        "import asyncio\n\
         async def one(i):\n    r, w = await asyncio.open_connection('{}', 7001)\n    m = (str(i) * 5000).encode()\n    w.write(m)\n    w.write_eof()\n    a = await r.read()\n    assert a == m[::-1], (i, len(a))\n    assert w.get_extra_info('peername')[0] == '{}'\n    w.close()\n\
         async def main():\n    await asyncio.gather(*[one(i) for i in range(200)])\n    print('done')\n\
         asyncio.run(main())\n",
        web.v4, web.v4
    );
    let out = command::stdout(client, "python3", &["-c", &script], Duration::from_secs(40));
    assert_eq!(out, "done\n");
}
