//! Checks a YAML tree against the JSON Schema of a type and reports everything that is wrong with it.
//!
//! The schema is the one that is generated from the type and published in docs/reference, compiled once into shapes.
//! Only the keywords that our types produce are understood; `compile` refuses others, and a test compiles all kinds.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::{
    error::Problem,
    format,
    path::Path,
    refused,
    yaml::{Node, Value},
};

#[derive(Clone, Debug)]
pub(crate) enum Shape {
    Any,
    Bool,
    Integer {
        min: i64,
        max: i64,
    },
    Number {
        min: f64,
        max: f64,
    },
    Text {
        format: Option<String>,
        one_of: Vec<String>,
    },
    List {
        items: Box<Shape>,
        min: usize,
        max: usize,
    },
    Map {
        keys: Option<String>,
        values: Box<Shape>,
    },
    Struct {
        fields: BTreeMap<String, Shape>,
        required: Vec<String>,
    },
    Either(Vec<Shape>),
}

impl Shape {
    /// What a message calls a value of this shape.
    fn expected(&self) -> String {
        match self {
            Self::Any => "anything".into(),
            Self::Bool => "true or false".into(),
            Self::Integer { min, max } => format!("{min}..={max}"),
            Self::Number { min, max } => format!("a number, {min}..={max}"),
            Self::Text { one_of, .. } if one_of.len() == 1 && one_of[0].is_empty() => {
                "an empty string".into()
            }
            Self::Text { one_of, .. } if one_of.len() == 1 => one_of[0].clone(),
            Self::Text { one_of, .. } if !one_of.is_empty() => {
                format!("one of {}", one_of.join(", "))
            }
            Self::Text { .. } => "a string".into(),
            Self::List { .. } => "a list".into(),
            Self::Map { .. } | Self::Struct { .. } => "a mapping".into(),
            Self::Either(shapes) => {
                let all: Vec<_> = shapes.iter().map(Self::expected).collect();
                all.join(" or ")
            }
        }
    }

    /// Whether the value is of the right kind; its content is another matter.
    fn is_kind_of(&self, value: &Value<'_>) -> bool {
        match self {
            Self::Any => true,
            Self::Bool => matches!(value, Value::Bool(_)),
            Self::Integer { .. } => matches!(value, Value::Int(_)),
            Self::Number { .. } => matches!(value, Value::Int(_) | Value::Float(_)),
            Self::Text { .. } => matches!(value, Value::Str(_)),
            Self::List { .. } => matches!(value, Value::Seq(_)),
            Self::Map { .. } | Self::Struct { .. } => matches!(value, Value::Map(_)),
            Self::Either(shapes) => shapes.iter().any(|shape| shape.is_kind_of(value)),
        }
    }
}

/// Checks a whole resource of a kind.
pub(crate) fn check(kind: &str, shape: &Shape, node: &Node<'_>, problems: &mut Vec<Problem>) {
    let mut check = Check {
        kind,
        path: Path::root(),
        problems,
    };
    check.value(shape, node);
}

struct Check<'p> {
    kind: &'p str,
    path: Path,
    problems: &'p mut Vec<Problem>,
}

