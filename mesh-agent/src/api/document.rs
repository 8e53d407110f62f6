//! One YAML document: from text to resources and everything that is wrong with it on its own.

use std::sync::{Arc, LazyLock};

use serde::de::DeserializeOwned;

use super::{
    error::Problem,
    kinds::{
        AuthorizationPolicy, EndpointSlice, GrpcRoute, HttpRoute, MeshPolicy, Namespace, Service,
        TrafficPolicy, Workload,
    },
    local,
    metadata::{Object, ObjectMeta},
    path::Path,
    refused,
    schema::Kind,
    shape::{self, Shape},
    yaml::{self, Node, Position, Value},
};
use crate::model::ResourceName;

/// A resource of any kind.
#[derive(Clone, Debug)]
pub(crate) enum Resource {
    Namespace(Arc<Object<Namespace>>),
    Service(Arc<Object<Service>>),
    EndpointSlice(Arc<Object<EndpointSlice>>),
    Workload(Arc<Object<Workload>>),
    MeshPolicy(Arc<Object<MeshPolicy>>),
    TrafficPolicy(Arc<Object<TrafficPolicy>>),
    AuthorizationPolicy(Arc<Object<AuthorizationPolicy>>),
    HttpRoute(Arc<Object<HttpRoute>>),
    GrpcRoute(Arc<Object<GrpcRoute>>),
}

impl Resource {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Namespace(_) => Kind::Namespace,
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::Workload(_) => Kind::Workload,
            Self::MeshPolicy(_) => Kind::MeshPolicy,
            Self::TrafficPolicy(_) => Kind::TrafficPolicy,
            Self::AuthorizationPolicy(_) => Kind::AuthorizationPolicy,
            Self::HttpRoute(_) => Kind::HttpRoute,
            Self::GrpcRoute(_) => Kind::GrpcRoute,
        }
    }

    pub(crate) fn name(&self) -> &ResourceName {
        match self {
            Self::Namespace(object) => &object.name,
            Self::Service(object) => &object.name,
            Self::EndpointSlice(object) => &object.name,
            Self::Workload(object) => &object.name,
            Self::MeshPolicy(object) => &object.name,
            Self::TrafficPolicy(object) => &object.name,
            Self::AuthorizationPolicy(object) => &object.name,
            Self::HttpRoute(object) => &object.name,
            Self::GrpcRoute(object) => &object.name,
        }
    }
}

/// A parsed document. Positions count from its own first line, so that it can be kept when lines above it come or go.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) text: Arc<str>,
    /// With the path of each in the document: empty, or `items[2]` in a List.
    pub(crate) resources: Vec<(Path, Resource)>,
    pub(crate) problems: Vec<Problem>,
}

impl Document {
    pub(crate) fn parse(text: &str) -> Self {
        let mut document = Self {
            text: text.into(),
            resources: Vec::new(),
            problems: Vec::new(),
        };
        match yaml::parse(text) {
            Ok(Some(node)) => document.read(&node),
            Ok(None) => {}
            Err(problems) => document.problems = problems,
        }
        document
    }

    /// Where a path leads. Parses the text again: positions are wanted only when something is wrong.
    pub(crate) fn locate(&self, path: &Path) -> Position {
        match yaml::parse(&self.text) {
            Ok(Some(node)) => node.locate(path),
            _ => Position { line: 1, column: 1 },
        }
    }

    fn read(&mut self, node: &Node<'_>) {
        if matches!(node.value, Value::Null) {
            return;
        }
        let is_list = node.get("kind").and_then(Node::str) == Some("List")
            && node.get("apiVersion").and_then(Node::str) == Some("v1");
        if !is_list {
            return self.resource(&Path::root(), node);
        }
        if let Value::Map(entries) = &node.value {
            for (key, _) in entries {
                if !matches!(
                    key.text.as_ref(),
                    "apiVersion" | "kind" | "metadata" | "items"
                ) {
                    let path = Path::root().key(&key.text);
                    let message =
                        "unknown field, expected one of apiVersion, items, kind, metadata";
                    self.problems.push(Problem::at(path, key.at, message));
                }
            }
        }
        match node.get("items") {
            Some(Node {
                value: Value::Seq(items),
                ..
            }) => {
                for (index, item) in items.iter().enumerate() {
                    self.resource(&Path::of("items").index(index), item);
                }
            }
            other => {
                let (at, got) = match other {
                    Some(other) => (other.at, other.value.to_string()),
                    None => (node.at, "nothing".to_owned()),
                };
                let problem = Problem::expected(Path::of("items"), "a list of resources", got);
                self.problems.push(problem.placed(at));
            }
        }
    }

    /// Reads one resource of the document.
    fn resource(&mut self, prefix: &Path, node: &Node<'_>) {
        let mut problems = Vec::new();
        if let Some(resource) = read_resource(node, &mut problems) {
            self.resources.push((prefix.clone(), resource));
        }
        for mut problem in problems {
            if problem.at.is_none() {
                problem.at = Some(node.locate(&problem.path));
            }
            problem.path = prefix.join(&problem.path);
            self.problems.push(problem);
        }
    }
}

