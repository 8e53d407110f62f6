//! Reads a directory of YAML again and again, parsing only what changed.
//!
//! A file is read again when its stamp (device, inode, size, times) differs; in a file that was read again, documents
//! whose text is the same keep what was parsed. So an edit costs the documents that it touches, and unchanged
//! resources keep their `Arc`.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path as FilePath, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{
    Config, Environment,
    document::{self, Document, Resource},
    error::{ConfigError, Severity, Warning},
    path::Path,
    quick::Known,
    validate::{self, Findings, Placed},
};

/// A file larger than this is refused.
const MAX_FILE: u64 = 256 << 20;
/// Folders inside one another.
const MAX_DEPTH: usize = 16;
/// A file that changed this shortly before it was read may change again within one tick of the file system's clock,
/// so that its stamp proves nothing.
const RACY: Duration = Duration::from_millis(20);

/// What a directory holds.
#[derive(Debug)]
pub struct Outcome {
    pub config: Config,
    pub warnings: Vec<Warning>,
    /// Files that were read again for it.
    pub files_read: usize,
    /// Files in the directory.
    pub files: usize,
    /// Whether the warnings are those of this configuration; otherwise they are left out, and a full load gives them.
    pub complete: bool,
}

/// A directory and what was parsed of it so far.
#[derive(Debug)]
pub struct Loader {
    dir: PathBuf,
    environment: Environment,
    files: BTreeMap<PathBuf, CachedFile>,
    /// The last configuration that was good, for edits that can be judged by themselves.
    known: Option<Known>,
}

#[derive(Debug)]
struct CachedFile {
    /// `None`: read it again next time.
    stamp: Option<Stamp>,
    documents: Vec<(u32, Arc<Document>)>,
    error: Option<ConfigError>,
}

impl CachedFile {
    /// Whether nothing is wrong with any of its documents.
    fn is_good(&self) -> bool {
        let mut problems = self
            .documents
            .iter()
            .flat_map(|(_, document)| &document.problems);
        problems.all(|problem| problem.severity == Severity::Warning)
    }
}

/// All resources by kind, unchecked.
fn gather<'a>(files: impl Iterator<Item = &'a CachedFile>) -> Config {
    let mut config = Config::default();
    for (_, document) in files.flat_map(|file| &file.documents) {
        for (_, resource) in &document.resources {
            match resource {
                Resource::Namespace(object) => config.namespaces.push(Arc::clone(object)),
                Resource::Service(object) => config.services.push(Arc::clone(object)),
                Resource::EndpointSlice(object) => config.endpoint_slices.push(Arc::clone(object)),
                Resource::Workload(object) => config.workloads.push(Arc::clone(object)),
                Resource::MeshPolicy(object) => config.mesh_policies.push(Arc::clone(object)),
                Resource::TrafficPolicy(object) => config.traffic_policies.push(Arc::clone(object)),
                Resource::AuthorizationPolicy(object) => {
                    config.authorization_policies.push(Arc::clone(object));
                }
                Resource::HttpRoute(object) => config.http_routes.push(Arc::clone(object)),
                Resource::GrpcRoute(object) => config.grpc_routes.push(Arc::clone(object)),
            }
        }
    }
    config
}

