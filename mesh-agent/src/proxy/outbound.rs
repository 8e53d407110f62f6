//! A captured connection of the workload: where it was to go, and the way there.

use std::{net::SocketAddr, os::fd::AsFd, sync::Arc};

use mesh_common::Direction;
use tokio::{io::Interest, time::timeout};

use super::{
    Shared,
    accept::{Accepted, local_address, meta},
    connect::{self, Client, Connected, Link},
    decide::{self, Speaks, Target, target},
    http::{
        self, HttpVersion, ServerSettings,
        detect::{DETECTION, LAST_LOOK, Peeked, sniff},
    },
    served::{Report, Served},
    socket::{Leg, canonical},
    tcp, tunnel,
};
use crate::{
    resilience::Permit,
    telemetry::{Detected, Reason},
};

/// Serves one connection to its end.
pub(super) async fn serve(shared: Arc<Shared>, served: Arc<Served>, accepted: Accepted) {
    let peer = accepted.peer;
    let found = served.pod.original_dst(accepted.socket.as_fd());
    // Captured connections are redirected to the workload's main address, from which the kernel would also dial. Another
    // one was chosen by the application, and stays the one that the server sees.
    let local = local_address(&accepted.socket);
    let from = Client {
        address: peer,
        chosen: peer.ip() != local.ip(),
    };
    let (dialled, cookie) = match &found {
        Ok(Some((dialled, cookie))) => (canonical(*dialled), *cookie),
        Ok(None) | Err(_) => (local, 0),
    };
    if served.pod.is_self_test(peer, dialled) {
        return;
    }
    let target = match found {
        Ok(Some(_)) => target(&shared.catalog.load(), dialled, &served.pod.policy()),
        Ok(None) => Err(Reason::NoOriginalDestination),
        Err(error) => {
            tracing::warn!(workload = %served.pod.name(), %error, "cannot read the original destination");
            Err(Reason::NoOriginalDestination)
        }
    };
    let service = match &target {
        Ok(Target::Service(upstream)) => Some(upstream.service.name.clone()),
        _ => None,
    };
    let meta = meta(
        &shared,
        &served,
        Direction::Outbound,
        peer,
        dialled,
        service,
        cookie,
    );
    let report = Report::new(shared.telemetry.open(meta), Arc::clone(&served));
    let client = match accepted.into_leg() {
        Ok(client) => client,
        Err(error) => {
            tracing::warn!(workload = %served.pod.name(), %error, "cannot register a connection");
            return report.finish(Reason::Internal);
        }
    };
    let speaks = match &target {
        Ok(Target::Service(upstream)) => {
            let namespace = &served.pod.name().namespace;
            decide::speaks(&shared.catalog.load(), upstream, namespace)
        }
        _ => Speaks::Opaque,
    };
    let origin = Origin { dialled, from };
    // Boxed: connecting and serving requests need much, while the task of an idle TCP connection is to be small.
    let ready = match speaks {
        Speaks::Opaque => Box::pin(opaque(&shared, &served, target, origin, client, report)).await,
        Speaks::Http => {
            Box::pin(http(&shared, &served, origin, client, report)).await;
            None
        }
        Speaks::Detect => {
            Box::pin(detected(&shared, &served, target, origin, client, report)).await
        }
    };
    let Some(ready) = ready else {
        return;
    };
    let Ready {
        client,
        link,
        _permits,
        report,
    } = ready;
    match link {
        Link::Plain(leg) => tcp::run(client, leg, &shared, report).await,
        // Boxed: a plain connection shall not pay for it.
        Link::Tunnel(stream) => Box::pin(tunnel::run(client, *stream, &shared, report)).await,
    }
}

/// A connection that is carried as bytes from here on.
struct Ready {
    client: Leg,
    link: Link,
    _permits: Option<[Permit; 2]>,
    report: Report,
}

/// Where a connection was to go, and for whom it is dialled.
#[derive(Clone, Copy)]
struct Origin {
    dialled: SocketAddr,
    from: Client,
}

/// Connects, for a connection that is carried as bytes.
async fn opaque(
    shared: &Arc<Shared>,
    served: &Arc<Served>,
    target: Result<Target, Reason>,
    origin: Origin,
    client: Leg,
    report: Report,
) -> Option<Ready> {
    // A client that only ends its stream is still served; one that resets it does not wait any more.
    let connected = tokio::select! {
        biased;
        connected = connect(shared, served, target, origin, &report) => connected,
        _ = client.ready(Interest::ERROR) => Err(Reason::ClientReset),
    };
    ready(client, connected, report)
}

fn ready(client: Leg, connected: Result<Connected, Reason>, report: Report) -> Option<Ready> {
    match connected {
        Ok(connected) => Some(Ready {
            client,
            link: connected.link,
            _permits: connected.permits,
            report,
        }),
        Err(reason) => {
            report.finish(reason);
            None
        }
    }
}

