//! YAML as a tree in which every key and value knows its line and column.
//!
//! The tree is built from parser events rather than with serde, because serde stops at the first error of a document
//! and an operator wants all of them; types, unknown fields and ranges are then checked on the tree (`shape`).

use std::{borrow::Cow, collections::HashMap, fmt};

use granit_parser::{Event, Marker, Parser, ScalarStyle, Span, Tag};

use super::{
    error::Problem,
    path::{Path, Segment},
};

/// Containers inside one another, aliases expanded. Kubernetes resources stay under ten.
const MAX_DEPTH: usize = 64;
/// Nodes that aliases may add to one document, so that a small file cannot become a large tree.
const MAX_ALIASED: usize = 10_000;

/// One-based position in a document.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub(crate) line: u32,
    pub(crate) column: u32,
}

impl Position {
    fn of(mark: &Marker) -> Self {
        Self {
            line: mark.line() as u32,
            column: mark.col() as u32 + 1,
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Node<'a> {
    pub(crate) at: Position,
    pub(crate) value: Value<'a>,
}

#[derive(Clone, Debug)]
pub(crate) enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Cow<'a, str>),
    Seq(Vec<Node<'a>>),
    Map(Vec<(Key<'a>, Node<'a>)>),
}

#[derive(Clone, Debug)]
pub(crate) struct Key<'a> {
    pub(crate) at: Position,
    pub(crate) text: Cow<'a, str>,
}

impl<'a> Node<'a> {
    /// The value of a key of a mapping.
    pub(crate) fn get(&self, key: &str) -> Option<&Node<'a>> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|(k, _)| k.text == key).map(|(_, v)| v),
            _ => None,
        }
    }

    pub(crate) fn str(&self) -> Option<&str> {
        match &self.value {
            Value::Str(text) => Some(text),
            _ => None,
        }
    }

    /// Where a path leads, or the nearest ancestor that exists: a missing field is reported at its parent.
    pub(crate) fn locate(&self, path: &Path) -> Position {
        let mut node = self;
        let mut at = self.at;
        for segment in path.segments() {
            let next = match (segment, &node.value) {
                (Segment::Key(key), Value::Map(entries)) => entries
                    .iter()
                    .find(|(k, _)| k.text == key.as_ref())
                    .map(|(k, v)| (k.at, v)),
                (Segment::Index(index), Value::Seq(items)) => {
                    items.get(*index).map(|item| (item.at, item))
                }
                _ => None,
            };
            match next {
                Some((key_at, child)) => {
                    // A container on its own line is best pointed at by its key.
                    at = match child.value {
                        Value::Map(_) | Value::Seq(_) | Value::Null => key_at,
                        _ => child.at,
                    };
                    node = child;
                }
                None => return at,
            }
        }
        at
    }
}

/// What a message calls a value: its kind and, for scalars, the value.
impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("nothing"),
            Self::Bool(value) => write!(f, "the boolean {value}"),
            Self::Int(value) => write!(f, "{value}"),
            Self::Float(value) => write!(f, "{value:?}"),
            Self::Str(text) => write!(f, "{}", quoted(text)),
            Self::Seq(_) => f.write_str("a list"),
            Self::Map(_) => f.write_str("a mapping"),
        }
    }
}

/// A string for a message: escaped, and cut when it is long.
pub(crate) fn quoted(text: &str) -> String {
    const LONGEST: usize = 80;
    match text.char_indices().nth(LONGEST) {
        Some((cut, _)) => format!("{:?}...", &text[..cut]),
        None => format!("{text:?}"),
    }
}

/// Parses one document. `Ok(None)` when there is nothing in it but comments.
pub(crate) fn parse(text: &str) -> Result<Option<Node<'_>>, Vec<Problem>> {
    let options = granit_parser::options! {
        emit_comments: false,
        flow_nesting_limit: MAX_DEPTH as _,
        block_nesting_limit: MAX_DEPTH as _,
    };
    let mut builder = Builder::default();
    for event in Parser::new_from_str_with_options(text, options) {
        match event {
            Ok((event, span)) => {
                if let Err(problem) = builder.event(event, &span) {
                    builder.problems.push(problem);
                    break;
                }
            }
            Err(error) => {
                let info = error.info();
                builder.problems.push(Problem::at(
                    Path::root(),
                    Position::of(error.marker()),
                    format!(
                        "not valid YAML: {}",
                        info.lines().next().unwrap_or_default()
                    ),
                ));
                break;
            }
        }
    }
    if builder.problems.is_empty() {
        Ok(builder.root)
    } else {
        Err(builder.problems)
    }
}

#[derive(Default)]
struct Builder<'a> {
    root: Option<Node<'a>>,
    open: Vec<Open<'a>>,
    /// Finished anchored nodes with their depth and size.
    anchors: HashMap<usize, (Node<'a>, usize, usize)>,
    aliased: usize,
    problems: Vec<Problem>,
}

/// A container whose end has not been seen.
struct Open<'a> {
    at: Position,
    anchor: usize,
    depth: usize,
    size: usize,
    content: Content<'a>,
}

enum Content<'a> {
    Seq(Vec<Node<'a>>),
    Map {
        entries: Vec<(Key<'a>, Node<'a>)>,
        key: Option<Key<'a>>,
    },
}

