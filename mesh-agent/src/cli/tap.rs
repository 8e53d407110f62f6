//! `mesh-agent tap`: requests live, as they end.

use std::{fmt::Write as _, ops::ControlFlow, process::ExitCode, time::Duration};

use clap::Args;

use super::{
    Global,
    failure::Failure,
    output::{self, Format, Screen},
    reach,
    table::{Tint, clean},
    watch::terminated,
};
use crate::{
    admin::{
        LONGEST_TAP, MOST_TAPPED, TapQuery,
        api::{TapLine, TappedRequest},
    },
    api::GepDuration,
    telemetry::{Reason, StatusFilter, TapFilter},
};

#[derive(Debug, Args)]
pub(super) struct Tap {
    /// Workload that asks: NAME or NAMESPACE/NAME
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Service or workload that is asked: NAME or NAMESPACE/NAME
    #[arg(long, visible_alias = "service", value_name = "NAME")]
    destination: Option<String>,
    /// GET, POST ...
    #[arg(long)]
    method: Option<String>,
    /// What the path begins with
    #[arg(long, value_name = "PREFIX")]
    path: Option<String>,
    /// 503, or 5xx for all that begin with 5
    #[arg(long)]
    status: Option<StatusFilter>,
    /// Why it ended
    #[arg(long)]
    reason: Option<Reason>,
    /// Requests after which it ends
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=MOST_TAPPED))]
    limit: u64,
    /// Time after which it ends, such as 30s or 5m; up to 24h
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration)]
    duration: Duration,
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration = text.parse::<GepDuration>().map_err(|e| e.to_string())?.0;
    if duration > LONGEST_TAP || duration.is_zero() {
        return Err("more than 0 and at most 24h".into());
    }
    // Whole seconds, and never none.
    Ok(Duration::from_secs(
        duration.as_millis().div_ceil(1000) as u64
    ))
}

impl Tap {
    fn query(&self, global: &Global) -> TapQuery {
        TapQuery {
            filter: TapFilter {
                namespace: global.namespace.clone(),
                source: self.source.clone(),
                destination: self.destination.clone(),
                method: self.method.clone(),
                path: self.path.clone(),
                status: self.status,
                reason: self.reason,
            },
            limit: self.limit,
            duration: self.duration,
        }
    }

    /// Until the limit, the end of the time, Ctrl-C or SIGTERM.
    pub(super) async fn execute(
        &self,
        global: &Global,
        screen: &Screen,
    ) -> Result<ExitCode, Failure> {
        let client = reach::client(global)?;
        let path = format!("/v1/tap{}", self.query(global).to_query());
        let (mut shown, mut dropped) = (0, 0);
        let each = |line: TapLine| {
            dropped = line.dropped;
            let Some(request) = line.request else {
                return Ok::<_, Failure>(ControlFlow::Break(()));
            };
            let text = printed(&request, global.output, screen, shown == 0)?;
            screen.print(&text)?;
            shown += 1;
            Ok(ControlFlow::Continue(()))
        };
        let ended = tokio::select! {
            ended = client.lines(&path, each) => ended,
            _ = tokio::signal::ctrl_c() => Ok(()),
            () = terminated() => Ok(()),
        };
        if dropped > 0 {
            screen.remark(&format!(
                "{dropped} more matched and are not shown: they came faster than they could be printed"
            ));
        }
        if shown == 0 && ended.is_ok() {
            screen.remark("no requests");
        }
        ended.map(|()| ExitCode::SUCCESS)
    }
}

fn printed(
    request: &TappedRequest,
    format: Format,
    screen: &Screen,
    first: bool,
) -> Result<String, Failure> {
    match format {
        // One document a line: what a program reads.
        Format::Json => serde_json::to_string(request)
            .map(|text| text + "\n")
            .map_err(|e| Failure::new(e.to_string())),
        Format::Yaml => Ok(format!("---\n{}", output::serialize(format, request)?)),
        Format::Table | Format::Wide => {
            let title = if first { HEAD } else { "" };
            Ok(title.to_owned() + &line(request, format == Format::Wide, screen.colour))
        }
    }
}

/// Titles of [`line()`].
pub(super) const HEAD: &str = "TIME          DIR  SOURCE                DESTINATION           STATUS   LATENCY  REASON              REQUEST\n";

/// One request. Columns are as wide as most values; a longer one pushes the rest.
pub(super) fn line(r: &TappedRequest, wide: bool, colour: bool) -> String {
    let source = r.source_workload.as_deref().unwrap_or(&r.source);
    let destination = if r.direction == "inbound" {
        r.destination_workload.as_deref()
    } else {
        r.service.as_deref().or(r.destination_workload.as_deref())
    };
    let (status, good) = status(r);
    let reason_good = r.reason == "completed";
    let paint = |text: String, good: bool| {
        let tint = if good { Tint::Good } else { Tint::Bad };
        tint.paint(&text, colour)
    };
    let reason = format!("{:<18}", r.reason);
    let mut text = format!(
        "{}  {}  {:<20}  {:<20}  {}  {:>8}  {}  {} {}",
        clock(r.time_unix_ms),
        if r.direction == "inbound" {
            "in "
        } else {
            "out"
        },
        clean(source),
        clean(destination.or(r.endpoint.as_deref()).unwrap_or("-")),
        paint(format!("{status:<6}"), good),
        latency(r.duration_ms),
        if reason_good {
            reason
        } else {
            paint(reason, false)
        },
        clean(&r.method),
        clean(&r.path),
    );
    let mut add = |key: &str, value: Option<&str>| {
        if let Some(value) = value {
            // Writing to a String does not fail.
            let _ = write!(text, "  {key}={}", clean(value));
        }
    };
    add("endpoint", r.endpoint.as_deref());
    add("route", r.route.as_deref());
    let attempts = (r.attempts > 1).then(|| r.attempts.to_string());
    add("attempts", attempts.as_deref());
    add("security", Some(&r.security));
    if wide {
        add("authority", r.authority.as_deref());
        add("http", Some(&r.http_version));
        add("to", r.destination_workload.as_deref());
        add("request_bytes", Some(&r.request_bytes.to_string()));
        add("response_bytes", Some(&r.response_bytes.to_string()));
        add("request_id", r.request_id.as_deref());
        add("trace_id", r.trace_id.as_deref());
    }
    text.push('\n');
    text
}

/// Status, or that of gRPC where it says more; and whether it is a good one.
fn status(r: &TappedRequest) -> (String, bool) {
    match (r.grpc_status, r.status) {
        (Some(grpc), _) => (format!("grpc {grpc}"), grpc == 0),
        (None, Some(status)) => (status.to_string(), status < 400),
        (None, None) => ("-".into(), false),
    }
}

/// `12:34:56.789`, UTC as in the log.
fn clock(unix_ms: u64) -> String {
    let (seconds, millis) = (unix_ms / 1000, unix_ms % 1000);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{hour:02}:{minute:02}:{second:02}.{millis:03}")
}

fn latency(millis: f64) -> String {
    if millis < 10_000.0 {
        format!("{millis:.1}ms")
    } else {
        format!("{:.1}s", millis / 1e3)
    }
}