/// Reads requests; nothing is connected before one has come.
async fn http(
    shared: &Arc<Shared>,
    served: &Arc<Served>,
    origin: Origin,
    client: Leg,
    report: Report,
) {
    let settings = ServerSettings::default();
    match timeout(
        settings.idle_timeout,
        sniff(&client, settings.header_timeout),
    )
    .await
    {
        Ok(Peeked::Http(version)) => {
            requests(shared, served, origin, client, report, version, None).await;
        }
        // It came, said nothing whole and went.
        Ok(Peeked::Closed) => report.finish(Reason::ClientReset),
        Ok(Peeked::NotHttp) => report.finish(Reason::NotHttp),
        Ok(Peeked::Undecided) | Err(_) => report.finish(Reason::ClientTimeout),
    }
}

async fn requests(
    shared: &Arc<Shared>,
    served: &Arc<Served>,
    origin: Origin,
    client: Leg,
    report: Report,
    version: HttpVersion,
    first: Option<SocketAddr>,
) {
    let (shared, served) = (Arc::clone(shared), Arc::clone(served));
    let Origin { dialled, from } = origin;
    let requests = http::Outbound::new(shared, served, report, dialled, from, version, first);
    requests.run(client.into()).await;
}

/// Connects while the client's first bytes are awaited: if the server speaks first, or the client speaks something else
/// than HTTP, the connection is carried as bytes; if it is HTTP, the connection is the first of the pool.
async fn detected(
    shared: &Arc<Shared>,
    served: &Arc<Served>,
    target: Result<Target, Reason>,
    origin: Origin,
    client: Leg,
    report: Report,
) -> Option<Ready> {
    let service = match &target {
        Ok(Target::Service(upstream)) => Some(Arc::clone(upstream)),
        _ => None,
    };
    let mut connecting = Box::pin(connect(shared, served, target, origin, &report));
    let mut peeking = Box::pin(sniff(&client, DETECTION));
    let mut connected = None;
    let mut server_first = false;
    let peeked = loop {
        tokio::select! {
            biased;
            result = &mut connecting, if connected.is_none() => match result {
                Ok(made) => connected = Some(made),
                Err(reason) => {
                    // An HTTP client gets an answer instead of a reset; it has sent its request by now.
                    let peeked = timeout(LAST_LOOK, &mut peeking).await;
                    drop((connecting, peeking));
                    if let Ok(Peeked::Http(version)) = peeked {
                        requests(shared, served, origin, client, report, version, None).await;
                        return None;
                    }
                    return ready(client, Err(reason), report);
                }
            },
            peeked = &mut peeking => break peeked,
            () = spoken(&mut connected) => {
                server_first = true;
                break Peeked::NotHttp;
            }
            _ = client.ready(Interest::ERROR) => {
                drop((connecting, peeking));
                return ready(client, Err(Reason::ClientReset), report);
            }
        }
    };
    drop(peeking);
    shared.telemetry.detected(match peeked {
        Peeked::Http(HttpVersion::Http1) => Detected::Http1,
        Peeked::Http(HttpVersion::Http2) => Detected::Http2,
        Peeked::NotHttp if server_first => Detected::ServerFirst,
        Peeked::NotHttp => Detected::Other,
        Peeked::Undecided => Detected::Timeout,
        Peeked::Closed => Detected::Closed,
    });
    let result = match connected {
        Some(connected) => Ok(connected),
        None => tokio::select! {
            biased;
            result = &mut connecting => result,
            _ = client.ready(Interest::ERROR) => Err(Reason::ClientReset),
        },
    };
    drop(connecting);
    if let Peeked::Http(version) = peeked {
        let mut first = None;
        if let (Ok(connected), Some(service)) = (result, service) {
            first = Some(connected.endpoint);
            http::adopt(shared, served, origin.from, version, &service, connected).await;
        }
        requests(shared, served, origin, client, report, version, first).await;
        return None;
    }
    ready(client, result, report)
}

/// Resolves when the server has said something, or has ended.
async fn spoken(connected: &mut Option<Connected>) {
    match connected.as_mut().map(|connected| &mut connected.link) {
        Some(Link::Plain(leg)) => {
            // An error is found by whoever carries it.
            let _ = leg.ready(Interest::READABLE).await;
        }
        Some(Link::Tunnel(stream)) => {
            let _ = std::future::poll_fn(|cx| stream.poll_peek(cx, 0)).await;
        }
        None => std::future::pending().await,
    }
}

async fn connect(
    shared: &Shared,
    served: &Served,
    target: Result<Target, Reason>,
    origin: Origin,
    report: &Report,
) -> Result<Connected, Reason> {
    let Origin {
        dialled,
        from: client,
    } = origin;
    let pod = served.pod.as_ref();
    match target? {
        Target::Service(upstream) => {
            connect::to_service(shared, pod, &upstream, client, report).await
        }
        Target::Address(workload) => {
            report.set_upstream(dialled, workload.map(|w| w.name.clone()));
            connect::to_address(shared, pod, dialled, client, report).await
        }
    }
}
