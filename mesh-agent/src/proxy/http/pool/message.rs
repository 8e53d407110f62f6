//! What a request needs beyond its form on the wire (`headers::for_upstream`) before hyper or h2 takes it.

use std::sync::Arc;

use ::http::{
    HeaderMap, Method, Request, StatusCode, Uri, Version,
    header::HOST,
    request::Parts,
    uri::{Authority, PathAndQuery, Scheme},
};

type Callback = dyn Fn(StatusCode, &HeaderMap) + Send + Sync;

/// Told of every interim response (1xx) to a request.
#[derive(Clone)]
pub(super) struct Informational(Arc<Callback>);

impl Informational {
    pub(super) fn tell(&self, status: StatusCode, headers: &HeaderMap) {
        (self.0)(status, headers);
    }
}

/// Has `callback` told of the interim responses (1xx) to a request, whichever version it goes out in.
pub(in crate::proxy) fn on_informational<B>(
    request: &mut Request<B>,
    callback: impl Fn(StatusCode, &HeaderMap) + Send + Sync + 'static,
) {
    request
        .extensions_mut()
        .insert(Informational(Arc::new(callback)));
}

/// What hyper wants in its own way.
pub(super) fn for_http1<B>(request: &mut Request<B>) {
    if let Some(informational) = request.extensions_mut().remove::<Informational>() {
        hyper::ext::on_informational(request, move |response| {
            informational.tell(response.status(), response.headers());
        });
    }
    *request.version_mut() = Version::HTTP_11;
}

/// What h2 wants in its own way. `fallback` is the authority of a request that names none.
pub(super) fn for_http2(parts: &mut Parts, fallback: &str) {
    parts.version = Version::HTTP_2;
    let host = parts.headers.remove(HOST);
    // Plain CONNECT has an authority alone; extended CONNECT has all of it (RFC 8441 4).
    let protocol = parts.extensions.remove::<hyper::ext::Protocol>();
    let plain_connect = parts.method == Method::CONNECT && protocol.is_none();
    if let Some(protocol) = protocol {
        let protocol = h2::ext::Protocol::from(protocol.as_str());
        parts.extensions.insert(protocol);
    }
    if plain_connect || (parts.uri.scheme().is_some() && parts.uri.authority().is_some()) {
        return;
    }
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    uri.scheme.get_or_insert(Scheme::HTTP);
    if uri.authority.is_none() {
        uri.authority = host
            .as_ref()
            .and_then(|host| Authority::try_from(host.as_bytes()).ok())
            .or_else(|| Authority::try_from(fallback).ok());
    }
    uri.path_and_query
        .get_or_insert_with(|| PathAndQuery::from_static("/"));
    parts.uri = Uri::from_parts(uri).unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, uri: &str, headers: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    fn written(request: &Request<()>) -> String {
        let mut text = format!("{} {}", request.method(), request.uri());
        for (name, value) in request.headers() {
            text.push_str(&format!(" {name}={}", value.to_str().unwrap()));
        }
        text
    }

    #[test]
    fn http2_has_scheme_and_authority() {
        for (method, uri, headers, expected) in [
            ("GET", "/a?b", &[("host", "h")][..], "GET http://h/a?b"),
            ("GET", "/", &[], "GET http://10.0.0.1:80/"),
            ("GET", "/", &[("host", "a b")], "GET http://10.0.0.1:80/"),
            ("GET", "https://h/", &[("x-a", "1")], "GET https://h/ x-a=1"),
            ("CONNECT", "h:1", &[], "CONNECT h:1"),
        ] {
            let (mut parts, ()) = request(method, uri, headers).into_parts();
            for_http2(&mut parts, "10.0.0.1:80");
            assert_eq!(written(&Request::from_parts(parts, ())), expected);
        }
    }

    #[test]
    fn an_extended_connect_keeps_its_path() {
        let (mut parts, ()) = request("CONNECT", "/chat", &[("host", "h")]).into_parts();
        parts
            .extensions
            .insert(hyper::ext::Protocol::from_static("websocket"));
        for_http2(&mut parts, "10.0.0.1:80");
        assert_eq!(parts.uri, "http://h/chat");
        let protocol = parts.extensions.get::<h2::ext::Protocol>().unwrap();
        assert_eq!(protocol.as_str(), "websocket");
    }
}
