//! A GET over HTTP/1.1.

use bytes::Bytes;
use http::{Request, Version, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;

use super::{super::Wire, Failed, endpoint};

/// Of the body nobody wants more than this; it is read so that the server can send it and close.
const MAX_BODY: usize = 64 * 1024;

pub(super) const USER_AGENT: &str = concat!("mesh-agent/", env!("CARGO_PKG_VERSION"), " (health)");

/// Succeeds when the status is one of `expected`, ranges with both ends in them.
pub(super) async fn get(
    wire: Box<dyn Wire>,
    path: &str,
    host: &str,
    expected: &[(u16, u16)],
) -> Result<(), Failed> {
    let request = Request::get(path)
        .version(Version::HTTP_11)
        .header(header::HOST, host)
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(endpoint)?;
    let (mut sender, connection) = http1::handshake(wire).await.map_err(endpoint)?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(endpoint)?;
        let status = response.status().as_u16();
        let good = expected
            .iter()
            .any(|(from, to)| (*from..=*to).contains(&status));
        drain(response.into_body()).await;
        drop(sender);
        match good {
            true => Ok(()),
            false => Err(Failed::Endpoint(format!("status {status}"))),
        }
    };
    // The connection moves the bytes; its end is of interest only when there is no answer.
    let (result, _) = tokio::join!(exchange, connection);
    result
}

async fn drain(mut body: hyper::body::Incoming) {
    let mut read = 0;
    while let Some(Ok(frame)) = body.frame().await {
        read += frame.data_ref().map_or(0, Bytes::len);
        if read > MAX_BODY {
            return;
        }
    }
}
