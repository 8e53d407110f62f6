//! Servers on loopback, and connections to them as the proxy would make them.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::Instant,
};
use tonic::{
    Request, Response, Status,
    server::{Grpc, NamedService, UnaryService},
};
use tonic_prost::ProstCodec;

use crate::health::{Dial, Failed, Wire};

/// Dials loopback; an address that is not known to it as it stands.
#[derive(Default)]
pub(super) struct Loopback {
    pub(super) addresses: Mutex<HashMap<SocketAddr, SocketAddr>>,
    pub(super) dialled: Mutex<Vec<(String, SocketAddr)>>,
    /// There is nobody in whose name it could dial.
    pub(super) nobody: bool,
}

impl Dial for Loopback {
    fn dial<'a>(
        &'a self,
        namespace: &'a str,
        endpoint: SocketAddr,
        _deadline: Instant,
    ) -> BoxFuture<'a, Result<Box<dyn Wire>, Failed>> {
        Box::pin(async move {
            self.dialled
                .lock()
                .unwrap()
                .push((namespace.to_owned(), endpoint));
            if self.nobody {
                return Err(Failed::Unknown("no workload of this node".into()));
            }
            let known = self.addresses.lock().unwrap().get(&endpoint).copied();
            match TcpStream::connect(known.unwrap_or(endpoint)).await {
                Ok(stream) => Ok(Box::new(TokioIo::new(stream)) as Box<dyn Wire>),
                Err(error) => Err(Failed::Endpoint(error.to_string())),
            }
        })
    }
}

/// An address on which nobody listens.
pub(super) async fn closed() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

/// How a peer's connection ended.
pub(super) type Ended = io::Result<usize>;

/// Accepts and reads to the end, which it tells.
pub(super) async fn silent() -> (SocketAddr, mpsc::UnboundedReceiver<Ended>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (ends, ended) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let ends = ends.clone();
            tokio::spawn(async move {
                let mut read = Vec::new();
                let _ = ends.send(stream.read_to_end(&mut read).await);
            });
        }
    });
    (address, ended)
}

/// What an HTTP server says next; shared with the test that changes it.
pub(super) type Says = Arc<Mutex<String>>;

/// Reads the head of a request, answers with what it is to say, and closes. Tells what it read.
pub(super) async fn http(says: &str) -> (SocketAddr, Says, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let says: Says = Arc::new(Mutex::new(says.to_owned()));
    let answer = Arc::clone(&says);
    let (heads, head) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (answer, heads) = (Arc::clone(&answer), heads.clone());
            tokio::spawn(async move {
                let mut read = Vec::new();
                let mut byte = [0];
                while !read.ends_with(b"\r\n\r\n")
                    && stream.read(&mut byte).await.is_ok_and(|n| n > 0)
                {
                    read.push(byte[0]);
                }
                let _ = heads.send(String::from_utf8(read).unwrap());
                let answer = answer.lock().unwrap().clone();
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    (address, says, head)
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct CheckRequest {
    #[prost(string, tag = "1")]
    pub(super) service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct CheckResponse {
    #[prost(int32, tag = "1")]
    pub(super) status: i32,
}

/// `grpc.health.v1.Health` on tonic: the status of each service.
#[derive(Clone)]
struct Health(HashMap<String, i32>);

impl NamedService for Health {
    const NAME: &'static str = "grpc.health.v1.Health";
}

impl UnaryService<CheckRequest> for Health {
    type Response = CheckResponse;
    type Future = BoxFuture<'static, Result<Response<CheckResponse>, Status>>;

    fn call(&mut self, request: Request<CheckRequest>) -> Self::Future {
        let status = self.0.get(&request.into_inner().service).copied();
        Box::pin(async move {
            match status {
                // A server that never answers.
                Some(-1) => {
                    tokio::time::sleep(Duration::from_secs(3600)).await;
                    Err(Status::unknown(""))
                }
                Some(status) => Ok(Response::new(CheckResponse { status })),
                None => Err(Status::not_found("unknown service")),
            }
        })
    }
}

impl tonic::codegen::Service<http::Request<tonic::body::Body>> for Health {
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            let mut grpc = Grpc::new(ProstCodec::default());
            Ok(grpc.unary(service, request).await)
        })
    }
}

pub(super) async fn grpc(statuses: &[(&str, i32)]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let health = Health(
        statuses
            .iter()
            .map(|(s, n)| ((*s).to_owned(), *n))
            .collect(),
    );
    tokio::spawn(async move {
        let incoming = futures::stream::unfold(listener, |listener| async move {
            let accepted = listener.accept().await.map(|(stream, _)| stream);
            Some((accepted, listener))
        });
        tonic::transport::Server::builder()
            .add_service(health)
            .serve_with_incoming(incoming)
            .await
            .unwrap();
    });
    address
}