impl Check<'_> {
    fn value(&mut self, shape: &Shape, node: &Node<'_>) {
        if !shape.is_kind_of(&node.value) {
            return self.mismatch(&shape.expected(), node);
        }
        match (shape, &node.value) {
            (Shape::Integer { min, max }, Value::Int(number)) if number < min || number > max => {
                self.mismatch(&shape.expected(), node);
            }
            (Shape::Number { min, max }, value) => {
                let number = match value {
                    Value::Int(number) => *number as f64,
                    Value::Float(number) => *number,
                    _ => return,
                };
                if number < *min || number > *max {
                    self.mismatch(&shape.expected(), node);
                }
            }
            (Shape::Text { format, one_of }, Value::Str(text)) => {
                if !one_of.is_empty() && !one_of.iter().any(|one| one == text) {
                    if let Some(reason) = refused::value(self.kind, &self.path, text) {
                        self.problems.push(
                            Problem::at(self.path.clone(), node.at, reason)
                                .wanted(shape.expected()),
                        );
                    } else {
                        self.mismatch(&shape.expected(), node);
                    }
                } else if let Some(format) = format
                    && let Err(expected) = format::check(format, text)
                {
                    self.mismatch(&expected, node);
                }
            }
            (Shape::List { items, min, max }, Value::Seq(nodes)) => {
                if nodes.len() < *min || nodes.len() > *max {
                    let expected = match (min, max) {
                        (1, &usize::MAX) => "at least one entry".to_owned(),
                        (0, max) => format!("at most {max} entries"),
                        (min, &usize::MAX) => format!("at least {min} entries"),
                        (min, max) => format!("{min} to {max} entries"),
                    };
                    let problem = Problem::expected(self.path.clone(), expected, nodes.len());
                    self.problems.push(problem.placed(node.at));
                }
                for (index, item) in nodes.iter().enumerate() {
                    self.path.push_index(index);
                    self.value(items, item);
                    self.path.pop();
                }
            }
            (Shape::Map { keys, values }, Value::Map(entries)) => {
                for (key, value) in entries {
                    self.path.push_key(&key.text);
                    if let Some(format) = keys
                        && let Err(expected) = format::check(format, &key.text)
                    {
                        let got = super::yaml::quoted(&key.text);
                        let problem =
                            Problem::expected(self.path.clone(), format!("as key {expected}"), got);
                        self.problems.push(problem.placed(key.at));
                    }
                    self.value(values, value);
                    self.path.pop();
                }
            }
            (Shape::Struct { fields, required }, Value::Map(_)) => {
                self.fields(fields, required, node);
            }
            (Shape::Either(shapes), value) => {
                if let Some(shape) = shapes.iter().find(|shape| shape.is_kind_of(value)) {
                    self.value(shape, node);
                }
            }
            _ => {}
        }
    }

    fn fields(&mut self, fields: &BTreeMap<String, Shape>, required: &[String], node: &Node<'_>) {
        let Value::Map(entries) = &node.value else {
            return;
        };
        for (key, value) in entries {
            self.path.push_key(&key.text);
            match fields.get(key.text.as_ref()) {
                // A field without a value is an absent field, as in Kubernetes.
                Some(_) if matches!(value.value, Value::Null) => {}
                Some(shape) => self.value(shape, value),
                None => self
                    .problems
                    .push(self.unknown_field(&key.text, fields).placed(key.at)),
            }
            self.path.pop();
        }
        for field in required {
            let absent = match node.get(field) {
                None => true,
                Some(value) => {
                    matches!(value.value, Value::Null)
                        && !matches!(fields.get(field), Some(Shape::Any))
                }
            };
            if absent {
                // Its place is found by path: the key of the mapping that lacks it.
                let mut problem = Problem::new(self.path.key(field), "required field is missing");
                problem.expected = fields.get(field).map(Shape::expected);
                self.problems.push(problem);
            }
        }
    }

    fn unknown_field(&self, key: &str, fields: &BTreeMap<String, Shape>) -> Problem {
        if let Some(reason) = refused::field(self.kind, &self.path) {
            return Problem::new(self.path.clone(), reason);
        }
        let known: Vec<&str> = fields.keys().map(String::as_str).collect();
        let nearest = known
            .iter()
            .map(|name| (distance(key, name), *name))
            .min()
            .filter(|(distance, name)| *distance <= 1 + name.len() / 4);
        let expected = match known.is_empty() {
            true => "none".to_owned(),
            false => format!("one of {}", known.join(", ")),
        };
        let message = match nearest {
            Some((_, name)) => format!("unknown field, did you mean {name}? expected {expected}"),
            None => format!("unknown field, expected {expected}"),
        };
        Problem::new(self.path.clone(), message).wanted(expected)
    }

    fn mismatch(&mut self, expected: &str, node: &Node<'_>) {
        let mut problem = Problem::expected(self.path.clone(), expected, &node.value);
        // The classic slip: enabled: true where a label's value must be a string.
        if expected == "a string"
            && matches!(node.value, Value::Bool(_) | Value::Int(_) | Value::Float(_))
        {
            problem.message.push_str(": put it in quotes");
        }
        self.problems.push(problem.placed(node.at));
    }
}

/// Edits between two names (Levenshtein); the names are short.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    if a.len() > 64 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(!ca.eq_ignore_ascii_case(cb));
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// A keyword that `compile` does not understand.
#[derive(Debug, thiserror::Error)]
#[error("schema at {at}: {what}")]
pub(crate) struct CompileError {
    at: String,
    what: String,
}

