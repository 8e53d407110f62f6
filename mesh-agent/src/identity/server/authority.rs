//! The key that signs, and the change from one root to the next.
//!
//! Each root has a folder (`ca-1`, `ca-2` ...) as [`Signer`] reads it. Links say which one signs (`current`), which one
//! will (`next`) and which one did (`previous`); the bundle is the roots of all three. A step of a rotation is one
//! rename or a few of which each leaves a state that is whole, so that a crash costs no more than doing the step again:
//!
//! | step | current | next | previous | bundle | signs |
//! | --- | --- | --- | --- | --- | --- |
//! | | 1 | | | 1 | 1 |
//! | prepare | 1 | 2 | | 1, 2 | 1 |
//! | activate | 2 | | 1 | 1, 2 | 2 |
//! | finish | 2 | | | 2 | 2 |

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rustls_pki_types::CertificateDer;

use super::{
    files::{self, Stamp},
    state::{State, StateError, io_error},
};
use crate::{
    api::GepDuration,
    identity::{
        roots::{self, Roots},
        signer::Signer,
    },
};

const CURRENT: &str = "current";
const NEXT: &str = "next";
const PREVIOUS: &str = "previous";
const BUNDLE: &str = "roots.pem";

/// A step of the rotation of the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make the new root and have everyone trust it.
    Prepare,
    /// Sign with it.
    Activate,
    /// Trust the old one no more.
    Finish,
}

/// Why a step is not taken.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    #[error("a rotation is under way: {0} is prepared; next is activate")]
    Prepared(String),
    #[error("a rotation is under way: {0} signs and {1} is still trusted; next is finish")]
    Activated(String, String),
    #[error("no new root is prepared; next is prepare")]
    NotPrepared,
    #[error("no old root is left; nothing to finish")]
    NothingOld,
    #[error(
        "nodes learn of the roots when they renew a certificate, which takes up to {wait}; the last step was {ago} ago"
    )]
    TooSoon { ago: GepDuration, wait: GepDuration },
    #[error("there is no authority in this folder yet; `mesh-agent ca serve` makes it")]
    None,
    #[error(transparent)]
    State(#[from] StateError),
}

/// No rotation is under way.
fn check_idle(is: &Generations) -> Result<(), RotationError> {
    match (&is.next, &is.previous) {
        (Some(next), _) => Err(RotationError::Prepared(next.clone())),
        (None, Some(old)) => Err(RotationError::Activated(is.current.clone(), old.clone())),
        (None, None) => Ok(()),
    }
}

/// Which roots there are: names of folders.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Generations {
    pub current: String,
    pub next: Option<String>,
    pub previous: Option<String>,
}

impl Generations {
    /// `None`: there is no authority yet.
    fn read(dir: &Path) -> Result<Option<Self>, StateError> {
        let Some(current) = target(dir, CURRENT)? else {
            return Ok(None);
        };
        let other = |name| {
            let target = target(dir, name)?;
            Ok::<_, StateError>(target.filter(|target| *target != current))
        };
        let (next, previous) = (other(NEXT)?, other(PREVIOUS)?);
        Ok(Some(Self {
            current,
            next,
            previous,
        }))
    }

    fn all(&self) -> impl Iterator<Item = &String> {
        std::iter::once(&self.current)
            .chain(&self.next)
            .chain(&self.previous)
    }
}

/// Where a link points: a name in the same folder.
fn target(dir: &Path, link: &str) -> Result<Option<String>, StateError> {
    let path = dir.join(link);
    match fs::read_link(&path) {
        Ok(to) => {
            let name = to.to_str().filter(|name| {
                name.starts_with("ca-")
                    && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            });
            match name {
                Some(name) => Ok(Some(name.to_owned())),
                None => Err(StateError::File(
                    path,
                    format!(
                        "points to {}, expected a folder ca-N beside it",
                        to.display()
                    ),
                )),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("read the link", &path)(error)),
    }
}

/// The authority at one moment.
#[derive(Debug)]
pub(super) struct Authority {
    pub(super) generations: Generations,
    pub(super) signer: Signer,
    /// All that is to be trusted, PEM.
    pub(super) bundle: String,
}

/// Tells one state of the folder from the next.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Seen {
    generations: Option<Generations>,
    files: Vec<Option<Stamp>>,
}

impl Authority {
    pub(super) fn look(dir: &Path) -> Seen {
        let generations = Generations::read(dir).ok().flatten();
        let files = generations
            .iter()
            .flat_map(Generations::all)
            .flat_map(|name| ["key.pem", "chain.pem", "roots.pem"].map(|f| dir.join(name).join(f)))
            .map(|path| Stamp::of(&path).ok())
            .collect();
        Seen { generations, files }
    }

    pub(super) fn load(dir: &Path) -> Result<Self, RotationError> {
        let generations = Generations::read(dir)?.ok_or(RotationError::None)?;
        let signer = Signer::load(&dir.join(&generations.current)).map_err(StateError::Private)?;
        let bundle = bundle(dir, &generations)?;
        Ok(Self {
            generations,
            signer,
            bundle,
        })
    }
}

