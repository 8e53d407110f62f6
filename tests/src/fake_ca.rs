//! A certificate authority that does not do its work: it answers late, not at all, or with what was not asked for. It
//! speaks Istio's gRPC service as far as that takes, over h2, without the agent's code.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, Response};
use tokio_rustls::TlsAcceptor;

use crate::{
    hbone,
    node::Node,
    pki::{Authority, Leaf},
    run,
    traffic::server,
};

const PORT: u16 = 15013;

/// What it does with every request.
#[derive(Clone, Debug)]
pub enum Does {
    /// Never answers.
    Nothing,
    /// A gRPC status.
    Status(u32, &'static str),
    /// A chain (PEM), whatever the request says.
    Chain(Vec<String>),
    /// A message that is none.
    Garbage,
    /// HTTP, but no gRPC.
    NotGrpc,
}

#[derive(Debug)]
pub struct FakeCa {
    pub address: SocketAddr,
    authority: Authority,
    does: Arc<Mutex<Does>>,
    asked: Arc<AtomicU64>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    files: PathBuf,
}

impl FakeCa {
    pub fn start(node: &Node, does: Does) -> FakeCa {
        let address = SocketAddr::new(node.address(), PORT);
        let authority = Authority::root("an authority that lies");
        let leaf = Leaf::of("spiffe://cluster.local/ns/ca/sa/ca").at(address.ip());
        let config = authority.leaf(&leaf).plain_server();
        let listener = server::listen(node, address, false).expect("listen");
        listener.set_nonblocking(true).expect("O_NONBLOCK");
        let files = run::folder().join(run::unique());
        fs::create_dir_all(&files).expect("make a folder");
        fs::write(files.join("root.pem"), authority.root_pem()).expect("write");
        fs::write(files.join("token"), "a.b.c\n").expect("write");
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let does = Arc::new(Mutex::new(does));
        let asked = Arc::new(AtomicU64::new(0));
        let thread = {
            let (does, asked) = (Arc::clone(&does), Arc::clone(&asked));
            std::thread::spawn(move || {
                hbone::run(async {
                    let listener = tokio::net::TcpListener::from_std(listener).expect("tokio");
                    let acceptor = TlsAcceptor::from(Arc::new(config));
                    tokio::select! {
                        () = accept(listener, acceptor, does, asked) => {}
                        _ = stopped => {}
                    }
                });
            })
        };
        FakeCa {
            address,
            authority,
            does,
            asked,
            stop: Some(stop),
            thread: Some(thread),
            files,
        }
    }

    /// From now on it does this.
    pub fn now(&self, does: Does) {
        *self.does.lock().unwrap_or_else(PoisonError::into_inner) = does;
    }

    /// How many requests came.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// What an agent is told of it.
    pub fn agent_args(&self) -> Vec<String> {
        let file = |name: &str| self.files.join(name).display().to_string();
        vec![
            "--ca".into(),
            format!("https://{}", self.address),
            "--ca-token-file".into(),
            file("token"),
            "--ca-root-file".into(),
            file("root.pem"),
        ]
    }
}

impl Drop for FakeCa {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(
    listener: tokio::net::TcpListener,
    acceptor: TlsAcceptor,
    does: Arc<Mutex<Does>>,
    asked: Arc<AtomicU64>,
) {
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, does, asked) = (acceptor.clone(), Arc::clone(&does), Arc::clone(&asked));
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else {
                return;
            };
            let Ok(mut connection) = h2::server::handshake(stream).await else {
                return;
            };
            // Requests that are never answered are kept, or they would be reset.
            let mut kept = Vec::new();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                asked.fetch_add(1, Ordering::Relaxed);
                let does = does.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let _ = answer(&mut respond, &does);
                kept.push((request, respond));
            }
        });
    }
}

fn answer(respond: &mut SendResponse<Bytes>, does: &Does) -> Result<(), h2::Error> {
    let head = |kind: &str| {
        Response::builder()
            .header("content-type", kind)
            .body(())
            .expect("a response")
    };
    let trailers = |status: u32, message: &str| {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", status.into());
        trailers.insert("grpc-message", message.parse().expect("a header"));
        trailers
    };
    let message = match does {
        Does::Nothing => return Ok(()),
        Does::NotGrpc => {
            let mut body = respond.send_response(head("text/html"), false)?;
            return body.send_data(Bytes::from_static(b"<h1>It works!</h1>"), true);
        }
        Does::Status(status, message) => {
            let mut body = respond.send_response(head("application/grpc"), false)?;
            return body.send_trailers(trailers(*status, message));
        }
        Does::Garbage => vec![0xff; 40],
        Does::Chain(chain) => chain
            .iter()
            .flat_map(|cert| {
                // Field 1, length-delimited (protobuf).
                let mut out = vec![0x0a];
                let mut len = cert.len();
                while len >= 0x80 {
                    out.push(len as u8 | 0x80);
                    len >>= 7;
                }
                out.push(len as u8);
                out.extend_from_slice(cert.as_bytes());
                out
            })
            .collect(),
    };
    let mut framed = vec![0];
    framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
    framed.extend(message);
    let mut body = respond.send_response(head("application/grpc"), false)?;
    body.send_data(framed.into(), false)?;
    body.send_trailers(trailers(0, ""))
}
