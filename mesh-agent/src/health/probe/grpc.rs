//! `grpc.health.v1.Health/Check` (https://github.com/grpc/grpc/blob/master/doc/health-checking.md) over HTTP/2 in plain
//! text.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Method, Request, StatusCode, Uri, Version, header};
use hyper_util::rt::TokioIo;
use prost::Message;

use super::{super::Wire, Failed, endpoint, http1::USER_AGENT};

/// An answer has a byte or two; more is none.
const MAX_ANSWER: usize = 4096;
/// Flag and length before a message.
const PREFIX: usize = 5;

#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Succeeds when the server says that the service is SERVING.
pub(super) async fn check(
    wire: Box<dyn Wire>,
    authority: &str,
    service: &str,
    timeout: Duration,
) -> Result<(), Failed> {
    let request = request(authority, timeout)?;
    let (sender, connection) = h2::client::handshake(TokioIo::new(wire))
        .await
        .map_err(endpoint)?;
    let exchange = async {
        let mut sender = sender.ready().await.map_err(endpoint)?;
        let (response, mut stream) = sender.send_request(request, false).map_err(endpoint)?;
        stream.send_data(message(service), true).map_err(endpoint)?;
        answer(response.await.map_err(endpoint)?).await
    };
    tokio::select! {
        result = exchange => result,
        ended = connection => Err(match ended {
            Ok(()) => Failed::Endpoint("the connection ended before an answer came".into()),
            Err(error) => endpoint(error),
        }),
    }
}

fn request(authority: &str, timeout: Duration) -> Result<Request<()>, Failed> {
    let uri = Uri::builder()
        .scheme("http")
        .authority(authority)
        .path_and_query("/grpc.health.v1.Health/Check")
        .build()
        .map_err(endpoint)?;
    Request::builder()
        .method(Method::POST)
        .uri(uri)
        .version(Version::HTTP_2)
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, USER_AGENT)
        // At most eight digits.
        .header(
            "grpc-timeout",
            format!("{}m", timeout.as_millis().min(99_999_999)),
        )
        .body(())
        .map_err(endpoint)
}

fn message(service: &str) -> Bytes {
    let body = HealthCheckRequest {
        service: service.to_owned(),
    }
    .encode_to_vec();
    let mut framed = BytesMut::with_capacity(PREFIX + body.len());
    framed.put_u8(0);
    framed.put_u32(body.len() as u32);
    framed.put_slice(&body);
    framed.freeze()
}

async fn answer(response: http::Response<h2::RecvStream>) -> Result<(), Failed> {
    let (head, mut body) = response.into_parts();
    if head.status != StatusCode::OK {
        return Err(Failed::Endpoint(format!(
            "HTTP status {}",
            head.status.as_u16()
        )));
    }
    // Trailers only: the status stands with the headers.
    status(&head.headers, false)?;
    let mut data = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.map_err(endpoint)?;
        // Its failure is that of the stream, which the next read tells.
        let _ = body.flow_control().release_capacity(chunk.len());
        if data.len() + chunk.len() > MAX_ANSWER {
            return Err(Failed::Endpoint(
                "the answer is none to a health check".into(),
            ));
        }
        data.extend_from_slice(&chunk);
    }
    let trailers = body.trailers().await.map_err(endpoint)?;
    status(&trailers.unwrap_or_default(), true)?;
    serving(&data)
}

/// Fails for a `grpc-status` but OK, and for its absence where it is required.
fn status(headers: &HeaderMap, required: bool) -> Result<(), Failed> {
    let code = match headers.get("grpc-status").map(|value| value.as_bytes()) {
        Some(b"0") => return Ok(()),
        None if !required => return Ok(()),
        None => return Err(Failed::Endpoint("the answer has no grpc-status".into())),
        Some(code) => String::from_utf8_lossy(code).into_owned(),
    };
    Err(Failed::Endpoint(match code.as_str() {
        "5" => "the server does not know the service (grpc-status 5)".into(),
        "12" => "the server does not implement grpc.health.v1 (grpc-status 12)".into(),
        code => format!("grpc-status {}", code.escape_default()),
    }))
}

fn serving(data: &[u8]) -> Result<(), Failed> {
    let none = || Failed::Endpoint("the answer is none to a health check".into());
    let message = data
        .get(PREFIX..)
        .filter(|_| data[0] == 0)
        .ok_or_else(none)?;
    let answer = HealthCheckResponse::decode(message).map_err(|_| none())?;
    match answer.status {
        1 => Ok(()),
        0 => Err(Failed::Endpoint("the service says UNKNOWN".into())),
        2 => Err(Failed::Endpoint("the service says NOT_SERVING".into())),
        3 => Err(Failed::Endpoint("the service says SERVICE_UNKNOWN".into())),
        other => Err(Failed::Endpoint(format!("the service says {other}"))),
    }
}
