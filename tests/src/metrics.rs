//! Reading Prometheus text.

use std::collections::BTreeMap;

/// One sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// What an exporter said: samples, and what it told about each family.
#[derive(Clone, Debug, Default)]
pub struct Scrape {
    pub samples: Vec<Sample>,
    pub types: BTreeMap<String, String>,
    pub helps: BTreeMap<String, String>,
}

impl Scrape {
    /// Parses the text format; panics on a line that is not of it.
    pub fn parse(text: &str) -> Scrape {
        let mut scrape = Scrape::default();
        for line in text.lines().filter(|l| !l.is_empty()) {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("TYPE name kind");
                scrape.types.insert(name.into(), kind.into());
            } else if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').expect("HELP name text");
                scrape.helps.insert(name.into(), help.into());
            } else if !line.starts_with('#') {
                scrape
                    .samples
                    .push(sample(line).unwrap_or_else(|| panic!("not a sample: {line}")));
            }
        }
        scrape
    }

    /// Sum of the samples of `name` that have all these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.matching(name, labels).map(|s| s.value).sum()
    }

    /// Samples of `name` that have all these labels.
    pub fn matching<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |s| {
            s.name == name
                && labels
                    .iter()
                    .all(|(k, v)| s.labels.get(*k).is_some_and(|have| have == v))
        })
    }
}

fn sample(line: &str) -> Option<Sample> {
    let (name, rest) = match line.find('{') {
        Some(at) => (&line[..at], &line[at + 1..]),
        None => {
            let (name, value) = line.split_once(' ')?;
            return Some(Sample {
                name: name.into(),
                labels: BTreeMap::new(),
                value: number(value)?,
            });
        }
    };
    let mut labels = BTreeMap::new();
    let mut rest = rest;
    while !rest.starts_with('}') {
        let (key, after) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next()? {
                (at, '"') => break at,
                (_, '\\') => value.push(match chars.next()?.1 {
                    'n' => '\n',
                    c => c,
                }),
                (_, c) => value.push(c),
            }
        };
        labels.insert(key.trim_start_matches(',').to_owned(), value);
        rest = &after[end + 1..];
    }
    Some(Sample {
        name: name.into(),
        labels,
        value: number(rest[1..].trim())?,
    })
}

fn number(text: &str) -> Option<f64> {
    // A timestamp or an exemplar may follow.
    text.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_labels_with_escapes_and_sums() {
        let scrape = Scrape::parse(
            "# HELP x_total A count.\n# TYPE x_total counter\nx_total{a=\"b\",c=\"d\\\"e\"} 3\nx_total{a=\"z\"} 4\ny 1e3\n# EOF\n",
        );
        assert_eq!(scrape.sum("x_total", &[]), 7.0);
        assert_eq!(scrape.sum("x_total", &[("c", "d\"e")]), 3.0);
        assert_eq!(scrape.sum("y", &[]), 1000.0);
        assert_eq!(scrape.types["x_total"], "counter");
        assert_eq!(scrape.helps["x_total"], "A count.");
    }
}
