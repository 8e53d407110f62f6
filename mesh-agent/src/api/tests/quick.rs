//! An edit that is judged by itself must come to the same end as a full check.

use std::{collections::HashSet, fs};

use proptest::prelude::*;

use crate::api::{Environment, Loader};

/// One resource of a small world in which much collides.
fn resource() -> impl Strategy<Value = String> {
    let workload = (0u8..3, 1u8..5, 0u8..3, 0u8..3, 0u8..4).prop_map(|(name, address, app, port, netns)| {
        let netns = if netns < 2 { format!(", netns: /run/netns/cm-none-{netns}") } else { String::new() };
        let ports = if port < 2 { format!(", ports: {{p{port}: 80}}") } else { String::new() };
        format!(
            "apiVersion: mesh.covet.dev/v1alpha1\nkind: Workload\nmetadata: {{name: n{name}, labels: {{app: a{app}}}}}\n\
             spec: {{addresses: [10.0.0.{address}]{ports}{netns}}}\n"
        )
    });
    let service = (0u8..2, 3u8..7, 0u8..3, 0u8..3).prop_map(|(name, vip, app, target)| {
        let target = if target < 2 { format!(", targetPort: p{target}") } else { String::new() };
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: n{name}}}\n\
             spec: {{clusterIP: 10.0.0.{vip}, selector: {{app: a{app}}}, ports: [{{port: 80{target}}}]}}\n"
        )
    });
    let slice = (0u8..2, 4u8..9).prop_map(|(name, address)| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: n{name}}}\naddressType: IPv4\n\
             endpoints: [{{addresses: [10.0.0.{address}]}}]\n"
        )
    });
    let policy = (0u8..2, 0u8..3).prop_map(|(name, app)| {
        format!(
            "apiVersion: mesh.covet.dev/v1alpha1\nkind: MeshPolicy\nmetadata: {{name: n{name}}}\n\
             spec: {{failPolicy: open, selector: {{matchLabels: {{app: a{app}}}}}}}\n"
        )
    });
    let authorization = (0u8..2, 0u8..3).prop_map(|(name, app)| {
        format!(
            "apiVersion: mesh.covet.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: n{name}}}\n\
             spec: {{selector: {{matchLabels: {{app: a{app}}}}}}}\n"
        )
    });
    prop_oneof![4 => workload, 2 => service, 1 => slice, 1 => policy, 1 => authorization]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn an_edit_judged_by_itself_ends_as_a_full_check(
        kept in prop::collection::vec(resource(), 0..4),
        versions in prop::collection::vec(prop::collection::vec(resource(), 0..3), 2..5),
    ) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("kept.yaml"), kept.join("---\n")).unwrap();
        let path = dir.path().join("edited.yaml");
        let mut loader = Loader::new(dir.path(), Environment::default());
        let _ = loader.load();
        for version in versions {
            fs::write(&path, version.join("---\n")).unwrap();
            let quick = loader.load_changed(&HashSet::from([path.clone()]));
            let full = Loader::new(dir.path(), Environment::default()).load();
            match (quick, full) {
                (Ok(quick), Ok(full)) => {
                    prop_assert_eq!(quick.config.resources(), full.config.resources());
                    prop_assert_eq!(quick.config.workloads, full.config.workloads);
                    prop_assert_eq!(quick.config.services, full.config.services);
                    prop_assert_eq!(
                        quick.config.authorization_policies,
                        full.config.authorization_policies
                    );
                    if quick.complete {
                        prop_assert_eq!(quick.warnings, full.warnings);
                    }
                }
                (quick, full) => prop_assert_eq!(quick.err(), full.err()),
            }
        }
    }
}

#[test]
fn an_ordinary_edit_is_judged_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.yaml");
    let workload = |weight: u32, address: &str| {
        format!(
            "apiVersion: mesh.covet.dev/v1alpha1\nkind: Workload\nmetadata: {{name: a}}\n\
             spec: {{addresses: [{address}], weight: {weight}, netns: /run/netns/cm-none}}\n"
        )
    };
    let mut loader = Loader::new(dir.path(), Environment::default());
    fs::write(&path, workload(1, "10.0.0.1")).unwrap();
    assert!(loader.load().unwrap().complete);
    let changed = HashSet::from([path.clone()]);
    for text in [
        workload(2, "10.0.0.1"),
        workload(2, "10.0.0.2"),
        "apiVersion: mesh.covet.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: a}\nspec: {}\n".to_owned(),
        String::new(),
    ] {
        fs::write(&path, text).unwrap();
        assert!(!loader.load_changed(&changed).unwrap().complete);
    }
    fs::remove_file(&path).unwrap();
    assert_eq!(loader.load_changed(&changed).unwrap().files, 0);
}

/// Documents of the same text share what was read from them, and are still two.
#[test]
fn three_alike_are_told_apart_after_a_reload() {
    let dir = tempfile::tempdir().unwrap();
    let workload = "apiVersion: mesh.covet.dev/v1alpha1\nkind: Workload\nmetadata: {name: a}\n\
                    spec: {addresses: [10.0.0.1]}\n";
    fs::write(dir.path().join("kept.yaml"), [workload; 3].join("---\n")).unwrap();
    let path = dir.path().join("edited.yaml");
    let mut loader = Loader::new(dir.path(), Environment::default());
    let first = loader.load().unwrap_err();
    for _ in 0..2 {
        fs::write(&path, "").unwrap();
        let again = loader.load_changed(&HashSet::from([path.clone()]));
        assert_eq!(again.unwrap_err(), first);
    }
    assert_eq!(first.len(), 4, "a name and an address, twice: {first:?}");
}
