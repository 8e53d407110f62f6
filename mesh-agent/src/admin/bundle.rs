//! The support bundle: what the agent knows, with secrets taken out.

use serde::Serialize;
use serde_json::Value;

use super::{
    AdminState,
    api::{BundleFile, SupportBundle},
};

/// Newest closed connections in a bundle.
const CLOSED: usize = 1_000;
/// Words in a key that make its value a secret.
const SECRETS: [&str; 8] = [
    "password",
    "passwd",
    "secret",
    "token",
    "credential",
    "privatekey",
    "apikey",
    "authorization",
];
const REDACTED: &str = "[redacted]";

pub(super) fn collect(state: &AdminState) -> SupportBundle {
    let mut closed = state.telemetry.closed_connections();
    closed.truncate(CLOSED);
    let files = vec![
        json("status.json", &state.status()),
        json("workloads.json", &state.agent.workloads()),
        json("services.json", &state.agent.services()),
        json("certs.json", &state.agent.certificates()),
        json("policies.json", &state.agent.policies()),
        json(
            "routes.json",
            &state.agent.routes(None, None).unwrap_or_default(),
        ),
        json("connections.json", &state.telemetry.open_connections()),
        json("connections-closed.json", &closed),
        json("config.json", &state.agent.config()),
        BundleFile {
            name: "metrics.txt".into(),
            content: state.telemetry.exposition(),
        },
        BundleFile {
            name: "log-filter.txt".into(),
            content: state.log.filter() + "\n",
        },
    ];
    SupportBundle { files }
}

fn json(name: &str, value: &impl Serialize) -> BundleFile {
    let content = serde_json::to_value(value)
        .map(|mut value| {
            redact(&mut value);
            format!("{value:#}\n")
        })
        .unwrap_or_else(|error| format!("could not be written: {error}\n"));
    BundleFile {
        name: name.into(),
        content,
    }
}

/// Replaces every value whose key sounds like a secret, at any depth. Addresses and names stay: without them the
/// bundle explains nothing.
pub fn redact(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                if is_secret(key) {
                    *value = Value::String(REDACTED.into());
                } else {
                    redact(value);
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(redact),
        _ => {}
    }
}

fn is_secret(key: &str) -> bool {
    let key: String = key
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .map(|c| c.to_ascii_lowercase())
        .collect();
    SECRETS.iter().any(|word| key.contains(word))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn secrets_go_at_any_depth_and_the_rest_stays() {
        let mut value = json!({
            "labels": {"example.com/api-key": "k", "app": "web"},
            "list": [{"private_key": ["a"], "name": "n"}],
            "Token": 5,
        });
        super::redact(&mut value);
        assert_eq!(
            value,
            json!({
                "labels": {"example.com/api-key": "[redacted]", "app": "web"},
                "list": [{"private_key": "[redacted]", "name": "n"}],
                "Token": "[redacted]",
            })
        );
    }
}
