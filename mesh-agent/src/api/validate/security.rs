//! Checks over all resources that concern identities, mTLS modes and authorization.

use std::collections::HashMap;

use super::{
    super::{
        error::Problem,
        kinds::{AuthorizationPolicy, ConditionKey, Level, MeshPolicy, Workload},
        metadata::Object,
        path::Path,
        pattern::Pattern,
        selector::LabelIndex,
    },
    Environment, Findings, Of,
};
use crate::{
    model::{FailPolicy, MtlsMode, TunnelProtocol},
    policy::MeshPolicies,
};

/// The trust domain is one for the mesh.
pub(super) fn trust_domain_level(
    policies: &Of<'_, MeshPolicy>,
    environment: &Environment,
    findings: &mut Findings,
) {
    let root = &environment.root_namespace;
    for (policy, placed) in policies.iter() {
        if policy.level(root) == Level::Mesh {
            continue;
        }
        for (set, field) in [
            (policy.spec.trust_domain.is_some(), "trustDomain"),
            (
                policy.spec.trust_domain_aliases.is_some(),
                "trustDomainAliases",
            ),
        ] {
            if set {
                let message = format!(
                    "there is one trust domain for the mesh: only the MeshPolicy of namespace {root} without a selector may set {field}"
                );
                let problem = Problem::new(Path::of("spec").key(field), message);
                findings.of(placed, &problem.wanted("the policy of the mesh"));
            }
        }
    }
}

/// What a mode or policy of the mesh makes of single workloads.
pub(super) fn effects(
    policies: &Of<'_, MeshPolicy>,
    authorization: &Of<'_, AuthorizationPolicy>,
    workloads: &Of<'_, Workload>,
    index: &LabelIndex<'_>,
    enrolled: impl Fn(&Object<Workload>) -> bool,
    environment: &Environment,
    findings: &mut Findings,
) {
    let root = &environment.root_namespace;
    let guarded = guarded(authorization, workloads, index, root, findings);
    let sources: Vec<_> = policies.arcs();
    let mut effective = MeshPolicies::new(&sources, root, &[]);
    // Of the MeshPolicies that say `open`, by position, the workloads that stay closed: the first, and how many.
    let mut closed: HashMap<usize, (&Object<Workload>, &'static str, usize)> = HashMap::new();
    for (position, (workload, placed)) in workloads.iter().enumerate() {
        let labels = &workload.metadata.labels.0;
        let is_enrolled = enrolled(workload);
        let policy = effective.effective(&workload.name.namespace, labels);
        if policy.mtls == MtlsMode::Strict
            && workload.spec.protocol == Some(TunnelProtocol::Tcp)
            && is_enrolled
        {
            let message =
                "others reach it plainly, and its mTLS mode is strict: it refuses the whole mesh";
            findings.of(
                placed,
                &Problem::warning(Path::of("spec.protocol"), message),
            );
        }
        let why = match (policy.any_strict(), guarded[position]) {
            (true, _) => "mTLS mode strict",
            (false, true) => "an AuthorizationPolicy",
            (false, false) => continue,
        };
        if policy.fail_policy == FailPolicy::Open
            && is_enrolled
            && let Some(by) = narrowest_open(policies, workload, root)
        {
            closed.entry(by).or_insert((workload, why, 0)).2 += 1;
        }
    }
    for (position, (workload, why, count)) in closed {
        let others = match count {
            1 => String::new(),
            2 => " and of 1 other".to_owned(),
            n => format!(" and of {} others", n - 1),
        };
        let message = format!(
            "open holds outbound only for Workload {}{others}: inbound stays closed while no agent runs, because of {why}",
            workload.name
        );
        let problem = Problem::warning(Path::of("spec.failPolicy"), message);
        findings.of(&policies.placed[position], &problem);
    }
}

/// The policy that the workload's fail policy comes from.
fn narrowest_open(
    policies: &Of<'_, MeshPolicy>,
    workload: &Object<Workload>,
    root: &str,
) -> Option<usize> {
    let applies = |policy: &Object<MeshPolicy>| match policy.level(root) {
        Level::Mesh => true,
        Level::Namespace => policy.name.namespace == workload.name.namespace,
        Level::Workload => {
            policy.name.namespace == workload.name.namespace
                && policy
                    .spec
                    .selector
                    .as_ref()
                    .is_some_and(|s| s.matches(&workload.metadata.labels.0))
        }
    };
    policies
        .iter()
        .enumerate()
        .filter(|(_, (policy, _))| policy.spec.fail_policy.is_some() && applies(policy))
        .max_by_key(|(_, (policy, _))| policy.level(root))
        .map(|(position, _)| position)
}

/// Of every workload, whether an AuthorizationPolicy in effect is for it. Warns of selectors that match nothing.
fn guarded(
    policies: &Of<'_, AuthorizationPolicy>,
    workloads: &Of<'_, Workload>,
    index: &LabelIndex<'_>,
    root: &str,
    findings: &mut Findings,
) -> Vec<bool> {
    let mut namespaces: HashMap<&str, Vec<usize>> = HashMap::new();
    for (position, workload) in workloads.objects.iter().enumerate() {
        namespaces
            .entry(&workload.name.namespace)
            .or_default()
            .push(position);
    }
    let mut guarded = vec![false; workloads.objects.len()];
    for (policy, placed) in policies.iter() {
        let own = &*policy.name.namespace;
        let scope: Vec<&str> = match own == root {
            true => namespaces.keys().copied().collect(),
            false => vec![own],
        };
        let mut found = policy.spec.selector.is_none();
        for namespace in scope {
            let all = namespaces.get(namespace).map_or(&[][..], Vec::as_slice);
            // Thousands of workloads that many policies select are not worth looking at more than once.
            let nothing_new = policy.spec.dry_run || all.iter().all(|position| guarded[*position]);
            if found && nothing_new {
                continue;
            }
            for position in selected(policy, namespace, all, workloads, index) {
                found = true;
                if nothing_new {
                    break;
                }
                guarded[position] = true;
            }
        }
        if !found {
            let scope = match own == root {
                true => "the mesh".to_owned(),
                false => format!("namespace {own}"),
            };
            let message = format!("the selector matches no workload of {scope}");
            findings.of(
                placed,
                &Problem::warning(Path::of("spec.selector"), message),
            );
        }
    }
    guarded
}

/// Which of `all` workloads of a namespace a policy selects.
fn selected<'s>(
    policy: &'s AuthorizationPolicy,
    namespace: &'s str,
    all: &'s [usize],
    workloads: &'s Of<'_, Workload>,
    index: &'s LabelIndex<'_>,
) -> Box<dyn Iterator<Item = usize> + 's> {
    let all = all.iter().copied();
    match &policy.spec.selector {
        None => Box::new(all),
        Some(selector) if !selector.match_labels.is_empty() => {
            let by_label = index.matching(namespace, &selector.match_labels.0);
            Box::new(by_label.filter(|position| {
                selector.match_expressions.is_empty()
                    || selector.matches(&workloads.objects[*position].metadata.labels.0)
            }))
        }
        Some(selector) => {
            Box::new(all.filter(|position| {
                selector.matches(&workloads.objects[*position].metadata.labels.0)
            }))
        }
    }
}

