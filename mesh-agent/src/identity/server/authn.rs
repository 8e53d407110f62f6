//! Who asks: the node that a bearer token belongs to.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use futures::{FutureExt as _, future::BoxFuture};

use super::{
    files::Stamp,
    followed::Followed,
    revoked::Revoked,
    state::{self, State},
    token::{NodeToken, TokenError, TokenKey},
};

/// The seam to whoever vouches for nodes.
pub trait NodeAuthenticator: Send + Sync + 'static {
    /// Decides from what is at hand, without asking anyone: certificates are signed also while whoever made the token is
    /// away. May read files.
    ///
    /// # Errors
    /// The token is refused.
    fn verify(&self, token: &str, now: SystemTime) -> Result<NodeToken, TokenError>;

    /// Asks whoever made the token whether it still stands, where that can be done. Only for a token that is verified.
    fn review<'a>(&'a self, _token: &'a str, _node: &'a NodeToken) -> BoxFuture<'a, Review> {
        std::future::ready(Review::Stands).boxed()
    }
}

/// What a live review says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Review {
    /// It stands, or nobody can be asked.
    Stands,
    Withdrawn(String),
    /// Whoever should know does not answer: what was verified is enough, and the log says so.
    Unanswered(String),
}

/// Tokens of `mesh-agent ca token`.
pub struct NodeTokens {
    key: Followed<TokenKey, Option<Stamp>>,
    revoked: Followed<Revoked, Option<Stamp>>,
}

impl NodeTokens {
    /// `revoked`: another list than that of the folder.
    ///
    /// # Errors
    /// The key or the list cannot be read.
    pub fn open(state: &State, revoked: Option<PathBuf>) -> Result<Self, String> {
        let key_file = state.token_key();
        let key = {
            let path = key_file.clone();
            let said = format!("the token key {}", path.display());
            let read = move || state::read_token_key(&path).map_err(|e| e.to_string());
            Followed::new(said, stamp(&key_file), read)?
        };
        let (list, may_miss) = match revoked {
            Some(path) => (path, false),
            None => (state.revoked_tokens(), true),
        };
        let said = format!("the list of revoked tokens {}", list.display());
        let read = {
            let path = list.clone();
            let first = std::sync::atomic::AtomicBool::new(may_miss);
            move || {
                // No list yet is an empty one. A list that vanishes later is an error: tokens would come back to life.
                let first = first.swap(false, std::sync::atomic::Ordering::Relaxed);
                if first && !path.exists() {
                    return Ok(Revoked::default());
                }
                Revoked::read(&path)
            }
        };
        let revoked = Followed::new(said, stamp(&list), read)
            .map_err(|error| format!("{}: {error}", list.display()))?;
        Ok(Self { key, revoked })
    }
}

fn stamp(path: &Path) -> impl Fn() -> Option<Stamp> + Send + Sync + 'static {
    let path: Arc<Path> = path.into();
    move || Stamp::of(&path).ok()
}

impl NodeAuthenticator for NodeTokens {
    fn verify(&self, token: &str, now: SystemTime) -> Result<NodeToken, TokenError> {
        let node = self.key.get().verify(token, now)?;
        if self.revoked.get().contains(&node.id) {
            return Err(TokenError::Revoked(node));
        }
        Ok(node)
    }
}
