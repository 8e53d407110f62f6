//! The command line's side of the admin socket.

use std::{
    future::Future,
    io,
    ops::ControlFlow,
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
        Err(refusal(status, &bytes))
    }

    /// Calls `each` with every line of an answer that has no end of its own, until it has one, or until `each` says so.
    pub async fn lines<T: DeserializeOwned, E: From<ClientError>>(
        &self,
        path: &str,
        mut each: impl FnMut(T) -> Result<ControlFlow<()>, E>,
    ) -> Result<(), E> {
        let stream = UnixStream::connect(&self.path)
            .await
            .map_err(|e| self.connect_error(&e))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| self.protocol(&e))?;
        let request = self.request(Method::GET, path, Vec::new())?;
        let reading = async {
            let answer = sender
                .send_request(request)
                .await
                .map_err(|e| self.protocol(&e))?;
            let status = answer.status();
            let mut body = answer.into_body();
            if !status.is_success() {
                let bytes = body.collect().await.map_err(|e| self.protocol(&e))?;
                return Err(refusal(status, &bytes.to_bytes()).into());
            }
            let mut waiting = Vec::new();
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|e| self.protocol(&e))?;
                waiting.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new()));
                while let Some(end) = waiting.iter().position(|b| *b == b'\n') {
                    let line: Vec<u8> = waiting.drain(..=end).collect();
                    let line = serde_json::from_slice(&line).map_err(|e| self.protocol(&e))?;
                    if each(line)?.is_break() {
                        return Ok(());
                    }
                }
            }
            Ok(())
        };
        driven(reading, connection).await
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
        let request = self.request(method, path, body)?;
        let exchange = async {
            let answer = sender.send_request(request).await?;
            let status = answer.status();
            Ok::<_, hyper::Error>((status, answer.into_body().collect().await?.to_bytes()))
        };
        driven(exchange, connection)
            .await
            .map_err(|e| self.protocol(&e))
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<Request<Full<Bytes>>, ClientError> {
        Request::builder()
            .method(method)
            .uri(path)
            .header(hyper::header::HOST, "mesh-agent")
            .header(hyper::header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| self.protocol(&e))
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

/// What an answer that is not 2xx says.
fn refusal(status: StatusCode, bytes: &[u8]) -> ClientError {
    let message = serde_json::from_slice::<ErrorBody>(bytes).map_or_else(
        |_| format!("the agent answered {status}"),
        |body| body.error,
    );
    ClientError::Answer { status, message }
}

/// Drives the connection here rather than by a task, so that nothing outlives the call.
async fn driven<T>(exchange: impl Future<Output = T>, connection: impl Future) -> T {
    let mut exchange = std::pin::pin!(exchange);
    let mut connection = std::pin::pin!(connection);
    let mut ended = false;
    loop {
        tokio::select! {
            biased;
            done = &mut exchange => return done,
            _ = &mut connection, if !ended => ended = true,
        }
    }
}
