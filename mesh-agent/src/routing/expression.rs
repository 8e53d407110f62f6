//! Regular expressions of matches: RE2's syntax, linear time, a bounded program. A match is of the whole text.

use std::{fmt, sync::Arc};

use regex::bytes::{Regex, RegexBuilder};

/// Bytes that a compiled expression may take.
const PROGRAM_LIMIT: usize = 1 << 20;
/// Bytes of the cache of states that it may build while it runs.
const CACHE_LIMIT: usize = 1 << 20;
/// Groups inside one another.
const NEST_LIMIT: u32 = 50;

/// A compiled expression. Cheap to clone; equal to another with the same text.
#[derive(Clone)]
pub struct Expression {
    source: Arc<str>,
    regex: Arc<Regex>,
}

/// Why a text is not an expression that is accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadExpression(String);

impl Expression {
    /// # Errors
    /// What is wrong with it, on one line.
    pub fn new(source: &str) -> Result<Self, BadExpression> {
        // By itself first: `a)|(b` must not become good by what is put around it.
        compile(source)?;
        let regex = compile(&format!(r"\A(?:{source})\z"))?;
        Ok(Self {
            source: source.into(),
            regex: Arc::new(regex),
        })
    }

    pub fn matches(&self, text: &[u8]) -> bool {
        self.regex.is_match(text)
    }

    pub fn as_str(&self) -> &str {
        &self.source
    }

    /// What every text that matches begins with, as far as that is plain to see; short of the truth is fine.
    pub(super) fn literal_prefix(&self) -> &str {
        let source = self.source.trim_start_matches('^');
        if source.contains(['|', '#']) || source.starts_with("(?") {
            return "";
        }
        let special = |c: char| matches!(c, '\\' | '.' | '^' | '$' | '(' | ')' | '[' | ']');
        let repeats = |c: char| matches!(c, '*' | '+' | '?' | '{' | '}');
        let end = source
            .find(|c| special(c) || repeats(c))
            .unwrap_or(source.len());
        let (literal, rest) = source.split_at(end);
        if rest.starts_with(repeats) {
            // The last character may be there many times or not at all.
            let last = literal.chars().next_back().map_or(0, char::len_utf8);
            return &literal[..literal.len() - last];
        }
        literal
    }
}

fn compile(source: &str) -> Result<Regex, BadExpression> {
    RegexBuilder::new(source)
        .size_limit(PROGRAM_LIMIT)
        .dfa_size_limit(CACHE_LIMIT)
        .nest_limit(NEST_LIMIT)
        .build()
        .map_err(|error| {
            BadExpression(match error {
                regex::Error::CompiledTooBig(limit) => {
                    format!("compiles to more than {} KiB", limit >> 10)
                }
                // The last line says what is wrong; those before it draw where.
                other => {
                    let text = other.to_string();
                    let last = text.lines().last().unwrap_or_default().trim();
                    last.trim_start_matches("error: ").to_owned()
                }
            })
        })
}

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for Expression {}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Expression({:?})", self.source)
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}
