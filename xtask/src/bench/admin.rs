//! The agent's admin socket, as far as the bench asks it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

/// The state of every workload that the agent knows.
pub(super) fn workload_states(node: &str) -> Result<Vec<String>> {
    let path = format!("/run/mesh-agent/{node}.sock");
    let mut stream = UnixStream::connect(&path).with_context(|| path.clone())?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET /v1/workloads HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").context("not HTTP")?;
    let value: Value = serde_json::from_str(body).with_context(|| body.to_owned())?;
    let inner = value
        .as_object()
        .and_then(|o| o.values().find_map(Value::as_array));
    let list = value.as_array().or(inner).context("not a list")?;
    let state = |w: &Value| w["state"].as_str().unwrap_or_default().to_owned();
    Ok(list.iter().map(state).collect())
}
