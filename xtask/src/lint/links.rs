//! Every link in a Markdown file of the tree leads to a file that exists, every `#anchor` to a heading.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use anyhow::{Result, bail};

use super::marks::tracked;
use crate::sh;

pub(super) fn run() -> Result<()> {
    let mut broken = Vec::new();
    let mut seen = 0;
    for file in tracked(&["*.md"])? {
        let text = fs::read_to_string(sh::root().join(&file))?;
        for link in links(&text) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            seen += 1;
            if let Some(why) = check(&file, &link) {
                broken.push(format!("{}: {link}: {why}", file.display()));
            }
        }
    }
    if !broken.is_empty() {
        bail!("{} broken links:\n{}", broken.len(), broken.join("\n"));
    }
    println!("{seen} links lead somewhere");
    Ok(())
}

fn check(file: &Path, link: &str) -> Option<String> {
    let (path, anchor) = link
        .split_once('#')
        .map_or((link, None), |(p, a)| (p, Some(a)));
    let target = match path {
        "" => sh::root().join(file),
        path => sh::root().join(file).parent()?.join(path),
    };
    if !target.exists() {
        return Some("no such file".to_owned());
    }
    let anchor = anchor?;
    let text = fs::read_to_string(&target).unwrap_or_default();
    let known: HashSet<String> = headings(&text).collect();
    (!known.contains(anchor)).then(|| "no such heading".to_owned())
}

/// Targets of `[text](target)` and `[name]: target`, outside code.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in prose(text) {
        let mut code = false;
        let mut rest = line;
        while let Some(at) = rest.find(['`', ']']) {
            let tail = &rest[at + 1..];
            if rest.as_bytes()[at] == b'`' {
                code = !code;
            } else if !code {
                let target = tail
                    .strip_prefix('(')
                    .and_then(|t| t.split_once(')'))
                    .map(|t| t.0);
                let reference = tail.strip_prefix(": ").filter(|_| rest.starts_with('['));
                found.extend(target.or(reference).map(|t| first_word(t).to_owned()));
            }
            rest = tail;
        }
    }
    found
}

fn first_word(target: &str) -> &str {
    target.split_whitespace().next().unwrap_or("")
}

/// The lines that are not inside a fenced block.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    })
}

/// Anchors that headings get: lower case, blanks to hyphens, punctuation dropped.
fn headings(text: &str) -> impl Iterator<Item = String> {
    prose(text)
        .filter(|line| line.starts_with('#'))
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title
                .chars()
                .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_links_outside_code() {
        let text =
            "see [a](b.md#c) and `[no](x)` or [d](e \"title\")\n```\n[f](g)\n```\n[h]: i.md\n";
        assert_eq!(links(text), ["b.md#c", "e", "i.md"]);
    }

    #[test]
    fn makes_the_anchor_that_a_heading_gets() {
        let anchors: Vec<_> = headings("# What is `conns`?\n## Two words\n").collect();
        assert_eq!(anchors, ["what-is-conns", "two-words"]);
    }

    #[test]
    fn a_missing_file_and_a_missing_heading_are_told() {
        let here = Path::new("xtask/Cargo.toml");
        assert!(check(here, "nowhere.md").unwrap().contains("file"));
        assert!(
            check(here, "src/main.rs#nothing")
                .unwrap()
                .contains("heading")
        );
        assert_eq!(check(here, "src/main.rs"), None);
    }
}
