//! One check over one connection: TCP, HTTP/1.1, or gRPC over HTTP/2. No task outlives the future.

mod grpc;
mod http1;

use std::{net::SocketAddr, pin::Pin};

use hyper::rt::Write as _;

use tokio::time::{Instant, timeout_at};

use super::{Dial, Failed, Key, Wire};
use crate::model::{HealthCheck, HealthProbe};

/// Checks one endpoint within the timeout of the check.
pub(crate) async fn check(dial: &dyn Dial, key: &Key, check: &HealthCheck) -> Result<(), Failed> {
    let deadline = Instant::now() + check.timeout;
    let target = SocketAddr::new(key.endpoint.ip(), check.port.unwrap_or(key.endpoint.port()));
    let wire = timeout_at(
        deadline,
        dial.dial(&key.service.namespace, target, deadline),
    )
    .await
    .unwrap_or_else(|_| Err(late("no connection", check)))?;
    let probing = async {
        match &check.probe {
            HealthProbe::Tcp => {
                close(wire).await;
                Ok(())
            }
            HealthProbe::Http {
                path,
                host,
                expected,
            } => {
                let host = host
                    .as_deref()
                    .map_or_else(|| target.to_string(), str::to_owned);
                http1::get(wire, path, &host, expected).await
            }
            HealthProbe::Grpc { service } => {
                grpc::check(wire, &target.to_string(), service, check.timeout).await
            }
        }
    };
    match timeout_at(deadline, probing).await {
        Ok(result) => result,
        // That the connection was there is all that was asked for.
        Err(_) if check.probe == HealthProbe::Tcp => Ok(()),
        Err(_) => Err(late("no answer", check)),
    }
}

fn late(what: &str, check: &HealthCheck) -> Failed {
    Failed::Endpoint(format!("{what} within {:?}", check.timeout))
}

fn endpoint(error: impl std::fmt::Display) -> Failed {
    Failed::Endpoint(error.to_string())
}

/// Ends a connection in order, so that the server's log does not fill with resets.
async fn close(mut wire: Box<dyn Wire>) {
    // How it ends says nothing about the check.
    let _ = std::future::poll_fn(|cx| Pin::new(&mut wire).poll_shutdown(cx)).await;
}