/// Changes whenever the content of a file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl Loader {
    pub fn new(dir: impl Into<PathBuf>, environment: Environment) -> Self {
        Self {
            dir: dir.into(),
            environment,
            files: BTreeMap::new(),
            known: None,
        }
    }

    /// As `load`, when nothing but these files changed. A small edit that is surely good takes effect without looking
    /// at everything else; the outcome is then not `complete`.
    ///
    /// # Errors
    /// As `load`.
    pub fn load_changed(&mut self, paths: &HashSet<PathBuf>) -> Result<Outcome, Vec<ConfigError>> {
        let Some(mut known) = self.known.take() else {
            return self.load();
        };
        for path in paths {
            let previous = self.files.remove(path);
            match fs::metadata(path) {
                Ok(metadata) if metadata.is_file() => {
                    let file = read(path, previous);
                    let good = file.error.is_none() && file.is_good();
                    self.files.insert(path.clone(), file);
                    if !good {
                        return self.load();
                    }
                }
                Ok(_) => return self.load(),
                Err(_) => {}
            }
        }
        let config = gather(self.files.values());
        if !known.accepts(&config) {
            return self.load();
        }
        self.known = Some(known);
        Ok(Outcome {
            config,
            warnings: Vec::new(),
            files_read: paths.len(),
            files: self.files.len(),
            complete: false,
        })
    }

    /// Whether a load would read anything again.
    pub fn has_changed(&self) -> bool {
        match list(&self.dir) {
            Ok(found) => {
                found.len() != self.files.len()
                    || found.iter().any(|(path, stamp)| {
                        self.files
                            .get(path)
                            .is_none_or(|cached| cached.stamp != Some(*stamp))
                    })
            }
            Err(_) => true,
        }
    }

    /// Reads what changed since the last time, and checks everything.
    ///
    /// # Errors
    /// Everything that is wrong, in the order of files and lines.
    pub fn load(&mut self) -> Result<Outcome, Vec<ConfigError>> {
        let found = list(&self.dir)?;
        self.files.retain(|path, _| found.contains_key(path));
        let mut files_read = 0;
        for (path, stamp) in found {
            let cached = self.files.get(&path);
            if cached.is_some_and(|cached| cached.stamp == Some(stamp)) {
                continue;
            }
            files_read += 1;
            let previous = self.files.remove(&path);
            self.files.insert(path.clone(), read(&path, previous));
        }
        let mut findings = Findings::default();
        for cached in self.files.values() {
            findings.errors.extend(cached.error.clone());
        }
        let files = self
            .files
            .iter()
            .map(|(path, cached)| (path.as_path(), cached.documents.as_slice()));
        let config = check(files, &self.environment, &mut findings);
        if !findings.errors.is_empty() {
            self.known = None;
            return Err(findings.errors);
        }
        self.known = Some(Known::new(&config));
        Ok(Outcome {
            config,
            warnings: findings.warnings,
            files_read,
            files: self.files.len(),
            complete: true,
        })
    }
}

/// The bytes of one file as a whole configuration.
pub(crate) fn load_bytes(
    file: &FilePath,
    bytes: &[u8],
    environment: &Environment,
) -> Result<(Config, Vec<Warning>), Vec<ConfigError>> {
    let documents = parse(file, bytes, &HashMap::new()).map_err(|error| vec![error])?;
    let mut findings = Findings::default();
    let config = check(
        std::iter::once((file, documents.as_slice())),
        environment,
        &mut findings,
    );
    if findings.errors.is_empty() {
        Ok((config, findings.warnings))
    } else {
        Err(findings.errors)
    }
}

/// Gathers the problems of single documents, then checks all resources together.
fn check<'a>(
    files: impl Iterator<Item = (&'a FilePath, &'a [(u32, Arc<Document>)])>,
    environment: &Environment,
    findings: &mut Findings,
) -> Config {
    let root = Path::root();
    let mut placed = Vec::new();
    for (file, documents) in files {
        for (line, document) in documents {
            for problem in &document.problems {
                findings.add(file, *line, document, &root, problem);
            }
            for (prefix, resource) in &document.resources {
                placed.push(Placed {
                    file,
                    line: *line,
                    document,
                    prefix,
                    resource,
                });
            }
        }
    }
    let config = validate::validate(&placed, environment, findings);
    findings.sort();
    config
}

/// Splits and parses a file, keeping documents whose text is known.
fn parse(
    file: &FilePath,
    bytes: &[u8],
    known: &HashMap<&str, &Arc<Document>>,
) -> Result<Vec<(u32, Arc<Document>)>, ConfigError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        let line_start = before
            .iter()
            .rposition(|b| *b == b'\n')
            .map_or(0, |at| at + 1);
        let column = String::from_utf8_lossy(&before[line_start..])
            .chars()
            .count() as u32
            + 1;
        let line = before.iter().filter(|b| **b == b'\n').count() as u32 + 1;
        file_error(
            file,
            line,
            column,
            "not valid UTF-8".to_owned(),
            Some("UTF-8 text"),
        )
    })?;
    Ok(document::split(text)
        .into_iter()
        .map(|(line, piece)| {
            let document = match known.get(piece) {
                Some(document) => Arc::clone(document),
                None => Arc::new(Document::parse(piece)),
            };
            (line, document)
        })
        .collect())
}