/// The roots of all generations, each once.
fn bundle(dir: &Path, generations: &Generations) -> Result<String, StateError> {
    let mut all: Vec<CertificateDer<'static>> = Vec::new();
    for name in generations.all() {
        let path = dir.join(name).join(BUNDLE);
        let pem = fs::read(&path).map_err(io_error("read", &path))?;
        let found =
            roots::certificates(&pem).map_err(|e| StateError::File(path.clone(), e.to_string()))?;
        for root in found {
            if !all.contains(&root) {
                all.push(root);
            }
        }
    }
    Roots::new(all.clone()).map_err(|e| StateError::File(dir.to_owned(), e.to_string()))?;
    Ok(all.iter().map(|root| to_pem(root)).collect())
}

/// One certificate as PEM.
pub(super) fn to_pem(der: &CertificateDer<'_>) -> String {
    let section = pem::Pem::new("CERTIFICATE", der.as_ref());
    let lines = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&section, lines)
}

impl State {
    /// The bundle that nodes verify this authority's own TLS certificate with.
    pub fn bundle_file(&self) -> PathBuf {
        self.dir().join(BUNDLE)
    }

    /// Makes the first root if there is none, and brings `roots.pem` up to date.
    ///
    /// # Errors
    /// What is there cannot be used.
    pub fn ensure_authority(&self) -> Result<Generations, StateError> {
        let _lock = self.lock()?;
        let generations = match Generations::read(self.dir())? {
            Some(generations) => generations,
            None => {
                let first = "ca-1";
                Signer::open(&self.dir().join(first))?;
                let link = self.dir().join(CURRENT);
                files::point(&link, first).map_err(io_error("write", &link))?;
                Generations {
                    current: first.to_owned(),
                    next: None,
                    previous: None,
                }
            }
        };
        self.write_bundle(&generations)?;
        Ok(generations)
    }

    /// Takes a step of the rotation. `wait` is how long nodes must have had to learn of the roots since the last step.
    ///
    /// # Errors
    /// It is not the step that comes next, it is too soon, or files cannot be written.
    pub fn rotate(
        &self,
        step: Step,
        wait: Duration,
        now: SystemTime,
    ) -> Result<Generations, RotationError> {
        let _lock = self.lock()?;
        let mut is = Generations::read(self.dir())?.ok_or(RotationError::None)?;
        match step {
            Step::Prepare => {
                check_idle(&is)?;
                let next = self.unused()?;
                Signer::open(&self.dir().join(&next)).map_err(StateError::Private)?;
                self.point(NEXT, &next)?;
                is.next = Some(next);
            }
            Step::Activate => {
                let Some(next) = is.next.take() else {
                    check_idle(&is)?;
                    return Err(RotationError::NotPrepared);
                };
                self.waited(NEXT, wait, now)?;
                self.point(PREVIOUS, &is.current)?;
                self.point(CURRENT, &next)?;
                self.unlink(NEXT)?;
                is.previous = Some(std::mem::replace(&mut is.current, next));
            }
            Step::Finish => {
                let Some(previous) = is.previous.take() else {
                    check_idle(&is)?;
                    return Err(RotationError::NothingOld);
                };
                self.waited(PREVIOUS, wait, now)?;
                self.unlink(PREVIOUS)?;
                // Its key can sign nothing that is trusted any more, and is better gone.
                let old = self.dir().join(previous);
                fs::remove_dir_all(&old).map_err(io_error("remove", &old))?;
            }
        }
        self.write_bundle(&is)?;
        Ok(is)
    }

    /// A link is as old as the step that made it.
    fn waited(&self, link: &str, wait: Duration, now: SystemTime) -> Result<(), RotationError> {
        let path = self.dir().join(link);
        let made = fs::symlink_metadata(&path)
            .and_then(|meta| meta.modified())
            .map_err(io_error("read", &path))?;
        let ago = now.duration_since(made).unwrap_or_default();
        if ago < wait {
            let ago = GepDuration(Duration::from_secs(ago.as_secs()));
            let wait = GepDuration(wait);
            return Err(RotationError::TooSoon { ago, wait });
        }
        Ok(())
    }

    fn unused(&self) -> Result<String, StateError> {
        let entries = fs::read_dir(self.dir()).map_err(io_error("read", self.dir()))?;
        let last = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter_map(|name| name.strip_prefix("ca-")?.parse::<u32>().ok())
            .max();
        Ok(format!("ca-{}", last.unwrap_or(0).saturating_add(1)))
    }

    fn point(&self, link: &str, to: &str) -> Result<(), StateError> {
        let link = self.dir().join(link);
        files::point(&link, to).map_err(io_error("write", &link))
    }

    fn unlink(&self, link: &str) -> Result<(), StateError> {
        let path = self.dir().join(link);
        fs::remove_file(&path).map_err(io_error("remove", &path))
    }

    fn write_bundle(&self, generations: &Generations) -> Result<(), StateError> {
        let path = self.bundle_file();
        let bundle = bundle(self.dir(), generations)?;
        if fs::read_to_string(&path).is_ok_and(|is| is == bundle) {
            return Ok(());
        }
        files::replace(&path, bundle.as_bytes(), 0o644).map_err(io_error("write", &path))
    }
}
