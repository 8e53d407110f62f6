//! The authority's folder:
//!
//! | name | what |
//! | --- | --- |
//! | `current`, `next`, `previous` | links to the folders of roots, see `authority` |
//! | `roots.pem` | what to trust, for copying to nodes |
//! | `token.key` | signs the tokens of nodes |
//! | `revoked-tokens` | names of tokens that no longer count |
//! | `issued-tokens` | which token went to which node, to revoke by node |

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use zeroize::Zeroizing;

use super::{
    files::{self, Lock},
    revoked::Revoked,
    token::{NodeToken, TokenKey},
};
use crate::identity::signer::{self, SignerError};

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("cannot {doing} {path}: {source}")]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(transparent)]
    Private(#[from] SignerError),
    #[error("{0}: {1}")]
    File(PathBuf, String),
    #[error("{0}")]
    Token(String),
    #[error(
        "{0:?} is no name of a token: it is what `mesh-agent ca token` called it, or the field jti in it"
    )]
    Name(String),
}

pub(super) fn io_error<'a>(
    doing: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> StateError + 'a {
    move |source| StateError::Io {
        doing,
        path: path.to_owned(),
        source,
    }
}

/// The folder.
#[derive(Clone, Debug)]
pub struct State(PathBuf);

/// A token that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    pub id: String,
    pub node: String,
    pub expires: SystemTime,
}

impl State {
    /// Makes the folder if it is not there.
    ///
    /// # Errors
    /// It cannot be made, or others may read it.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, StateError> {
        let dir = dir.into();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(io_error("make", &dir))?;
        signer::private(&dir, 0o700)?;
        Ok(Self(dir))
    }

    pub fn dir(&self) -> &Path {
        &self.0
    }

    pub(super) fn token_key(&self) -> PathBuf {
        self.0.join("token.key")
    }

    pub fn revoked_tokens(&self) -> PathBuf {
        self.0.join("revoked-tokens")
    }

    fn issued_tokens(&self) -> PathBuf {
        self.0.join("issued-tokens")
    }

    pub(super) fn lock(&self) -> Result<Lock, StateError> {
        Lock::take(&self.0).map_err(io_error("lock", &self.0))
    }

    /// Makes the key of tokens if there is none.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn ensure_token_key(&self) -> Result<(), StateError> {
        let path = self.token_key();
        let _lock = self.lock()?;
        if path.exists() {
            return Ok(());
        }
        let pem = TokenKey::generate().map_err(StateError::Token)?;
        files::replace(&path, pem.as_bytes(), 0o600).map_err(io_error("write", &path))
    }

    /// Makes a token for a node and writes down that it did.
    ///
    /// # Errors
    /// The key cannot be used, or the note cannot be written.
    pub fn issue(
        &self,
        node: &str,
        now: SystemTime,
        ttl: Duration,
    ) -> Result<(String, NodeToken), StateError> {
        self.ensure_token_key()?;
        let key = read_token_key(&self.token_key())?;
        let (token, made) = key.issue(node, now, ttl).map_err(StateError::Token)?;
        let _lock = self.lock()?;
        let mut issued = self.issued()?;
        issued.retain(|one| one.expires > now);
        issued.push(Issued {
            id: made.id.clone(),
            node: made.node.clone(),
            expires: made.expires,
        });
        let path = self.issued_tokens();
        let text: String = issued.iter().map(note).collect();
        files::replace(&path, text.as_bytes(), 0o600).map_err(io_error("write", &path))?;
        Ok((token, made))
    }

    /// The tokens that were made, without most of those that have expired.
    ///
    /// # Errors
    /// The notes cannot be read.
    pub fn issued(&self) -> Result<Vec<Issued>, StateError> {
        let path = self.issued_tokens();
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            result => result.map_err(io_error("read", &path))?,
        };
        text.lines()
            .enumerate()
            .map(|(at, line)| {
                read_note(line).ok_or_else(|| {
                    let why = format!("line {}: expected JTI NODE SECONDS", at + 1);
                    StateError::File(path.clone(), why)
                })
            })
            .collect()
    }

    /// Adds tokens to the list of revoked ones; answers those that were not on it.
    ///
    /// # Errors
    /// A name cannot be one, or the list cannot be read or written.
    pub fn revoke(&self, list: &Path, names: &[String]) -> Result<Vec<String>, StateError> {
        let wrong = |name: &&String| Revoked::parse(name).is_ok_and(|r| r.contains(name));
        if let Some(name) = names.iter().find(|name| !wrong(name)) {
            return Err(StateError::Name(name.clone()));
        }
        let _lock = self.lock()?;
        let mut text = match fs::read_to_string(list) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            result => result.map_err(io_error("read", list))?,
        };
        let before = Revoked::parse(&text).map_err(|why| StateError::File(list.to_owned(), why))?;
        let new: Vec<String> = names
            .iter()
            .filter(|name| !before.contains(name))
            .cloned()
            .collect();
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        for name in &new {
            text.push_str(name);
            text.push('\n');
        }
        if !new.is_empty() {
            files::replace(list, text.as_bytes(), 0o600).map_err(io_error("write", list))?;
        }
        Ok(new)
    }
}

fn note(one: &Issued) -> String {
    let seconds = one.expires.duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{} {} {}\n", one.id, one.node, seconds.as_secs())
}

fn read_note(line: &str) -> Option<Issued> {
    let mut words = line.split(' ');
    let (id, node, seconds) = (words.next()?, words.next()?, words.next()?);
    let seconds = seconds.parse().ok().filter(|s| *s < 1 << 40)?;
    words.next().is_none().then(|| Issued {
        id: id.to_owned(),
        node: node.to_owned(),
        expires: UNIX_EPOCH + Duration::from_secs(seconds),
    })
}

pub(super) fn read_token_key(path: &Path) -> Result<TokenKey, StateError> {
    signer::private(path, 0o600)?;
    let pem = Zeroizing::new(fs::read_to_string(path).map_err(io_error("read", path))?);
    TokenKey::from_pem(&pem).map_err(|why| StateError::File(path.to_owned(), why))
}
