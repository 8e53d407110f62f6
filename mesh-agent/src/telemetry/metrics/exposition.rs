//! From the OpenMetrics text that prometheus-client writes to Prometheus' text format 0.0.4.
//!
//! Only the older format is served. The two differ in how they name a counter in HELP and TYPE: OpenMetrics leaves out
//! `_total`, so Prometheus then files type and help under a name that no series has, and `promtool check metrics`,
//! which reads the text format, finds counters without either.

/// Content type of the exposition.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) fn to_text_format(open_metrics: &str) -> String {
    let mut out = String::with_capacity(open_metrics.len() + 1024);
    let mut help: Option<(&str, &str)> = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, "untyped"));
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                other => ("", other),
            };
            if let Some((named, text)) = help.take()
                && named == name
            {
                push(&mut out, &["# HELP ", name, suffix, " ", text, "\n"]);
            }
            push(&mut out, &["# TYPE ", name, suffix, " ", kind, "\n"]);
        } else if !line.starts_with('#') {
            push(&mut out, &[line, "\n"]);
        }
    }
    out
}

fn push(out: &mut String, parts: &[&str]) {
    for part in parts {
        out.push_str(part);
    }
}

#[cfg(test)]
mod tests {
    use super::to_text_format;

    #[test]
    fn counters_get_their_suffix_and_open_metrics_comments_go() {
        let open = "# HELP a_bytes Help.\n# TYPE a_bytes counter\n# UNIT a_bytes bytes\na_bytes_total{x=\"1\"} 2\n\
                    # HELP b State.\n# TYPE b gauge\nb 1\n# TYPE c unknown\nc 3\n# EOF\n";
        assert_eq!(
            to_text_format(open),
            "# HELP a_bytes_total Help.\n# TYPE a_bytes_total counter\na_bytes_total{x=\"1\"} 2\n\
             # HELP b State.\n# TYPE b gauge\nb 1\n# TYPE c untyped\nc 3\n"
        );
    }
}
