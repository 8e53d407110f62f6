//! Nodes, authorities and handshakes of the tests.

use std::{
    collections::BTreeSet,
    io::Cursor,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::{task::JoinHandle, time::Instant};

use super::super::*;

pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn id(account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/shop/sa/{account}")
        .parse()
        .unwrap()
}

/// One node: identities, and the task that keeps them.
pub(super) struct Node {
    pub(super) identities: Arc<Identities>,
    task: JoinHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl std::ops::Deref for Node {
    type Target = Arc<Identities>;

    fn deref(&self) -> &Self::Target {
        &self.identities
    }
}

impl Node {
    pub(super) fn start(ca: Arc<dyn CertificateAuthority>, options: IdentityOptions) -> Self {
        let identities = Identities::new(ca, options).unwrap();
        let task = tokio::spawn(identities.clone().run());
        Self { identities, task }
    }

    /// With a certificate for each of these accounts.
    pub(super) async fn with(self, accounts: &[&str]) -> Self {
        self.want(accounts.iter().map(|account| id(account)).collect());
        for account in accounts {
            self.first(account).await;
        }
        self
    }

    pub(super) async fn first(&self, account: &str) -> Arc<TlsIdentity> {
        self.tls_by(&id(account), Instant::now() + PATIENCE)
            .await
            .unwrap()
    }

    pub(super) fn of(&self, account: &str) -> Arc<TlsIdentity> {
        self.tls(&id(account)).unwrap()
    }
}

pub(super) fn only(account: &str) -> BTreeSet<SpiffeId> {
    BTreeSet::from([id(account)])
}

/// A folder with an authority in it.
pub(super) struct Authority {
    dir: tempfile::TempDir,
}

impl Authority {
    pub(super) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub(super) fn state(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn folder(&self) -> PathBuf {
        self.dir.path().join("ca")
    }

    pub(super) fn ca(&self) -> Arc<BuiltInCa> {
        Arc::new(BuiltInCa::open(self.state()).unwrap())
    }
}

/// Waits for a condition by looking at it.
pub(super) async fn until(what: &str, mut met: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !met() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Both ends after a handshake that both accepted.
#[derive(Debug)]
pub(super) struct Shaken {
    pub(super) client: ClientConnection,
    pub(super) server: ServerConnection,
}

/// Which end failed first, and how.
#[derive(Debug)]
pub(super) enum Failed {
    Client(rustls::Error),
    Server(rustls::Error),
}

impl Failed {
    pub(super) fn cause(&self) -> &'static str {
        match self {
            Self::Client(error) | Self::Server(error) => handshake_cause(error),
        }
    }
}

pub(super) fn server_name() -> ServerName<'static> {
    ServerName::from(std::net::IpAddr::from([10, 0, 0, 7]))
}

/// A handshake in memory, up to and with the server's tickets.
pub(super) fn shake(
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
) -> Result<Shaken, Failed> {
    let mut client = ClientConnection::new(client.clone(), server_name()).unwrap();
    let mut server = ServerConnection::new(server.clone()).unwrap();
    loop {
        let mut moved = 0;
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        moved += wire.len();
        feed(&mut (&mut server).into(), &wire).map_err(Failed::Server)?;
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        moved += wire.len();
        feed(&mut (&mut client).into(), &wire).map_err(Failed::Client)?;
        if moved == 0 {
            assert!(!client.is_handshaking() && !server.is_handshaking());
            return Ok(Shaken { client, server });
        }
    }
}

enum End<'a> {
    Client(&'a mut ClientConnection),
    Server(&'a mut ServerConnection),
}

impl<'a> From<&'a mut ClientConnection> for End<'a> {
    fn from(connection: &'a mut ClientConnection) -> Self {
        Self::Client(connection)
    }
}

impl<'a> From<&'a mut ServerConnection> for End<'a> {
    fn from(connection: &'a mut ServerConnection) -> Self {
        Self::Server(connection)
    }
}

fn feed(end: &mut End<'_>, wire: &[u8]) -> Result<(), rustls::Error> {
    let mut wire = Cursor::new(wire);
    while wire.position() < wire.get_ref().len() as u64 {
        match end {
            End::Client(client) => {
                client.read_tls(&mut wire).unwrap();
                client.process_new_packets()?;
            }
            End::Server(server) => {
                server.read_tls(&mut wire).unwrap();
                server.process_new_packets()?;
            }
        }
    }
    Ok(())
}

pub(super) fn chain(connection: &Connection) -> Vec<CertificateDer<'static>> {
    connection.peer_certificates().unwrap().to_vec()
}
