//! Label selectors, with the meaning Kubernetes gives them.

use std::collections::{BTreeMap, HashMap};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::metadata::Labels;

/// Selects what carries all of `matchLabels` and satisfies all of `matchExpressions`. An empty selector selects
/// everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LabelSelector {
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub match_labels: Labels,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<Requirement>,
}

/// One condition on one label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Requirement {
    #[schemars(extend("format" = "label-key"))]
    pub key: String,
    pub operator: Operator,
    /// At least one for `In` and `NotIn`, none for `Exists` and `DoesNotExist`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "label_values")]
    pub values: Vec<String>,
}

fn label_values(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": "array", "items": { "type": "string", "format": "label-value" } })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
pub enum Operator {
    /// The label has one of the values.
    In,
    /// The label has none of the values, or is absent.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is absent.
    DoesNotExist,
}

impl LabelSelector {
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        contains_all(labels, &self.match_labels.0)
            && self.match_expressions.iter().all(|requirement| {
                let value = labels.get(&requirement.key);
                match requirement.operator {
                    Operator::In => value.is_some_and(|v| requirement.values.contains(v)),
                    Operator::NotIn => value.is_none_or(|v| !requirement.values.contains(v)),
                    Operator::Exists => value.is_some(),
                    Operator::DoesNotExist => value.is_none(),
                }
            })
    }

    pub fn is_empty(&self) -> bool {
        self.match_labels.is_empty() && self.match_expressions.is_empty()
    }
}

/// Whether `labels` has every pair of `wanted`: the selector of a Service.
pub fn contains_all(labels: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> bool {
    wanted
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

/// Finds what a Service's selector matches without looking at everything: positions by label.
#[derive(Debug, Default)]
pub struct LabelIndex<'a> {
    by_label: HashMap<(&'a str, &'a str, &'a str), Vec<u32>>,
    labels: Vec<&'a BTreeMap<String, String>>,
}

impl<'a> LabelIndex<'a> {
    /// Indexes items in order; each has a namespace and labels.
    pub fn new(
        items: impl Iterator<Item = (&'a str, &'a BTreeMap<String, String>)>,
    ) -> LabelIndex<'a> {
        let mut index = LabelIndex::default();
        for (position, (namespace, labels)) in items.enumerate() {
            for (key, value) in labels {
                index
                    .by_label
                    .entry((namespace, key, value))
                    .or_default()
                    .push(position as u32);
            }
            index.labels.push(labels);
        }
        index
    }

    /// Positions in the namespace that have all of these labels. Nothing for no labels, as for a Service.
    pub fn matching<'s>(
        &'s self,
        namespace: &'s str,
        wanted: &'s BTreeMap<String, String>,
    ) -> impl Iterator<Item = usize> + use<'s, 'a> {
        let mut rarest: Option<&[u32]> = None;
        for (key, value) in wanted {
            let found = self
                .by_label
                .get(&(namespace, key.as_str(), value.as_str()))
                .map_or(&[][..], Vec::as_slice);
            if rarest.is_none_or(|rarest| found.len() < rarest.len()) {
                rarest = Some(found);
            }
        }
        rarest
            .unwrap_or_default()
            .iter()
            .map(|position| *position as usize)
            .filter(move |position| contains_all(self.labels[*position], wanted))
    }
}
