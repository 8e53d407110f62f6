//! Connections for active health checks, made as those of the node's workloads are: from the network namespace of one of
//! them, and through a tunnel where the endpoint takes one.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use futures::future::BoxFuture;
use tokio::time::Instant;

use super::{Proxy, connect, http::Io, served::Served};
use crate::health::{Dial, Failed, Wire};

impl Dial for Proxy {
    fn dial<'a>(
        &'a self,
        namespace: &'a str,
        endpoint: SocketAddr,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Box<dyn Wire>, Failed>> {
        Box::pin(async move {
            let Some(served) = self.stand_in(namespace) else {
                let why = "no workload of this node is captured, in whose name it could be";
                return Err(Failed::Unknown(why.into()));
            };
            // The other agent takes the tunnel's address for the client's.
            let client = connect::Client {
                address: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
                chosen: false,
            };
            connect::for_check(&self.shared, &*served.pod, endpoint, client, deadline)
                .await
                .map(|connected| Box::new(Io::from(connected.link)) as Box<dyn Wire>)
        })
    }
}

impl Proxy {
    /// The workload in whose name an endpoint of a service of `namespace` is checked: one of that namespace if there is
    /// one, because policies let those through first, and always the same.
    fn stand_in(&self, namespace: &str) -> Option<Arc<Served>> {
        let table = self.lock();
        let first = table.serving.values().min_by_key(|served| {
            let name = served.pod.name();
            (*name.namespace != *namespace, name.clone())
        });
        first.cloned()
    }
}
