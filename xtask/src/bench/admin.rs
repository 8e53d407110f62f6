//! The agent's admin socket, as far as the bench asks it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

/// The state of every workload that the agent knows.
pub(super) fn workload_states(node: &str) -> Result<Vec<String>> {
    let state = |w: &Value| w["state"].as_str().unwrap_or_default().to_owned();
    Ok(list(node, "workloads")?.iter().map(state).collect())
}

/// How many services the agent knows.
pub(super) fn services(node: &str) -> Result<usize> {
    Ok(list(node, "services")?.len())
}

/// How many matches of rules are bound to services.
pub(super) fn bound_matches(node: &str) -> Result<usize> {
    // The first of two lists.
    Ok(list(node, "routes")?.len())
}

fn list(node: &str, what: &str) -> Result<Vec<Value>> {
    let path = format!("/run/mesh-agent/{node}.sock");
    let mut stream = UnixStream::connect(&path).with_context(|| path.clone())?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let request = format!("GET /v1/{what} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").context("not HTTP")?;
    let value: Value = serde_json::from_str(body).context("not JSON")?;
    let inner = value
        .as_object()
        .and_then(|o| o.values().find_map(Value::as_array));
    let list = value.as_array().or(inner).context("not a list")?;
    Ok(list.clone())
}