/// Turns a schema into shapes. `root` holds the definitions.
pub(crate) fn compile(schema: &Json, root: &Json, at: &str) -> Result<Shape, CompileError> {
    let fail = |what: String| CompileError {
        at: at.to_owned(),
        what,
    };
    let object = match schema {
        Json::Bool(true) => return Ok(Shape::Any),
        Json::Object(object) => object,
        other => return Err(fail(format!("neither true nor an object: {other}"))),
    };
    if let Some(Json::String(reference)) = object.get("$ref") {
        let pointer = reference.trim_start_matches('#');
        let target = root
            .pointer(pointer)
            .ok_or_else(|| fail(format!("dangling {reference}")))?;
        return compile(target, root, reference);
    }
    if let Some(Json::Array(all)) = object.get("anyOf").or_else(|| object.get("oneOf")) {
        let not_null = all
            .iter()
            .filter(|one| one.get("type") != Some(&Json::from("null")));
        let mut shapes = Vec::new();
        for one in not_null {
            shapes.push(compile(one, root, at)?);
        }
        // An enum whose variants are documented one by one.
        let texts: Option<Vec<String>> = shapes
            .iter()
            .map(|shape| match shape {
                Shape::Text { one_of, .. } if !one_of.is_empty() => Some(one_of.clone()),
                _ => None,
            })
            .collect::<Option<Vec<_>>>()
            .map(|lists| lists.concat());
        return Ok(match texts {
            Some(one_of) => Shape::Text {
                format: None,
                one_of,
            },
            None if shapes.len() == 1 => shapes.remove(0),
            None => Shape::Either(shapes),
        });
    }
    if let Some(Json::String(only)) = object.get("const") {
        return Ok(Shape::Text {
            format: None,
            one_of: vec![only.clone()],
        });
    }
    let kind = match object.get("type") {
        None if object
            .keys()
            .all(|key| matches!(key.as_str(), "description" | "default" | "title")) =>
        {
            return Ok(Shape::Any);
        }
        Some(Json::String(kind)) => kind.as_str(),
        Some(Json::Array(kinds)) => kinds
            .iter()
            .filter_map(Json::as_str)
            .find(|kind| *kind != "null")
            .ok_or_else(|| fail("no type but null".into()))?,
        _ => return Err(fail(format!("no type: {schema}"))),
    };
    let count = |keyword: &str| {
        object
            .get(keyword)
            .and_then(Json::as_u64)
            .map(|n| n as usize)
    };
    let text = |keyword: &str| {
        object
            .get(keyword)
            .and_then(Json::as_str)
            .map(str::to_owned)
    };
    Ok(match kind {
        "boolean" => Shape::Bool,
        "integer" => Shape::Integer {
            min: object
                .get("minimum")
                .and_then(Json::as_i64)
                .unwrap_or(i64::MIN),
            max: object
                .get("maximum")
                .and_then(Json::as_i64)
                .or_else(|| match text("format").as_deref() {
                    Some("uint32") => Some(i64::from(u32::MAX)),
                    Some("int32") => Some(i64::from(i32::MAX)),
                    _ => None,
                })
                .unwrap_or(i64::MAX),
        },
        "number" => Shape::Number {
            min: object
                .get("minimum")
                .and_then(Json::as_f64)
                .unwrap_or(f64::MIN),
            max: object
                .get("maximum")
                .and_then(Json::as_f64)
                .unwrap_or(f64::MAX),
        },
        "string" => Shape::Text {
            format: text("format"),
            one_of: match object.get("enum") {
                Some(Json::Array(all)) => all
                    .iter()
                    .filter_map(Json::as_str)
                    .map(str::to_owned)
                    .collect(),
                _ => Vec::new(),
            },
        },
        "array" => Shape::List {
            items: Box::new(compile(
                object.get("items").unwrap_or(&Json::Bool(true)),
                root,
                &format!("{at}/items"),
            )?),
            min: count("minItems").unwrap_or(0),
            max: count("maxItems").unwrap_or(usize::MAX),
        },
        "object" => match (object.get("properties"), object.get("additionalProperties")) {
            (Some(Json::Object(properties)), Some(Json::Bool(false))) => {
                let mut fields = BTreeMap::new();
                for (name, property) in properties {
                    let shape = compile(property, root, &format!("{at}/{name}"))?;
                    fields.insert(name.clone(), shape);
                }
                let required = match object.get("required") {
                    Some(Json::Array(names)) => names
                        .iter()
                        .filter_map(Json::as_str)
                        .map(str::to_owned)
                        .collect(),
                    _ => Vec::new(),
                };
                Shape::Struct { fields, required }
            }
            (None, Some(Json::Bool(false))) => Shape::Struct {
                fields: BTreeMap::new(),
                required: Vec::new(),
            },
            (None, values) => Shape::Map {
                keys: object
                    .get("propertyNames")
                    .and_then(|names| names.get("format"))
                    .and_then(Json::as_str)
                    .map(str::to_owned),
                values: Box::new(compile(
                    values.unwrap_or(&Json::Bool(true)),
                    root,
                    &format!("{at}/*"),
                )?),
            },
            _ => return Err(fail("properties that are not closed".into())),
        },
        other => return Err(fail(format!("type {other}"))),
    })
}