impl<'a> Builder<'a> {
    fn event(&mut self, event: Event<'a>, span: &Span) -> Result<(), Problem> {
        let at = Position::of(&span.start);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                if self.expects_key() {
                    return self.key(text, at);
                }
                let value = scalar(text, style, tag.as_deref())
                    .map_err(|message| Problem::at(self.path(), at, message))?;
                self.finish(Node { at, value }, anchor, 0, 1)
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.start(at, anchor, tag.as_deref(), Content::Seq(Vec::new()))
            }
            Event::MappingStart(_, anchor, tag) => self.start(
                at,
                anchor,
                tag.as_deref(),
                Content::Map {
                    entries: Vec::new(),
                    key: None,
                },
            ),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(open) => {
                    let value = match open.content {
                        Content::Seq(items) => Value::Seq(items),
                        Content::Map { entries, .. } => Value::Map(entries),
                    };
                    let node = Node { at: open.at, value };
                    self.finish(node, open.anchor, open.depth + 1, open.size + 1)
                }
                None => Ok(()),
            },
            Event::Alias(id) => {
                if self.expects_key() {
                    return Err(Problem::at(self.path(), at, "an alias cannot be a key"));
                }
                let Some((node, depth, size)) = self.anchors.get(&id) else {
                    return Err(Problem::at(self.path(), at, "alias refers to itself"));
                };
                let (node, depth, size) = (node.clone(), *depth, *size);
                self.aliased += size;
                if self.aliased > MAX_ALIASED {
                    let message = format!("aliases add more than {MAX_ALIASED} values");
                    return Err(Problem::at(self.path(), at, message));
                }
                self.finish(node, 0, depth, size)
            }
            _ => Ok(()),
        }
    }

    fn expects_key(&self) -> bool {
        matches!(
            self.open.last(),
            Some(Open {
                content: Content::Map { key: None, .. },
                ..
            })
        )
    }

    fn key(&mut self, text: Cow<'a, str>, at: Position) -> Result<(), Problem> {
        if text == "<<" {
            let message = "merge keys are not supported: write the fields out";
            return Err(Problem::at(self.path(), at, message));
        }
        let path = self.path();
        if let Some(Open {
            content: Content::Map { entries, key },
            ..
        }) = self.open.last_mut()
        {
            if let Some((first, _)) = entries.iter().find(|(k, _)| k.text == text) {
                let message = format!(
                    "field given twice, first {} line{} above",
                    at.line - first.at.line,
                    if at.line - first.at.line == 1 {
                        ""
                    } else {
                        "s"
                    },
                );
                self.problems
                    .push(Problem::at(path.key(text.as_ref()), at, message));
            }
            *key = Some(Key { at, text });
        }
        Ok(())
    }

    fn start(
        &mut self,
        at: Position,
        anchor: usize,
        tag: Option<&Tag>,
        content: Content<'a>,
    ) -> Result<(), Problem> {
        if self.expects_key() {
            let message = "expected a string as key, got a list or mapping";
            return Err(Problem::at(self.path(), at, message));
        }
        if let Some(tag) = tag.filter(|tag| !tag.is_yaml_core_schema()) {
            let message = format!("YAML tag {} is not supported", tag.original());
            return Err(Problem::at(self.path(), at, message));
        }
        self.open.push(Open {
            at,
            anchor,
            depth: 0,
            size: 0,
            content,
        });
        Ok(())
    }

    fn finish(
        &mut self,
        node: Node<'a>,
        anchor: usize,
        depth: usize,
        size: usize,
    ) -> Result<(), Problem> {
        if depth + self.open.len() > MAX_DEPTH {
            let message = format!("more than {MAX_DEPTH} levels inside one another");
            return Err(Problem::at(self.path(), node.at, message));
        }
        if anchor != 0 {
            self.anchors.insert(anchor, (node.clone(), depth, size));
        }
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(open) => {
                open.depth = open.depth.max(depth);
                open.size += size;
                match &mut open.content {
                    Content::Seq(items) => items.push(node),
                    Content::Map { entries, key } => {
                        if let Some(key) = key.take() {
                            entries.push((key, node));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Where the builder stands.
    fn path(&self) -> Path {
        let mut path = Path::root();
        for open in &self.open {
            match &open.content {
                Content::Seq(items) => path = path.index(items.len()),
                Content::Map { key: Some(key), .. } => path = path.key(key.text.as_ref()),
                Content::Map { key: None, .. } => {}
            }
        }
        path
    }
}

/// YAML 1.2 core schema, but for numbers with leading zeros: those stay text, since YAML 1.1 reads them as octal.
fn scalar<'a>(
    text: Cow<'a, str>,
    style: ScalarStyle,
    tag: Option<&Tag>,
) -> Result<Value<'a>, String> {
    if let Some(tag) = tag {
        return match tag.core_suffix() {
            Some("str") => Ok(Value::Str(text)),
            Some("int" | "float" | "bool" | "null") => Ok(plain(text)),
            _ => Err(format!("YAML tag {} is not supported", tag.original())),
        };
    }
    Ok(match style {
        ScalarStyle::Plain => plain(text),
        _ => Value::Str(text),
    })
}

fn plain(text: Cow<'_, str>) -> Value<'_> {
    match text.as_ref() {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(&text);
    if !unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return Value::Str(text);
    }
    if unsigned.bytes().all(|b| b.is_ascii_digit()) {
        if unsigned.len() > 1 && unsigned.starts_with('0') {
            return Value::Str(text);
        }
        return match text.parse() {
            Ok(number) => Value::Int(number),
            Err(_) => Value::Str(text),
        };
    }
    for (prefix, radix) in [("0x", 16), ("0o", 8)] {
        if let Some(digits) = text.strip_prefix(prefix)
            && let Ok(number) = i64::from_str_radix(digits, radix)
        {
            return Value::Int(number);
        }
    }
    let numeric = unsigned
        .bytes()
        .all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'-' | b'+'));
    match text.parse::<f64>() {
        Ok(number) if numeric && number.is_finite() => Value::Float(number),
        _ => Value::Str(text),
    }
}