/// A principal of a trust domain that the mesh does not accept never connects: probably a slip.
pub(super) fn principals(
    policies: &Of<'_, AuthorizationPolicy>,
    mesh_policies: &Of<'_, MeshPolicy>,
    environment: &Environment,
    findings: &mut Findings,
) {
    let mesh = mesh_policies
        .iter()
        .map(|(policy, _)| policy)
        .find(|policy| policy.level(&environment.root_namespace) == Level::Mesh);
    let own = mesh
        .and_then(|p| p.spec.trust_domain.clone())
        .unwrap_or_default();
    let aliases = mesh
        .and_then(|p| p.spec.trust_domain_aliases.as_deref())
        .unwrap_or_default();
    let stranger = |principal: &str| {
        let trust_domain = match Pattern::parse(principal) {
            Pattern::Exact(text) | Pattern::Prefix(text) => text.split_once('/')?.0.to_owned(),
            Pattern::Suffix(_) | Pattern::Any => return None,
        };
        let known = own.as_str() == trust_domain
            || aliases.iter().any(|alias| alias.as_str() == trust_domain);
        (!known).then_some(trust_domain)
    };
    for (policy, placed) in policies.iter() {
        let mut warn = |path: &Path, values: &[String]| {
            for (index, value) in values.iter().enumerate() {
                if let Some(trust_domain) = stranger(value) {
                    let message = format!(
                        "nobody of trust domain {trust_domain} can connect: that of the mesh is {own}"
                    );
                    findings.of(placed, &Problem::warning(path.index(index), message));
                }
            }
        };
        for (index, rule) in policy.spec.rules.iter().enumerate() {
            let path = Path::of("spec.rules").index(index);
            for (index, from) in rule.from.iter().enumerate() {
                let path = path.key("from").index(index).key("source");
                warn(&path.key("principals"), &from.source.principals);
                warn(&path.key("notPrincipals"), &from.source.not_principals);
            }
            for (index, when) in rule.when.iter().enumerate() {
                if when.key.parse() == Ok(ConditionKey::SourcePrincipal) {
                    let path = path.key("when").index(index);
                    warn(&path.key("values"), &when.values);
                    warn(&path.key("notValues"), &when.not_values);
                }
            }
        }
    }
}
