//! The command line's side of the admin socket.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode, body::Bytes};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use super::api::ErrorBody;

/// For an answer. A release waits for the pods, so it may take longer than all others.
const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("there is no agent at {path}")]
    Missing { path: PathBuf },
    #[error("nobody answers at {path}; the agent that made it is gone")]
    Refused { path: PathBuf },
    #[error("{path} may be opened by root only")]
    Forbidden { path: PathBuf },
    #[error("the agent at {path} did not answer within {} s", DEADLINE.as_secs())]
    Timeout { path: PathBuf },
    #[error("talking to the agent at {path} failed: {detail}")]
    Protocol { path: PathBuf, detail: String },
    #[error("{message}")]
    Answer { status: StatusCode, message: String },
}

/// Talks to one agent; each call is a connection.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::GET, path, None::<&()>).await
    }

    pub async fn post<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::POST, path, None::<&()>).await
    }

    pub async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.call(Method::PUT, path, Some(body)).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let body = match body {
            Some(body) => serde_json::to_vec(body).map_err(|e| self.protocol(&e))?,
            None => Vec::new(),
        };
        let (status, bytes) = tokio::time::timeout(DEADLINE, self.exchange(method, path, body))
            .await
            .map_err(|_| ClientError::Timeout {
                path: self.path.clone(),
            })??;
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|e| self.protocol(&e));
        }
        let message = serde_json::from_slice::<ErrorBody>(&bytes).map_or_else(
            |_| format!("the agent answered {status}"),
            |body| body.error,
        );
        Err(ClientError::Answer { status, message })
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let stream = UnixStream::connect(&self.path)
            .await
            .map_err(|e| self.connect_error(&e))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| self.protocol(&e))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(hyper::header::HOST, "mesh-agent")
            .header(hyper::header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| self.protocol(&e))?;
        let exchange = async {
            let answer = sender.send_request(request).await?;
            let status = answer.status();
            Ok::<_, hyper::Error>((status, answer.into_body().collect().await?.to_bytes()))
        };
        // The connection is driven here rather than by a task, so that nothing outlives the call.
        let mut exchange = std::pin::pin!(exchange);
        let mut connection = std::pin::pin!(connection);
        let mut ended = false;
        loop {
            tokio::select! {
                biased;
                done = &mut exchange => return done.map_err(|e| self.protocol(&e)),
                _ = &mut connection, if !ended => ended = true,
            }
        }
    }

    fn connect_error(&self, error: &io::Error) -> ClientError {
        let path = self.path.clone();
        match error.kind() {
            io::ErrorKind::NotFound => ClientError::Missing { path },
            io::ErrorKind::ConnectionRefused => ClientError::Refused { path },
            io::ErrorKind::PermissionDenied => ClientError::Forbidden { path },
            _ => self.protocol(error),
        }
    }

    fn protocol(&self, error: &dyn std::error::Error) -> ClientError {
        ClientError::Protocol {
            path: self.path.clone(),
            detail: error.to_string(),
        }
    }
}
