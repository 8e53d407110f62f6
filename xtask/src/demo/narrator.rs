//! What the reader sees: numbered steps, what each shows and why, the commands and what they print.

use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::interrupt;

/// Tells the story and counts the steps that held.
#[derive(Default)]
pub(super) struct Narrator {
    begun: usize,
    passed: usize,
}

impl Narrator {
    /// Begins a step; the one before it has held.
    pub(super) fn step(&mut self, title: &str, why: &str) -> Result<()> {
        interrupt::check()?;
        self.passed = self.begun;
        self.begun += 1;
        println!("\n━━ {}. {title}", self.begun);
        for line in wrap(why, 100) {
            println!("   {line}");
        }
        Ok(())
    }

    /// The last step ends with the clean-up itself.
    pub(super) fn passed_last(&mut self, left: &[String]) -> Result<()> {
        if !left.is_empty() {
            bail!("left behind: {}", left.join(", "));
        }
        self.passed = self.begun;
        Ok(())
    }

    /// Steps that held.
    pub(super) fn passed(&self) -> usize {
        self.passed
    }

    pub(super) fn current(&self) -> usize {
        self.begun
    }

    /// All steps so far held, the present one included.
    pub(super) fn done(&mut self) {
        self.passed = self.begun;
    }

    /// Something found to be true.
    pub(super) fn ok(&self, what: impl AsRef<str>) {
        println!("   ✓ {}", what.as_ref());
    }

    /// A remark between.
    pub(super) fn say(&self, what: impl AsRef<str>) {
        for line in wrap(what.as_ref(), 100) {
            println!("   {line}");
        }
    }

    /// Shows a command and what it prints, and gives the output. Fails when the command fails.
    pub(super) fn show(&self, shown: &str, command: &mut Command) -> Result<String> {
        self.show_head(shown, command, usize::MAX)
    }

    /// As [`show`](Self::show), but prints only the first lines.
    pub(super) fn show_head(
        &self,
        shown: &str,
        command: &mut Command,
        lines: usize,
    ) -> Result<String> {
        println!("   $ {shown}");
        let output = command.stdin(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        self.print(&said, lines);
        if !output.status.success() {
            bail!(
                "`{shown}`: {}\n{}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(said)
    }

    /// Prints the first lines of a text, set in.
    pub(super) fn print(&self, text: &str, lines: usize) {
        for line in text.lines().take(lines) {
            println!("     {}", line.trim_end());
        }
        let rest = text.lines().count().saturating_sub(lines);
        if rest > 0 {
            println!("     ... {rest} more lines");
        }
    }
}

/// Breaks a text into lines of at most `width` characters.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.len() - 1;
        if !lines[last].is_empty() && lines[last].chars().count() + 1 + word.chars().count() > width
        {
            lines.push(word.to_owned());
            continue;
        }
        if !lines[last].is_empty() {
            lines[last].push(' ');
        }
        lines[last].push_str(word);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_between_words() {
        assert_eq!(wrap("one two  three", 7), ["one two", "three"]);
        assert_eq!(wrap("", 7), [""]);
    }

    #[test]
    fn a_step_passes_when_the_next_begins() {
        let mut narrator = Narrator::default();
        narrator.step("a", "").unwrap();
        assert_eq!(narrator.passed(), 0);
        narrator.step("b", "").unwrap();
        assert_eq!((narrator.passed(), narrator.current()), (1, 2));
        assert!(narrator.passed_last(&["x".into()]).is_err());
        assert_eq!(narrator.passed(), 1);
    }
}
