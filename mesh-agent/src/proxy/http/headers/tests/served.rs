//! A server as the agent runs it, whose answers say how a request was read.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use ::http::{Request, Response, StatusCode, Version, header::HOST};
use http_body_util::BodyExt;
use hyper::{
    body::Incoming,
    rt::{Read, ReadBuf, ReadBufCursor, Write},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
    time::timeout,
};

use crate::proxy::http::{
    HttpVersion,
    body::{Body, Cut},
    headers::{BAD_CHUNK, Doubts, Heads, canonical, refuse, strip_hop_by_hop},
    server::{Handler, ServerSettings, serve},
};

struct Reader {
    doubts: Arc<Doubts>,
}

impl Handler for Reader {
    async fn call(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let (mut parts, body) = request.into_parts();
        let checked = match parts.version {
            Version::HTTP_2 => Ok(()),
            _ => self.doubts.next(),
        };
        let checked = checked.and_then(|()| refuse(&parts).map_err(|refusal| refusal.detail()));
        if let Err(why) = checked {
            return refused(why);
        }
        canonical(&mut parts);
        strip_hop_by_hop(&mut parts.headers);
        let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
        let host = host.unwrap_or("-").to_owned();
        let body = match body.collect().await {
            Ok(body) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
            Err(error) if Cut::of(&error) == Cut::Protocol => return refused(BAD_CHUNK),
            Err(_) => "cut".to_owned(),
        };
        let text = format!("200 {} {} {host} [{body}]\n", parts.method, parts.uri);
        Response::new(Body::fixed(text))
    }
}

fn refused(why: &str) -> Response<Body> {
    let mut response = Response::new(Body::fixed(format!("400 {why}")));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response
}

/// Sends the bytes, in pieces of the given size, and returns all that comes back.
pub(super) async fn exchange(version: HttpVersion, bytes: &[u8], piece: usize) -> Vec<u8> {
    let (mut client, server) = tokio::io::duplex(1 << 20);
    let doubts = Arc::new(Doubts::default());
    let io = Fed {
        io: TokioIo::new(server),
        heads: Heads::new(Arc::clone(&doubts)),
    };
    let (_drain, draining) = watch::channel(false);
    let settings = ServerSettings::default();
    let server = serve(
        io,
        version,
        &settings,
        draining,
        Arc::new(Reader { doubts }),
    );
    let client = async {
        for piece in bytes.chunks(piece) {
            // A server that has refused reads no more.
            if client.write_all(piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let mut answer = Vec::new();
        // A client that ends its stream takes its requests back, so first it hears what there is; neither version's
        // server closes after an answer.
        let mut patience = Duration::from_millis(300);
        while let Ok(Ok(n)) = timeout(patience, client.read_buf(&mut answer)).await
            && n > 0
        {
            patience = Duration::from_millis(50);
        }
        if version == HttpVersion::Http1 {
            let _ = client.shutdown().await;
            let _ = timeout(patience, client.read_to_end(&mut answer)).await;
        }
        drop(client);
        answer
    };
    let (answer, _) = timeout(Duration::from_secs(10), async {
        tokio::join!(client, server)
    })
    .await
    .expect("the exchange hangs");
    answer
}

/// Tells [`Heads`] what is read, as `Io` does.
struct Fed {
    io: TokioIo<tokio::io::DuplexStream>,
    heads: Heads,
}

impl Read for Fed {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut bytes = vec![0; into.remaining().min(512)];
        let mut buf = ReadBuf::new(&mut bytes);
        ready!(Pin::new(&mut this.io).poll_read(cx, buf.unfilled()))?;
        this.heads.feed(buf.filled());
        into.put_slice(buf.filled());
        Poll::Ready(Ok(()))
    }
}

impl Write for Fed {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
