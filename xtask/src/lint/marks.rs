//! No mark of unfinished work is left in the tree: what is not done is an issue, not a comment.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::sh;

/// Spelled so that this file does not find itself.
const MARKS: [&str; 3] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
];

pub(super) fn run() -> Result<()> {
    let mut found = Vec::new();
    for file in tracked(&["*.rs", "*.toml", "*.md", "*.sh", "*.yaml", ".ci/run"])? {
        let text = String::from_utf8_lossy(&fs::read(sh::root().join(&file))?).into_owned();
        for (number, line) in text.lines().enumerate() {
            if MARKS.iter().any(|mark| has_word(line, mark)) {
                found.push(format!(
                    "{}:{}: {}",
                    file.display(),
                    number + 1,
                    line.trim()
                ));
            }
        }
    }
    if !found.is_empty() {
        bail!(
            "{} marks of unfinished work:\n{}",
            found.len(),
            found.join("\n")
        );
    }
    Ok(())
}

fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let inside = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        !inside(line[..at].chars().next_back()) && !inside(line[at + word.len()..].chars().next())
    })
}

/// Files of the tree by pattern, tracked or about to be; paths relative to the root.
pub(super) fn tracked(patterns: &[&str]) -> Result<Vec<PathBuf>> {
    let mut git = Command::new("git");
    git.current_dir(sh::root())
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
            "--",
        ])
        .args(patterns);
    let files = sh::output(&mut git)?;
    let files = files.split_terminator('\0').map(PathBuf::from);
    Ok(files
        .filter(|file| sh::root().join(file).is_file())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_a_whole_word() {
        let mark = MARKS[0];
        assert!(has_word(&format!("// {mark}: later"), mark));
        assert!(has_word(mark, mark));
        assert!(!has_word(&format!("{mark}S"), mark));
        assert!(!has_word(&format!("A_{mark}"), mark));
    }
}
