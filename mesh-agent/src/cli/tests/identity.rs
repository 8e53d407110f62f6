//! What the commands about identity and policy show.

use super::NOW;
use crate::admin::api::{
    CaState, Candidate, Certificate, Certificates, Considered, Explanation, Mtls, Party, Policy,
    RevocationList, Transport, TrustBundle, TrustRoot, Verdict,
};

const HOUR: u64 = 3_600_000;

pub(super) fn certificates() -> Certificates {
    let web = Certificate {
        identity: "spiffe://cluster.local/ns/shop/sa/web".into(),
        state: "valid".into(),
        workloads: vec!["shop/web-1".into(), "shop/web-2".into()],
        serial: "3fa10c55e2d94b7f".into(),
        issuer: "CN=mesh-agent n1".into(),
        not_before_unix_ms: Some(NOW - 2 * HOUR),
        not_after_unix_ms: Some(NOW + 22 * HOUR),
        next_rotation_unix_ms: Some(NOW + 14 * HOUR),
        last_error: None,
        failures: 0,
    };
    let client = Certificate {
        identity: "spiffe://cluster.local/ns/shop/sa/client".into(),
        state: "expired".into(),
        workloads: vec!["shop/client".into()],
        serial: "09".into(),
        not_before_unix_ms: Some(NOW - 25 * HOUR),
        not_after_unix_ms: Some(NOW - HOUR),
        next_rotation_unix_ms: Some(NOW + 30_000),
        last_error: Some("the certificate authority does not answer: connection refused".into()),
        failures: 41,
        ..web.clone()
    };
    let missing = Certificate {
        identity: "spiffe://cluster.local/ns/bank/sa/teller".into(),
        state: "missing".into(),
        workloads: vec!["bank/teller".into()],
        last_error: None,
        ..Certificate::default()
    };
    Certificates {
        ca: CaState {
            name: "https://ca.mesh.example:15012".into(),
            last_signed_unix_ms: Some(NOW - 2 * HOUR),
            last_error: Some(
                "the certificate authority does not answer: connection refused".into(),
            ),
            last_error_unix_ms: Some(NOW - 12_000),
        },
        trust_domain: "cluster.local".into(),
        trust_domain_aliases: vec!["old.example".into()],
        identities: vec![missing, client, web],
        roots: vec![TrustRoot {
            subject: "CN=mesh root".into(),
            serial: "01".into(),
            not_before_unix_ms: NOW - 24 * HOUR,
            not_after_unix_ms: NOW + 3650 * 24 * HOUR,
            fingerprint: "9f86d081884c7d659a2feaa0c55ad015".into(),
        }],
        trust_bundle: Some(TrustBundle {
            path: "/etc/mesh/roots.pem".into(),
            error: Some("no certificate in it".into()),
        }),
        revocation_list: Some(RevocationList {
            path: "/etc/mesh/crl.pem".into(),
            revoked: 3,
            loaded_unix_ms: Some(NOW - 26 * HOUR),
            next_update_unix_ms: Some(NOW - 2 * HOUR),
            error: Some("not PEM".into()),
        }),
    }
}

pub(super) fn no_certificates() -> Certificates {
    Certificates {
        ca: CaState {
            name: "built-in".into(),
            ..CaState::default()
        },
        trust_domain: "cluster.local".into(),
        ..Certificates::default()
    }
}

pub(super) fn policies() -> Vec<Policy> {
    let deny = Policy {
        name: "mesh-system/no-batch".into(),
        action: "DENY".into(),
        dry_run: false,
        scope: "mesh".into(),
        selector: String::new(),
        rules: 1,
        workloads: (1..=6).map(|n| format!("shop/web-{n}")).collect(),
        local: 2,
    };
    let trial = Policy {
        name: "shop/web-clients".into(),
        action: "ALLOW".into(),
        dry_run: true,
        scope: "workloads".into(),
        selector: "app=web".into(),
        rules: 2,
        workloads: vec!["shop/web-1".into(), "shop/web-2".into()],
        local: 1,
    };
    let idle = Policy {
        name: "shop/old".into(),
        scope: "workloads".into(),
        selector: "app=gone".into(),
        dry_run: false,
        workloads: Vec::new(),
        local: 0,
        ..trial.clone()
    };
    vec![deny, idle, trial]
}

