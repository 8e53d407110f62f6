//! An authority in a temporary folder, for the tests of server and client.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{sync::oneshot, task::JoinHandle};
use tokio_rustls::TlsAcceptor;

use super::{
    CaServer, CaServerOptions, NodeTokens, ServeError, State,
    authority::Authority,
    tls::{Names, PortCertificate},
};
use crate::{
    catalog::{Catalog, SourceId},
    identity::{csr, keys::WorkloadKey},
    model::SpiffeId,
};

pub(in crate::identity) const DAY: Duration = Duration::from_secs(86_400);

/// A workload: node, namespace, service account.
pub(in crate::identity) type Placed<'a> = (Option<&'a str>, &'a str, &'a str);

pub(in crate::identity) struct TestAuthority {
    pub(in crate::identity) dir: tempfile::TempDir,
    pub(in crate::identity) state: State,
    pub(in crate::identity) catalog: Arc<Catalog>,
    source: SourceId,
}

impl TestAuthority {
    pub(in crate::identity) fn new(workloads: &[Placed<'_>]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path().join("state")).unwrap();
        state.ensure_authority().unwrap();
        state.ensure_token_key().unwrap();
        let catalog = Catalog::new("");
        let source = catalog.register();
        let authority = Self {
            dir,
            state,
            catalog,
            source,
        };
        authority.place(workloads);
        authority
    }

    /// Another configuration.
    pub(in crate::identity) fn place(&self, workloads: &[Placed<'_>]) {
        place(&self.catalog, self.source, workloads);
    }

    pub(in crate::identity) fn token(&self, node: &str) -> String {
        self.state.issue(node, SystemTime::now(), DAY).unwrap().0
    }

    /// A file in the temporary folder.
    pub(in crate::identity) fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    pub(in crate::identity) async fn serve(&self, listen: SocketAddr) -> Running {
        let tokens = NodeTokens::open(&self.state, None).unwrap();
        let options = CaServerOptions {
            listen,
            dns_names: vec!["localhost".to_owned()],
            ips: vec![Ipv4Addr::LOCALHOST.into()],
            ttl_max: DAY,
            trust_domain: None,
        };
        let server = CaServer::bind(
            &self.state,
            Arc::new(tokens),
            Arc::clone(&self.catalog),
            options,
        )
        .await
        .unwrap();
        let address = server.address().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        Running {
            address,
            stop,
            task,
        }
    }
}

pub(in crate::identity) struct Running {
    pub(in crate::identity) address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), ServeError>>,
}

impl Running {
    pub(in crate::identity) async fn stop(self) {
        self.stop.send(()).unwrap();
        self.task.await.unwrap().unwrap();
    }
}

pub(in crate::identity) const ANY_PORT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

pub(in crate::identity) fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

pub(in crate::identity) fn csr_for(id: &SpiffeId) -> String {
    csr::request(&WorkloadKey::generate().unwrap(), id).unwrap()
}

/// Makes these workloads the whole configuration.
pub(super) fn place(catalog: &Catalog, source: SourceId, workloads: &[Placed<'_>]) {
    let documents: String = workloads
        .iter()
        .enumerate()
        .map(|(at, (node, namespace, account))| {
            let node = node.map_or_else(String::new, |node| format!("node: {node}, "));
            format!(
                "---\napiVersion: mesh.covet.dev/v1alpha1\nkind: Workload\n\
                 metadata: {{name: w-{at}, namespace: {namespace}}}\n\
                 spec: {{{node}addresses: [10.0.{}.{}], serviceAccount: {account}}}\n",
                at / 250,
                at % 250 + 1
            )
        })
        .collect();
    let (config, _) = crate::api::parse_bytes("test.yaml", documents.as_bytes())
        .unwrap_or_else(|errors| panic!("{errors:?}\n{documents}"));
    catalog.apply(source, config);
}

/// TLS with a certificate of the authority, for servers that are none of ours.
pub(in crate::identity) fn acceptor(authority: &TestAuthority, alpn: &[u8]) -> TlsAcceptor {
    let signing = Authority::load(authority.state.dir()).unwrap();
    let names = Names {
        dns: vec!["localhost".to_owned()],
        ips: Vec::new(),
    };
    let certificate = PortCertificate::new(names, &signing, SystemTime::now()).unwrap();
    let mut config = rustls::ServerConfig::clone(&certificate.config().unwrap());
    config.alpn_protocols = vec![alpn.to_vec()];
    TlsAcceptor::from(Arc::new(config))
}