fn read(path: &FilePath, previous: Option<CachedFile>) -> CachedFile {
    let previous = previous.map(|cached| cached.documents).unwrap_or_default();
    let known = previous
        .iter()
        .map(|(_, document)| (&*document.text, document))
        .collect();
    let outcome = read_settled(path)
        .map_err(|error| {
            let message = format!("cannot be read: {error}");
            file_error(path, 0, 0, message, None)
        })
        .map(|(bytes, stamp)| (parse(path, &bytes, &known), stamp));
    let (documents, stamp, error) = match outcome {
        Ok((Ok(documents), stamp)) => (documents, stamp, None),
        Ok((Err(error), stamp)) => (Vec::new(), stamp, Some(error)),
        Err(error) => (Vec::new(), None, Some(error)),
    };
    CachedFile {
        stamp,
        documents,
        error,
    }
}

/// Reads a file so that what was read has the returned stamp; there is none if the file is too young to be sure.
fn read_settled(path: &FilePath) -> io::Result<(Vec<u8>, Option<Stamp>)> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        let before = fs::metadata(path)?;
        if before.size() > MAX_FILE {
            return Err(io::Error::other(format!(
                "larger than {} MiB",
                MAX_FILE >> 20
            )));
        }
        let bytes = fs::read(path)?;
        let after = fs::metadata(path)?;
        let stamp = Stamp::of(&after);
        if stamp == Stamp::of(&before) && bytes.len() as u64 == after.size() {
            let age = after
                .modified()
                .ok()
                .and_then(|modified| SystemTime::now().duration_since(modified).ok());
            let settled = age.is_some_and(|age| age > RACY);
            return Ok((bytes, settled.then_some(stamp)));
        }
        // Someone writes to it. Whoever watches the folder will hear of the end of that and come again.
        if attempts == 3 {
            return Ok((bytes, None));
        }
    }
}

/// YAML files of a folder and the folders in it. Names that begin with a dot are left out: among them are the
/// `..data` links of Kubernetes volumes, and what editors write beside a file.
pub(crate) fn list(dir: &FilePath) -> Result<BTreeMap<PathBuf, Stamp>, Vec<ConfigError>> {
    let mut found = BTreeMap::new();
    let mut errors = Vec::new();
    // The folder itself is seen as well: a link below may lead back to it.
    let mut seen: HashSet<(u64, u64)> = fs::metadata(dir)
        .iter()
        .map(|metadata| (metadata.dev(), metadata.ino()))
        .collect();
    let mut folders = vec![(dir.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) => {
                // A folder below may go while we look.
                if depth == 0 || error.kind() != io::ErrorKind::NotFound {
                    let message = format!("folder cannot be read: {error}");
                    errors.push(file_error(
                        &folder,
                        0,
                        0,
                        message,
                        Some("a folder of YAML files"),
                    ));
                }
                continue;
            }
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let path = entry.path();
            let metadata = match fs::metadata(&path) {
                Ok(metadata) => metadata,
                Err(error) => {
                    let dangling = fs::symlink_metadata(&path).is_ok();
                    if dangling && is_yaml(&path) {
                        let message = format!("cannot be read: {error}");
                        errors.push(file_error(&path, 0, 0, message, None));
                    }
                    continue;
                }
            };
            if metadata.is_dir() {
                if depth < MAX_DEPTH && seen.insert((metadata.dev(), metadata.ino())) {
                    folders.push((path, depth + 1));
                }
            } else if metadata.is_file() && is_yaml(&path) {
                found.insert(path, Stamp::of(&metadata));
            }
        }
    }
    if errors.is_empty() {
        Ok(found)
    } else {
        Err(errors)
    }
}

pub(crate) fn is_yaml(path: &FilePath) -> bool {
    path.extension()
        .is_some_and(|extension| extension == "yaml" || extension == "yml" || extension == "json")
}

fn file_error(
    file: &FilePath,
    line: u32,
    column: u32,
    message: String,
    expected: Option<&str>,
) -> ConfigError {
    ConfigError {
        file: file.to_owned(),
        line,
        column,
        field: String::new(),
        message,
        expected: expected.map(str::to_owned),
    }
}