/// A service with three endpoints, and a plain address that a strict workload refuses.
pub(super) fn explanations() -> Vec<Explanation> {
    let considered = |policy: &str, action: &str, matched, why: &str| Considered {
        policy: policy.into(),
        action: action.into(),
        dry_run: false,
        matched,
        why: why.into(),
    };
    let source = Party {
        address: "10.0.0.1".into(),
        workload: Some("shop/client".into()),
        node: Some("n1".into()),
        identity: Some("spiffe://cluster.local/ns/shop/sa/client".into()),
        state: "enrolled".into(),
    };
    let web_1 = Candidate {
        address: "10.0.0.2:8080".into(),
        workload: Some("shop/web-1".into()),
        node: Some("n2".into()),
        identity: Some("spiffe://cluster.local/ns/shop/sa/web".into()),
        weight: 1,
        eligible: true,
        why_not: String::new(),
        transport: Transport {
            kind: "hbone".into(),
            why: "the endpoint takes tunnels on 10.0.0.2:15008".into(),
        },
        mtls: Mtls {
            mode: "strict".into(),
            ok: true,
        },
        policies: vec![
            considered(
                "mesh-system/no-batch",
                "DENY",
                false,
                "rule 1: namespaces batch",
            ),
            considered(
                "shop/web-clients",
                "ALLOW",
                true,
                "rule 2: principal cluster.local/ns/shop/sa/client",
            ),
            Considered {
                dry_run: true,
                ..considered("shop/trial", "DENY", true, "rule 1: port 8080")
            },
        ],
        verdict: Verdict {
            allowed: true,
            reason: None,
            policy: Some("shop/web-clients".into()),
            why: "policy shop/web-clients allows it".into(),
        },
    };
    let web_2 = Candidate {
        address: "10.0.0.3:8080".into(),
        workload: Some("shop/web-2".into()),
        eligible: false,
        why_not: "breaker open: connection refused".into(),
        ..web_1.clone()
    };
    let outside = Candidate {
        address: "203.0.113.7:8080".into(),
        workload: None,
        node: None,
        identity: None,
        transport: Transport {
            kind: "plain".into(),
            why: "the address is not of the mesh".into(),
        },
        mtls: Mtls::default(),
        policies: Vec::new(),
        verdict: Verdict {
            allowed: true,
            why: "no agent of the mesh decides there".into(),
            ..Verdict::default()
        },
        ..web_1.clone()
    };
    let service = Explanation {
        source: source.clone(),
        destination: Party {
            address: "10.96.0.1".into(),
            ..Party::default()
        },
        port: 80,
        service: Some("shop/web".into()),
        captured: true,
        captured_why: "the source is enrolled on this node".into(),
        protocol: "tcp".into(),
        strategy: "round_robin".into(),
        route: None,
        traffic: Vec::new(),
        candidates: vec![web_1.clone(), web_2, outside],
        verdict: Verdict {
            allowed: true,
            why: "every endpoint that takes traffic takes it".into(),
            ..Verdict::default()
        },
        notes: vec!["policies are as this node knows them; shop/web-1 runs on n2".into()],
    };
    let refused = Verdict {
        allowed: false,
        reason: Some("plaintext_refused".into()),
        policy: None,
        why: "the port is strict and the connection comes without a tunnel".into(),
    };
    let plain = Explanation {
        source: Party {
            workload: None,
            node: None,
            identity: None,
            state: "not of the mesh".into(),
            address: "192.0.2.9".into(),
        },
        destination: Party {
            address: "10.0.0.2".into(),
            workload: Some("shop/web-1".into()),
            node: Some("n1".into()),
            identity: Some("spiffe://cluster.local/ns/shop/sa/web".into()),
            state: "enrolled".into(),
        },
        port: 8080,
        service: None,
        captured: false,
        captured_why: "the source is not enrolled".into(),
        protocol: String::new(),
        strategy: String::new(),
        route: None,
        traffic: Vec::new(),
        candidates: vec![Candidate {
            transport: Transport {
                kind: "plain".into(),
                why: "the source is not enrolled".into(),
            },
            mtls: Mtls {
                mode: "strict".into(),
                ok: false,
            },
            policies: Vec::new(),
            verdict: refused.clone(),
            ..web_1
        }],
        verdict: refused,
        notes: Vec::new(),
    };
    vec![service, plain]
}
