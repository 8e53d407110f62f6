//! Against a naive model: sort what matches from wide to narrow and let each overwrite what it sets.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ipnet::IpNet;
use proptest::prelude::*;

use super::MeshPolicies;
use crate::{
    api::{
        Cidr, Exclude, GepDuration, LabelSelector, Labels, MeshPolicySpec, Mtls, Outbound,
        OutboundMode as Mode, Port, parse_bytes,
    },
    model::{EffectivePolicy, FailPolicy, MtlsMode, OutboundMode},
};

fn cidr() -> impl Strategy<Value = Cidr> {
    (0u8..4).prop_map(|n| Cidr(format!("10.{n}.0.0/16").parse().unwrap()))
}

fn spec(selector: Option<LabelSelector>) -> impl Strategy<Value = MeshPolicySpec> {
    let mode = prop_oneof![Just(Mode::Allow), Just(Mode::RegisteredOnly)];
    let outbound = (mode, prop::collection::vec(cidr(), 0..2))
        .prop_map(|(mode, exceptions)| Outbound { mode, exceptions });
    let fail = prop_oneof![Just(FailPolicy::Open), Just(FailPolicy::Closed)];
    let exclude = (
        prop::option::of(prop::collection::vec(1u16..9, 0..3)),
        prop::option::of(prop::collection::vec(cidr(), 0..2)),
    )
        .prop_map(|(ports, cidrs)| Exclude { ports, cidrs });
    (
        prop::option::of(outbound),
        prop::option::of(fail),
        prop::option::of(exclude),
        prop::option::of((0u64..9).prop_map(|s| GepDuration(Duration::from_secs(s)))),
        prop::option::of(mtls()),
    )
        .prop_map(
            move |(outbound, fail_policy, exclude, drain_timeout, mtls)| MeshPolicySpec {
                selector: selector.clone(),
                outbound,
                fail_policy,
                exclude,
                drain_timeout,
                mtls,
                ..MeshPolicySpec::default()
            },
        )
}

fn mtls() -> impl Strategy<Value = Mtls> {
    let mode = || {
        prop_oneof![
            Just(MtlsMode::Strict),
            Just(MtlsMode::Permissive),
            Just(MtlsMode::Disable),
        ]
    };
    let port_modes = prop::collection::btree_map((1u16..4).prop_map(Port), mode(), 0..3);
    (prop::option::of(mode()), prop::option::of(port_modes))
        .prop_map(|(mode, port_modes)| Mtls { mode, port_modes })
}

fn selector() -> LabelSelector {
    LabelSelector {
        match_labels: Labels(BTreeMap::from([("app".to_owned(), "web".to_owned())])),
        match_expressions: Vec::new(),
    }
}

/// A policy object, by way of the parser.
fn policy(namespace: &str, name: &str, spec: &MeshPolicySpec) -> super::Policy {
    let text = format!(
        "apiVersion: mesh.covet.dev/v1alpha1\nkind: MeshPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{}}\n"
    );
    let (config, _) = parse_bytes("f", text.as_bytes()).unwrap();
    let mut object = crate::api::Object::clone(&config.mesh_policies[0]);
    object.body.spec = spec.clone();
    Arc::new(object)
}

fn builtin() -> IpNet {
    "169.254.0.0/16".parse().unwrap()
}

fn naive(wide_to_narrow: &[&MeshPolicySpec]) -> EffectivePolicy {
    let mut policy = EffectivePolicy::default();
    for spec in wide_to_narrow {
        if let Some(outbound) = &spec.outbound {
            policy.outbound = match outbound.mode {
                Mode::Allow => OutboundMode::Allow,
                Mode::RegisteredOnly => {
                    let mut exceptions = vec![builtin()];
                    exceptions.extend(outbound.exceptions.iter().map(|cidr| cidr.0));
                    OutboundMode::RegisteredOnly { exceptions }
                }
            };
        }
        if let Some(fail_policy) = spec.fail_policy {
            policy.fail_policy = fail_policy;
        }
        if let Some(exclude) = &spec.exclude {
            if let Some(ports) = &exclude.ports {
                policy.exclude_ports.clone_from(ports);
            }
            if let Some(cidrs) = &exclude.cidrs {
                policy.exclude_cidrs = cidrs.iter().map(|cidr| cidr.0).collect();
            }
        }
        if let Some(drain) = spec.drain_timeout {
            policy.drain_timeout = drain.0;
        }
        if let Some(mode) = spec.mtls.as_ref().and_then(|mtls| mtls.mode) {
            policy.mtls = mode;
        }
        if let Some(modes) = spec.mtls.as_ref().and_then(|mtls| mtls.port_modes.as_ref()) {
            policy.port_mtls = modes.iter().map(|(port, mode)| (port.0, *mode)).collect();
        }
    }
    policy
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn the_narrowest_that_sets_a_field_wins(
        mesh in prop::option::of(spec(None)),
        of_namespace in prop::option::of(spec(None)),
        of_workload in prop::option::of(spec(Some(selector()))),
        elsewhere in spec(None),
        is_web: bool,
        in_root: bool,
    ) {
        let namespace = if in_root { "mesh-system" } else { "shop" };
        let mut policies = vec![policy("other", "elsewhere", &elsewhere)];
        policies.extend(mesh.as_ref().map(|spec| policy("mesh-system", "mesh", spec)));
        // In the root namespace a policy without selector is the mesh's.
        let of_namespace = of_namespace.filter(|_| !in_root);
        policies.extend(of_namespace.as_ref().map(|spec| policy("shop", "shop", spec)));
        policies.extend(of_workload.as_ref().map(|spec| policy(namespace, "web", spec)));

        let labels = BTreeMap::from([("app".to_owned(), if is_web { "web" } else { "db" }.to_owned())]);
        let mut all = MeshPolicies::new(&policies, "mesh-system", &[builtin()]);
        let got = all.effective(&namespace.into(), &labels);
        let levels = [mesh.as_ref(), of_namespace.as_ref(), of_workload.as_ref().filter(|_| is_web)];
        let levels: Vec<&MeshPolicySpec> = levels.into_iter().flatten().collect();
        prop_assert_eq!(&*got, &naive(&levels));
        prop_assert!(Arc::ptr_eq(&got, &all.effective(&namespace.into(), &labels)), "made once");
    }
}
