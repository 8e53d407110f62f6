//! The list of revoked tokens: one name (`jti`) a line, `#` begins a comment.

use std::{collections::HashSet, fs, io, path::Path};

const MAX_FILE: u64 = 16 * 1024 * 1024;
const MAX_NAME: usize = 253;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revoked(HashSet<String>);

impl Revoked {
    /// # Errors
    /// A line is no name. Then none of the list counts: half of a list would let the other half in.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut names = HashSet::new();
        for (at, line) in text.lines().enumerate() {
            let name = line.split('#').next().unwrap_or_default().trim();
            let good = name.len() <= MAX_NAME
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
            if !good {
                return Err(format!(
                    "line {}: expected the name of a token (its jti), as `mesh-agent ca token` shows it",
                    at + 1
                ));
            }
            if !name.is_empty() {
                names.insert(name.to_owned());
            }
        }
        Ok(Self(names))
    }

    /// # Errors
    /// It cannot be read, or is no list.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let read = || {
            if fs::metadata(path)?.len() > MAX_FILE {
                return Err(io::Error::other("it is larger than 16 MiB"));
            }
            fs::read_to_string(path)
        };
        Self::parse(&read().map_err(|error| error.to_string())?)
    }

    pub fn contains(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_blank_lines_and_comments() {
        let list = Revoked::parse("a1b2 # stolen\n\n# all of\n  c3-d_4.5  \r\na1b2\n").unwrap();
        assert_eq!(list.len(), 2);
        assert!(list.contains("a1b2") && list.contains("c3-d_4.5"));
        assert!(!list.contains("a1b") && !list.contains(""));
        assert!(Revoked::parse("").unwrap().is_empty());
    }

    #[test]
    fn one_bad_line_refuses_the_list() {
        for (text, line) in [("a\nb c\n", 2), ("\u{fffd}", 1), ("a\n\neyJ/x", 3)] {
            let error = Revoked::parse(text).unwrap_err();
            assert!(error.starts_with(&format!("line {line}:")), "{error}");
        }
        assert!(Revoked::parse(&"a".repeat(254)).is_err());
    }
}