fn read_resource(node: &Node<'_>, problems: &mut Vec<Problem>) -> Option<Resource> {
    if !matches!(node.value, Value::Map(_)) {
        let problem = Problem::expected(Path::root(), "a resource (a mapping)", &node.value);
        problems.push(problem.placed(node.at));
        return None;
    }
    let kind = kind_of(node, problems)?;
    let shape = shape_of(kind)?;
    let before = problems.len();
    shape::check(kind.name(), shape, node, problems);
    if problems.len() > before {
        return None;
    }
    let resource = match kind {
        Kind::Namespace => {
            object(node, problems, |r: &Namespace| &r.metadata).map(Resource::Namespace)
        }
        Kind::Service => object(node, problems, |r: &Service| &r.metadata).map(Resource::Service),
        Kind::EndpointSlice => {
            object(node, problems, |r: &EndpointSlice| &r.metadata).map(Resource::EndpointSlice)
        }
        Kind::Workload => {
            object(node, problems, |r: &Workload| &r.metadata).map(Resource::Workload)
        }
        Kind::MeshPolicy => {
            object(node, problems, |r: &MeshPolicy| &r.metadata).map(Resource::MeshPolicy)
        }
        Kind::TrafficPolicy => {
            object(node, problems, |r: &TrafficPolicy| &r.metadata).map(Resource::TrafficPolicy)
        }
        Kind::AuthorizationPolicy => object(node, problems, |r: &AuthorizationPolicy| &r.metadata)
            .map(Resource::AuthorizationPolicy),
        Kind::HttpRoute => {
            object(node, problems, |r: &HttpRoute| &r.metadata).map(Resource::HttpRoute)
        }
        Kind::GrpcRoute => {
            object(node, problems, |r: &GrpcRoute| &r.metadata).map(Resource::GrpcRoute)
        }
    }?;
    local::check(&resource, problems);
    Some(resource)
}

fn object<T: DeserializeOwned>(
    node: &Node<'_>,
    problems: &mut Vec<Problem>,
    metadata: impl Fn(&T) -> &ObjectMeta,
) -> Option<Arc<Object<T>>> {
    match T::deserialize(node) {
        Ok(body) => {
            let name = metadata(&body).resource_name();
            Some(Arc::new(Object { name, body }))
        }
        Err(error) => {
            problems.push(Problem::at(Path::root(), node.at, error.to_string()));
            None
        }
    }
}

fn kind_of(node: &Node<'_>, problems: &mut Vec<Problem>) -> Option<Kind> {
    let mut field = |name: &str, expected: &str| match node.get(name) {
        Some(found) => match found.str() {
            Some(text) => Some((text.to_owned(), found.at)),
            None => {
                let problem = Problem::expected(Path::of(name), expected, &found.value);
                problems.push(problem.placed(found.at));
                None
            }
        },
        None => {
            let problem = Problem::at(Path::of(name), node.at, "required field is missing");
            problems.push(problem.wanted(expected));
            None
        }
    };
    let version = field(
        "apiVersion",
        "v1, discovery.k8s.io/v1, gateway.networking.k8s.io/v1 or mesh.covet.dev/v1alpha1",
    );
    let kind = field("kind", &kinds());
    let ((version, version_at), (kind, kind_at)) = (version?, kind?);
    let Some(known) = Kind::ALL.into_iter().find(|known| known.name() == kind) else {
        problems.push(match refused::kind(&version, &kind) {
            Some(reason) => Problem::at(Path::of("kind"), kind_at, format!("{kind} is {reason}")),
            None => Problem::expected(
                Path::of("kind"),
                format!("one of {}", kinds()),
                yaml::quoted(&kind),
            )
            .placed(kind_at),
        });
        return None;
    };
    if known.api_version() != version {
        let article = if kind.starts_with(['A', 'E', 'H']) {
            "an"
        } else {
            "a"
        };
        let expected = format!("{} for {article} {kind}", known.api_version());
        let problem = Problem::expected(Path::of("apiVersion"), expected, yaml::quoted(&version));
        problems.push(problem.placed(version_at));
        return None;
    }
    Some(known)
}

fn kinds() -> String {
    Kind::ALL.map(Kind::name).join(", ")
}

/// Shapes of all kinds, compiled when first used. A test makes sure that all compile.
fn shape_of(kind: Kind) -> Option<&'static Shape> {
    static SHAPES: LazyLock<Vec<(Kind, Shape)>> = LazyLock::new(|| {
        Kind::ALL
            .into_iter()
            .filter_map(|kind| {
                let schema = kind.schema();
                match shape::compile(&schema, &schema, kind.name()) {
                    Ok(shape) => Some((kind, shape)),
                    Err(error) => {
                        tracing::error!(kind = kind.name(), %error, "schema of a resource kind does not compile");
                        None
                    }
                }
            })
            .collect()
    });
    SHAPES
        .iter()
        .find(|(known, _)| *known == kind)
        .map(|(_, shape)| shape)
}

/// The documents of a file, each with the number of lines before it. They are split before they are parsed so that an
/// edit in a big file costs only the documents that it touches: `---` and `...` at the beginning of a line end a
/// document wherever they stand (YAML 1.2 section 9.1.2).
pub(crate) fn split(text: &str) -> Vec<(u32, &str)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = Vec::new();
    let (mut start, mut start_line) = (0, 0);
    let mut offset = 0;
    for (line_number, line) in text.split_inclusive('\n').enumerate() {
        let marker = line.len() >= 3
            && (line.starts_with("---") || line.starts_with("..."))
            && line[3..]
                .chars()
                .next()
                .is_none_or(|c| c.is_ascii_whitespace());
        if marker {
            let end_marker = line.starts_with("...");
            let end = if end_marker {
                offset + line.len()
            } else {
                offset
            };
            push(&mut documents, start_line, &text[start..end]);
            start = end;
            start_line = line_number + usize::from(end_marker);
        }
        offset += line.len();
    }
    push(&mut documents, start_line, &text[start..]);
    documents
}

/// Keeps a piece unless there is nothing in it but comments, markers and directives.
fn push<'a>(documents: &mut Vec<(u32, &'a str)>, line: usize, piece: &'a str) {
    let empty = piece.lines().all(|line| {
        let line = line.trim();
        line.is_empty() || line.starts_with(['#', '%']) || line == "---" || line == "..."
    });
    if !empty {
        documents.push((line as u32, piece));
    }
}
