//! Figures: gathered by run, written as JSON, printed as a table beside the peers.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;

use anyhow::Result;
use serde_json::json;

/// What the table shows: a column a subject, and one for the mesh against each of the others named.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Columns {
    pub(super) subjects: &'static [&'static str],
    pub(super) against: &'static [&'static str],
}

/// The runs of one figure.
#[derive(Debug)]
struct Figure {
    work: String,
    subject: &'static str,
    metric: &'static str,
    unit: &'static str,
    runs: Vec<f64>,
}

#[derive(Debug, Default)]
pub(super) struct Figures {
    all: Vec<Figure>,
    columns: Columns,
}

impl Figures {
    pub(super) fn show(&mut self, columns: Columns) {
        self.columns = columns;
    }

    pub(super) fn add(
        &mut self,
        work: &str,
        subject: &'static str,
        metric: &'static str,
        unit: &'static str,
        value: f64,
    ) {
        let same = |f: &&mut Figure| f.work == work && f.subject == subject && f.metric == metric;
        match self.all.iter_mut().find(same) {
            Some(figure) => figure.runs.push(value),
            None => self.all.push(Figure {
                work: work.to_owned(),
                subject,
                metric,
                unit,
                runs: vec![value],
            }),
        }
    }

    fn find(&self, work: &str, metric: &str, subject: &str) -> Option<&Figure> {
        let is = |f: &&Figure| f.work == work && f.metric == metric && f.subject == subject;
        self.all.iter().find(is)
    }

    /// One JSON object a line.
    pub(super) fn write(&self, bench: &str, file: &mut File) -> Result<()> {
        let mut text = String::new();
        for f in &self.all {
            let (min, median, max) = spread(&f.runs);
            let line = json!({
                "bench": bench, "work": f.work, "subject": f.subject, "metric": f.metric, "unit": f.unit,
                "runs": f.runs.len(), "min": min, "median": median, "max": max,
            });
            let _ = writeln!(text, "{line}");
        }
        file.write_all(text.as_bytes())?;
        Ok(())
    }

    /// A Markdown table: medians, and how the mesh stands to each peer in the pairs of runs.
    pub(super) fn table(&self) -> String {
        let mut rows = vec![];
        let mut head = vec!["work".to_owned(), "metric".to_owned()];
        let Columns { subjects, against } = self.columns;
        head.extend(subjects.iter().map(|&s| s.to_owned()));
        head.extend(against.iter().map(|p| format!("mesh : {p}")));
        rows.push(head);
        let mut done: Vec<(&str, &str)> = Vec::new();
        for figure in &self.all {
            if !subjects.contains(&figure.subject) {
                continue;
            }
            let key = (figure.work.as_str(), figure.metric);
            if done.contains(&key) {
                continue;
            }
            done.push(key);
            let mut row = vec![
                figure.work.clone(),
                format!("{} ({})", figure.metric, figure.unit),
            ];
            for subject in subjects {
                let cell = self.find(&figure.work, figure.metric, subject);
                row.push(cell.map_or("-".to_owned(), |f| number(spread(&f.runs).1)));
            }
            for peer in against {
                row.push(self.ratio(&figure.work, figure.metric, peer));
            }
            rows.push(row);
        }
        markdown(&rows)
    }

    /// Median, minimum and maximum of mesh / peer, run by run.
    fn ratio(&self, work: &str, metric: &str, peer: &str) -> String {
        let (Some(mesh), Some(peer)) = (
            self.find(work, metric, "mesh"),
            self.find(work, metric, peer),
        ) else {
            return "-".to_owned();
        };
        let pairs = mesh.runs.iter().zip(&peer.runs);
        let ratios: Vec<f64> = pairs
            .filter(|(_, p)| **p != 0.0)
            .map(|(m, p)| m / p)
            .collect();
        if ratios.is_empty() {
            return "-".to_owned();
        }
        let (min, median, max) = spread(&ratios);
        format!("{median:.2} ({min:.2}..{max:.2})")
    }
}

/// Minimum, median, maximum.
fn spread(runs: &[f64]) -> (f64, f64, f64) {
    let mut sorted = runs.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |i: usize| sorted.get(i).copied().unwrap_or(0.0);
    let middle = sorted.len() / 2;
    let median = if sorted.len() % 2 == 1 {
        at(middle)
    } else {
        (at(middle.saturating_sub(1)) + at(middle)) / 2.0
    };
    (at(0), median, at(sorted.len().saturating_sub(1)))
}

/// Three significant digits or so.
fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 1_000.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

fn markdown(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(String::len).max();
    let widths: Vec<usize> = (0..columns).map(|c| width(c).unwrap_or(0)).collect();
    let mut text = String::new();
    for (at, row) in rows.iter().enumerate() {
        let cells = row.iter().zip(&widths).enumerate().map(|(c, (cell, &w))| {
            if c < 2 {
                format!("{cell:<w$}")
            } else {
                format!("{cell:>w$}")
            }
        });
        let _ = writeln!(text, "| {} |", cells.collect::<Vec<_>>().join(" | "));
        if at == 0 {
            let rules = widths.iter().enumerate().map(|(c, &w)| {
                if c < 2 {
                    "-".repeat(w)
                } else {
                    format!("{}:", "-".repeat(w.saturating_sub(1)))
                }
            });
            let _ = writeln!(text, "| {} |", rules.collect::<Vec<_>>().join(" | "));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_and_ratio() {
        assert_eq!(spread(&[3.0, 1.0, 2.0]), (1.0, 2.0, 3.0));
        assert_eq!(spread(&[4.0, 1.0]), (1.0, 2.5, 4.0));
        let mut figures = Figures::default();
        figures.show(Columns {
            subjects: &["mesh", "envoy"],
            against: &["envoy"],
        });
        for (mesh, envoy) in [(2.0, 1.0), (9.0, 3.0)] {
            figures.add("ping-64", "mesh", "rate", "1/s", mesh);
            figures.add("ping-64", "envoy", "rate", "1/s", envoy);
        }
        assert_eq!(
            figures.ratio("ping-64", "rate", "envoy"),
            "2.50 (2.00..3.00)"
        );
        assert_eq!(figures.ratio("ping-64", "rate", "haproxy"), "-");
        figures.add("cipher", "openssl", "rate", "1/s", 1.0);
        assert!(!figures.table().contains("cipher"));
        assert!(figures.table().contains("| ping-64 | rate (1/s) |"));
    }
}
